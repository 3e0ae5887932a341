"""All proofs of every model type of the installed transformers: `make test-architectures`. About half an hour on two cores."""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from qlora_engine.architectures.trial import DoesNotTrain
from qlora_engine.errors import EngineError
from qlora_engine.models import class_child
from tests.architectures import proofs

AT_LEAST = 150


def outcome(kind: str) -> tuple[bool, str]:
    """Whether every proof of the type holds, and the numbers or the reason."""
    with tempfile.TemporaryDirectory(prefix="qlora-campaign-") as folder:
        try:
            numbers = proofs.prove(kind, Path(folder))
        except (DoesNotTrain, EngineError, proofs.Broken) as answer:
            return False, str(answer)
        except Exception as error:  # noqa: BLE001 - whatever a class raises is its outcome
            return False, f"{type(error).__name__}: {class_child.first_line(error)}"
    return True, ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())


def main(types: list[str]) -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = types or list(class_child.causal_types())
    began, proven = time.perf_counter(), 0
    for kind in chosen:
        holds, words = outcome(kind)
        proven += holds
        print(f"{kind:<26}{'proven' if holds else 'not'}: {words[:220]}", flush=True)
    print(f"{proven} of {len(chosen)} types hold every proof; {time.perf_counter() - began:.0f} s")
    return 0 if types or proven >= AT_LEAST else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
