"""How near the memory figures of a tiny model are: the rehearsal to a real step on the CPU, the closed form to the rehearsal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlora_engine.memory.estimate import estimate
from qlora_engine.memory.rehearsal import Question, rehearse
from qlora_engine.models import names, spec
from tests.engine.memory.measure import measured_step
from tests.engine.memory.settings import config

TOKENS = 384
REHEARSAL, CLOSED_FORM = 0.02, 0.05
"""How far each may be away, as a share of the whole peak."""


def measured(base: Path) -> dict[str, float]:
    """Relative differences: `rehearsal` from a real step, `closed form` from the rehearsal. At a length that the closed form
    was not measured at.

    Raises:
        Exception: whatever the class, or the rehearsal of it, says.
    """
    facts = spec.facts_of_folder(base)
    tokens = min(TOKENS, 3 * (facts.max_positions or TOKENS) // 4)
    changes: dict[str, Any] = {
        "training__micro_batch": 1, "lora__rank": 8,
        "training__gradient_checkpointing": bool(names.skeleton(base).supports_gradient_checkpointing),
    }  # fmt: skip
    settings = config(1, **changes)
    rehearsed = rehearse(Question(facts, settings, tokens, 1, "cpu")).double_quant.peak_bytes
    closed = estimate(facts, settings, seq_len=tokens, micro_batch=1, device="cpu", wants_advice=False)
    real = measured_step(base, settings, tokens, 1).peak_bytes
    return {
        "rehearsal": rehearsed / real - 1,
        "closed form": closed.double_quant.peak_bytes / rehearsed - 1,
    }
