"""All proofs of every model type of the installed transformers, and how near its memory figures are: `make test-architectures`.

TYPES: those alone. `--keep FILE`: results are kept there, and what it has already is not tried again. `--no-memory`: the proofs
alone. About half an hour on two cores, five minutes without memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qlora_engine.architectures.trial import DoesNotTrain
from qlora_engine.errors import EngineError
from qlora_engine.models import class_child
from tests.architectures import memory, proofs

AT_LEAST = 150
REHEARSED_AT_LEAST = 60
SEEING = ("gemma3", "gemma4", "qwen3_5", "llama4", "mistral3")
"""Types that also see, of which the language model is trained and the tower must stay."""


def outcome(kind: str, *, wants_memory: bool) -> dict[str, Any]:
    """Whether every proof of the type holds, the numbers or the reason, and how far its memory figures are away."""
    found: dict[str, Any] = {"type": kind, "proven": False}
    with tempfile.TemporaryDirectory(prefix="qlora-campaign-") as folder:
        try:
            found["numbers"] = proofs.prove(kind, Path(folder))
            found["proven"] = True
        except (DoesNotTrain, EngineError, proofs.Broken) as answer:
            found["reason"] = str(answer)
        except Exception as error:  # noqa: BLE001 - whatever a class raises is its outcome
            found["reason"] = f"{type(error).__name__}: {class_child.first_line(error)}"
        if wants_memory and found["proven"]:
            try:
                found["memory"] = memory.measured(Path(folder) / "base")
            except Exception as error:  # noqa: BLE001 - as above
                found["memory reason"] = f"{type(error).__name__}: {class_child.first_line(error)}"
    return found


def line_of(found: Mapping[str, Any]) -> str:
    """One row of the table."""
    if not found["proven"]:
        return f"{found['type']:<26}not: {found['reason'][:220]}"
    told = [f"{name} {value:.3g}" for name, value in found["numbers"].items()]
    told += [f"{name} {100 * value:+.1f} %" for name, value in found.get("memory", {}).items()]
    if "memory reason" in found:
        told.append(f"not rehearsed: {found['memory reason'][:100]}")
    return f"{found['type']:<26}proven: {', '.join(told)}"


def counts(results: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many types hold what."""
    measured = [one["memory"] for one in results if "memory" in one]
    near = [abs(one["rehearsal"]) <= memory.REHEARSAL for one in measured]
    follows = [abs(one["closed form"]) <= memory.CLOSED_FORM for one in measured]
    return {
        "types": len(results),
        "every proof": sum(one["proven"] for one in results),
        "memory measured": len(measured),
        "rehearsal within 2 %": sum(near),
        "closed form within 5 %": sum(follows),
        "both": sum(a and b for a, b in zip(near, follows, strict=True)),
    }


def run(types: Sequence[str], keep: Path | None, *, wants_memory: bool) -> list[dict[str, Any]]:
    """The outcome of each type, printed as it comes."""
    lines = keep.read_text(encoding="utf-8").splitlines() if keep is not None and keep.exists() else []
    known = {one["type"]: one for one in map(json.loads, lines)}
    results = []
    for kind in types:
        found = known.get(kind) or outcome(kind, wants_memory=wants_memory)
        if keep is not None and kind not in known:
            with keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        print(line_of(found), flush=True)
        results.append(found)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--no-memory", action="store_true")
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    began = time.perf_counter()
    causal = class_child.causal_types()
    types = chosen.types or [*causal, *(kind for kind in SEEING if kind not in causal)]
    results = run(types, chosen.keep, wants_memory=not chosen.no_memory)
    found = counts([one for one in results if chosen.types or one["type"] in causal])
    seen = [one for one in results if one["type"] in SEEING]
    print("\n" + ", ".join(f"{name}: {count}" for name, count in found.items()))
    print(f"also seeing, tower kept: {sum(one['proven'] for one in seen)} of {len(seen)}")
    print(f"{time.perf_counter() - began:.0f} s")
    if chosen.types:
        return 0
    is_enough = found["every proof"] >= AT_LEAST and all(one["proven"] for one in seen)
    return 0 if is_enough and (chosen.no_memory or found["both"] >= REHEARSED_AT_LEAST) else 1


if __name__ == "__main__":
    sys.exit(main())
