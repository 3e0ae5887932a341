"""Run folders without a run: what tests of readers need, in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.events import EvaluationFinished, StepFinished, encode
from qlora_engine.runs import sealed
from qlora_engine.runs.record import RunFolder


def add_checkpoint(folder: RunFolder, number: int) -> Path:
    """A whole checkpoint, as far as can be told without loading it."""
    path = folder.checkpoints_dir / f"step-{number}"
    path.mkdir(parents=True)
    (path / "adapter.safetensors").write_bytes(b"12345")
    (path / "state.json").write_bytes(sealed.sealed({"train_state": {"step": number}}))
    sealed.write_mark(path, path / "checkpoint.json", ["adapter.safetensors"])
    return path


def seal_adapter(run: Path) -> None:
    """Take what lies in `adapter/` for what the run wrote there."""
    adapter = run / "adapter"
    sealed.write_mark(adapter, run / "adapter.json", sorted(p.name for p in adapter.iterdir()), record={})


def config_of(**changes: Any) -> TrainingConfig:
    """A job; `changes` are dotted paths with `__` for the dot."""
    config = TrainingConfig()
    for path, value in changes.items():
        config = with_value(config, path.replace("__", ".", 1), value)
    return config


def step_event(number: int, total: int, loss: float, tokens: int = 64) -> StepFinished:
    return StepFinished(
        number,
        total,
        number / total,
        loss,
        1e-4,
        1.5,
        tokens,
        tokens // 2,
        0.25,
        tokens * 4.0,
        0.0,
        None,
        1e9 + number,
    )


def write_run(name: str, losses: Sequence[float], state: str = "finished", **changes: Any) -> RunFolder:
    """A run in the default runs folder with these training losses, and a held-out loss 0.1 above every tenth."""
    folder = RunFolder.create(config_of(output__name=name, **changes))
    total, lines = len(losses), []
    for number, loss in enumerate(losses, 1):
        lines.append(encode(step_event(number, total, loss)))
        if number % 10 == 0:
            lines.append(encode(EvaluationFinished(number, loss + 0.1, 100, 0.2, True, 1e9)))
    folder.metrics_path.write_text(
        "".join(f"{sealed.sealed_line(line)}\n" for line in lines), encoding="utf-8"
    )
    best = min(losses) if losses else None
    folder.update(
        state=state, loss_before=3.0, loss_after=best, best_loss=best, best_step=total, last_step=total or None,
        model={"name": "tiny"}, plan={"total_steps": total},
    )  # fmt: skip
    return folder
