"""Models, settings and GPUs that the tests of the Memory page ask about."""

from __future__ import annotations

from typing import Any

from app.presenters.memory_sizes import Subject
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.memory import estimate as closed_form
from qlora_engine.memory import explain
from qlora_engine.memory.explain import Comparison
from qlora_engine.models import known


def counted(found: Comparison, more: int = 10 * 1024**2) -> dict[str, Any]:
    """A rehearsal's result as JSON: every activation a little larger than the formula says."""
    moving = {
        side: {name: found.bar(side).part(name).bytes_ + (more if name == "activations" else 0) for name in explain.MOVING}
        for side in explain.REHEARSED_SIDES
    }  # fmt: skip
    operations = dict.fromkeys(explain.REHEARSED_SIDES, "loss: mm")
    return closed_form.rehearsed(found.estimate, moving, operations).to_json()


def subject_of(model: str, seq_len: int = 512, rows: int = 1, device: str = "cuda", **edits: Any) -> Subject:
    found = known.find(model)
    assert found is not None
    config = TrainingConfig()
    for path, value in edits.items():
        config = with_value(config, path.replace("__", "."), value)
    return Subject(found.facts(), config, seq_len, rows, device)


def compared(subject: Subject) -> Comparison:
    return explain.compare(
        subject.facts, subject.config, seq_len=subject.seq_len, micro_batch=subject.micro_batch, device=subject.device
    )  # fmt: skip
