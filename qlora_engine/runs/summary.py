"""A run in one line, for lists of runs and for comparisons. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine import paths
from qlora_engine.errors import EngineError
from qlora_engine.runs import endings, ownership
from qlora_engine.runs.record import LIVE_STATES, RunFolder, is_run

RESUMABLE_STATES = ("stopped", "crashed", "failed")


@dataclass(frozen=True)
class RunSummary:
    """One line of the history. `notices` say what is missing or unreadable; unknown values are None."""

    run_id: str
    path: Path
    state: str
    model: str
    data: str
    created_unix: float | None
    finished_unix: float | None
    last_step: int | None
    total_steps: int | None
    loss_before: float | None
    loss_after: float | None
    predicted_peak_bytes: int | None
    measured_peak_bytes: int | None
    is_resumable: bool
    notices: tuple[str, ...] = ()
    has_adapter: bool = False
    best_loss: float | None = None
    best_step: int | None = None
    train_seconds: float | None = None
    error: str = ""
    """What a failed run failed of, with the next step."""
    answers_asked: int | None = None
    """Held-out questions that were answered after training."""
    answers_ended: int | None = None
    """Of these, the answers that ended by themselves."""


def summary_of(folder: RunFolder) -> RunSummary:
    """Never raises: what cannot be read is said in `notices`."""
    notices = []
    try:
        record = folder.record()
        state = folder.state(record)
    except EngineError as error:
        record, state = {}, "unreadable"
        notices.append(error.message)
    if record.get("rebuilt_from"):
        notices.append(f"its record was damaged; what is shown is from {record['rebuilt_from']}")
    if state in LIVE_STATES and ownership.is_elsewhere(folder.path, record):
        notices.append(f"begun on {record.get('host')}; whether it still runs cannot be told from here")
    plan = record.get("plan") or {}
    checkpoints, ends = folder.checkpoints(), endings.of_record(record)
    problem = (record.get("error") or {}) if state in RESUMABLE_STATES else {}
    if record.get("last_checkpoint") and not checkpoints and state != "finished":
        notices.append("its checkpoints are missing")
    return RunSummary(
        run_id=folder.run_id,
        path=folder.path,
        state=state,
        model=str((record.get("model") or {}).get("name") or _asked_for(folder, record, "model", "name")),
        data=str((record.get("data") or {}).get("path") or _asked_for(folder, record, "data", "path")),
        created_unix=record.get("created"),
        finished_unix=record.get("finished"),
        last_step=record.get("last_step"),
        total_steps=plan.get("total_steps"),
        loss_before=record.get("loss_before"),
        loss_after=record.get("loss_after"),
        predicted_peak_bytes=record.get("predicted_peak_bytes"),
        measured_peak_bytes=record.get("measured_peak_bytes"),
        is_resumable=state in RESUMABLE_STATES and bool(checkpoints),
        notices=tuple(notices),
        has_adapter=(folder.adapter_dir / "adapter_model.safetensors").is_file(),
        best_loss=record.get("best_loss"),
        best_step=record.get("best_step"),
        train_seconds=record.get("train_seconds"),
        error="; ".join(str(problem[key]) for key in ("message", "hint") if problem.get(key)),
        answers_asked=ends.asked if ends else None,
        answers_ended=ends.ended if ends else None,
    )


def _asked_for(folder: RunFolder, record: Mapping[str, Any], table: str, name: str) -> str:
    """What its job says, for a run that has not begun, or failed before its record could tell."""
    kept = (record.get("job") or {}).get(table)
    if isinstance(kept, Mapping) and isinstance(kept.get(name), str):
        return str(kept[name])
    try:
        return str(getattr(getattr(folder.job(), table), name))
    except EngineError:
        return "n/a"


def list_runs(runs_dir: Path | None = None) -> list[RunSummary]:
    """All runs, newest first."""
    parent = runs_dir or paths.runs_dir()
    if not parent.is_dir():
        return []
    summaries = [summary_of(RunFolder(p)) for p in parent.iterdir() if is_run(p)]
    return sorted(summaries, key=lambda s: s.created_unix or 0.0, reverse=True)
