"""Going on with a run: which checkpoint, with which settings, and whether that is still the same run. Imports torch."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig, all_knobs
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.events import Event, Noticed
from qlora_engine.jobs import ResumeJob
from qlora_engine.runs import claims, stored
from qlora_engine.runs.record import LIVE_STATES, RunFolder
from qlora_engine.training import checkpoint, identity, recovery
from qlora_engine.training.checkpoint import Found, TrainState
from qlora_engine.training.identity import Difference


@dataclass(frozen=True)
class Resume:
    """What a run goes on from, as it was asked for. `differences` have been accepted, or may be."""

    found: Found
    made: dict[str, Any]
    accept: frozenset[str]
    differences: tuple[Difference, ...]
    job_problem: str


def open_run(job: ResumeJob) -> tuple[RunFolder, TrainingConfig, Resume]:
    """The run, the settings it goes on with, and from where. Nothing is written yet.

    Raises:
        EngineError: busy, finished, without a checkpoint, or with other settings than the checkpoint's.
    """
    _require_known(job)
    folder = RunFolder.open(job.run_dir)
    _require_open(folder)
    found = checkpoint.find(folder)
    if found.path is None:
        damaged = f"; damaged: {', '.join(found.damaged)}" if found.damaged else ""
        raise EngineError(
            "run.no_checkpoint",
            f"run {folder.run_id!r} has no checkpoint to go on from{damaged}",
            "start it again as a new run",
        )
    made = checkpoint.made_with(found.path)
    config, problem = folder.asked()
    if problem:
        config = config_io.from_dict(made["settings"], found.path.name)
    differences = identity.changed_settings(made, config)
    identity.require_accepted(differences, job.accept, found.path.name, folder.run_id)
    return folder, config, Resume(found, made, frozenset(job.accept), tuple(differences), problem)


def accepts_all(job: ResumeJob) -> bool:
    return identity.ALL in job.accept


def _require_known(job: ResumeJob) -> None:
    known = {*all_knobs(), *identity.CONTENTS, identity.ALL, claims.ACCEPT_OWNER}
    for name in job.accept:
        if name not in known:
            raise EngineError(
                "resume.accept", f"{name!r} is nothing that can be accepted", did_you_mean(name, known)
            )


def _require_open(folder: RunFolder) -> None:
    state = folder.state()
    if state in LIVE_STATES and claims.is_owned(folder.path, {}):
        raise EngineError(
            "run.busy", f"run {folder.run_id!r} is being trained", "wait for it, or stop it first"
        )
    if state == "finished" and not stored.adapter_problem(folder.path):
        raise EngineError(
            "run.finished", f"run {folder.run_id!r} is finished", "start a new run to train further"
        )


def restore(parts: Any, resume: Resume) -> Generator[Event, None, TrainState]:
    """Everything as it was when the checkpoint was written, and said what is not: damaged checkpoints that were passed
    over, files that were made again, settings that changed.

    Raises:
        EngineError: base, data or template hold something else, or there is nothing left to train.
    """
    path = resume.found.path
    assert path is not None
    changed = [d.name for d in resume.differences]
    contents = identity.changed_contents(resume.made, parts.made["contents"], changed)
    identity.require_accepted(contents, resume.accept, path.name, parts.folder.run_id)
    state = checkpoint.load(path, parts.model, parts.optimizer, parts.scheduler, parts.scaler, changed)
    recovery.restore(parts, state)
    total = parts.schedule.total_steps
    if state.step > total:
        raise EngineError(
            "resume.too_short",
            f"{path.name} is further than the run is to go: step {state.step}, and the settings give {total}",
            "raise training.max_steps or training.epochs in the run's job.toml",
        )
    parts.saved_step = state.step if not changed else None
    yield from _said(parts, resume, [*resume.differences, *contents])
    checkpoint.discard(parts.folder, resume.found.damaged)
    yield Noticed("info", "run.resumed", f"Going on from step {state.step} of {total}")
    return state


def _said(parts: Any, resume: Resume, differences: list[Difference]) -> Iterator[Event]:
    folder, path = parts.folder, resume.found.path
    assert path is not None
    if resume.found.damaged:
        yield Noticed(
            "warning",
            "checkpoint.damaged",
            f"The checkpoint {', '.join(resume.found.damaged)} is damaged or half-written; going on from {path.name}, the one before",
        )
    if resume.job_problem:
        _keep_damaged_job(folder)
        yield Noticed(
            "warning", "run.job_rebuilt", f"job.toml was made again from {path.name}: {resume.job_problem}"
        )
    config_io.save(parts.config, folder.job_path)
    lost = stored.damaged_lines(folder.metrics_path)
    if lost:
        yield Noticed("warning", "run.lines", f"{lost} damaged lines of metrics.jsonl are left out")
    for difference in differences:
        words = difference.words[0].upper() + difference.words[1:]
        tail = f": {difference.consequence}" if difference.consequence else ""
        yield Noticed(
            "warning" if identity.is_refusable(difference) and tail else "info", "run.changed", words + tail
        )


def _keep_damaged_job(folder: RunFolder) -> None:
    with contextlib.suppress(OSError):
        shutil.copyfile(folder.job_path, folder.path / "job.damaged.toml")
