"""Run folders without a run: what tests of readers need, in milliseconds."""

from __future__ import annotations

from pathlib import Path

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
