"""Whether a trained model ends its answers by itself, in words, and as a run's record keeps it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_engine.events import EndingsCounted

UNTAUGHT = "the end of an answer is not trained in these rows, so nothing teaches the model to stop; the data report says why"
UNLEARNED = "the end is trained in these rows, but was not learned: train for more steps, or with a higher learning rate"


def of_record(record: Mapping[str, Any]) -> EndingsCounted | None:
    """What `run.json` keeps; None where nothing was tried, or by another program."""
    try:
        return EndingsCounted(**record["endings"])
    except (KeyError, TypeError):
        return None


def is_most(found: EndingsCounted) -> bool:
    """Most answers ended; fewer need a reason."""
    return 2 * found.ended >= found.asked


def sentence(found: EndingsCounted) -> str:
    """`8 of 8 answers ended by themselves`, and where few did, why."""
    text = f"{found.ended} of {found.asked} answers to held-out questions ended by themselves"
    if found.ended < found.asked:
        text += f", the others went on to the limit of {found.limit} tokens"
    return text if is_most(found) else f"{text}: {UNLEARNED if 2 * found.taught >= found.asked else UNTAUGHT}"
