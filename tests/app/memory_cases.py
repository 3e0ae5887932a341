"""Models, settings and GPUs that the tests of the Memory page ask about."""

from __future__ import annotations

from typing import Any

from qlora_engine.memory import estimate as closed_form
from qlora_engine.memory import explain
from qlora_engine.memory.explain import Comparison


def counted(found: Comparison, more: int = 10 * 1024**2) -> dict[str, Any]:
    """A rehearsal's result as JSON: every activation a little larger than the formula says."""
    moving = {
        side: {name: found.bar(side).part(name).bytes_ + (more if name == "activations" else 0) for name in explain.MOVING}
        for side in explain.REHEARSED_SIDES
    }  # fmt: skip
    operations = dict.fromkeys(explain.REHEARSED_SIDES, "loss: mm")
    return closed_form.rehearsed(found.estimate, moving, operations).to_json()
