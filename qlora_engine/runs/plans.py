"""Runs that have not begun: planned from a configuration, edited, duplicated, started in their own folder. Torch-free.

A planned run is a run folder without steps: `job.toml` and a `run.json` with state `planned`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.errors import EngineError
from qlora_engine.jobs import ResumeJob, TrainJob
from qlora_engine.runs import notes, stored
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import RESUMABLE_STATES

NAME_TRIES = 5
EARLIER_FILE = "metrics.earlier.jsonl"
A_STEP = b'"event": "StepFinished"'


def create(config: TrainingConfig) -> RunFolder:
    """A planned run with this job.

    Raises:
        EngineError: the runs folder cannot be written, or a run of that name exists.
    """
    for _ in range(NAME_TRIES - 1):
        try:
            return RunFolder.create(config, stored.PLANNED)
        except (
            EngineError
        ) as error:  # another process took the automatic name between the look and the making
            if error.code != "output.exists" or config.output.name:
                raise
    return RunFolder.create(config, stored.PLANNED)


def duplicate(source: RunFolder, title: str = "") -> RunFolder:
    """A planned run with the job of another, whatever became of that, and its tags; `title` names it.

    Raises:
        EngineError: the job of `source` cannot be read, or the runs folder cannot be written.
    """
    made = create(with_value(source.job(), "output.name", None))
    kept = notes.read(source.path)
    wanted = title or (f"{kept.name} (copy)" if kept.name else "")
    if wanted or kept.tags:
        notes.write(made.path, dataclasses.replace(kept, name=wanted, note=""))
    return made


def edit(folder: RunFolder, config: TrainingConfig) -> None:
    """Give a planned run another job. Its folder stays where it is, whatever the job says of name and place.

    Raises:
        EngineError: it has begun. OSError: its folder cannot be written.
    """
    if not is_editable(folder):
        raise _begun(folder)
    config_io.save(config, folder.job_path)
    folder.update(job=config_io.to_dict(config))


def is_startable(folder: RunFolder) -> bool:
    """True for a planned run, and for one that ended and left nothing to go on from: it begins anew in its folder."""
    try:
        state = folder.state()
    except EngineError:
        return False
    return state == stored.PLANNED or (state in RESUMABLE_STATES and not folder.checkpoints())


def is_editable(folder: RunFolder) -> bool:
    """True for a run that can be started and has no step yet, so that no curve belongs to another job."""
    return is_startable(folder) and not _has_steps(folder)


def start_job(folder: RunFolder, *, detached: bool = False) -> TrainJob | ResumeJob:
    """What an engine carries out to begin a planned run, or to go on with a broken-off one.

    Raises:
        EngineError: its job cannot be read.
    """
    if is_startable(folder):
        return TrainJob(config_io.to_dict(folder.asked()[0]), str(folder.path), detached)
    return ResumeJob(str(folder.path), detached=detached)


def ready_to_start(run_dir: Path | str, config: TrainingConfig) -> RunFolder:
    """For the engine: the run, about to begin with `config`; the curve of an earlier try is put aside.

    Raises:
        EngineError: there is no such run, or it has begun.
    """
    folder = RunFolder.open(run_dir)
    if not is_startable(folder):
        raise _begun(folder)
    record = folder.record()
    with contextlib.suppress(FileNotFoundError):
        folder.metrics_path.replace(folder.path / EARLIER_FILE)
    kept: dict[str, Any] = {key: record[key] for key in ("run_id", "created") if key in record}
    folder.write_record({**kept, "state": stored.PLANNED, "job": config_io.to_dict(config)})
    config_io.save(config, folder.job_path)
    return folder


def _begun(folder: RunFolder) -> EngineError:
    return EngineError(
        "run.begun",
        f"run {folder.run_id!r} has begun: its job stays as it was trained",
        f"make a new run from it: `qlora runs duplicate {folder.run_id}`",
    )


def _has_steps(folder: RunFolder) -> bool:
    with contextlib.suppress(FileNotFoundError), folder.metrics_path.open("rb") as file:
        return any(A_STEP in line for line in file)
    return False
