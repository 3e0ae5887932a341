"""A run's events on their way to its folder, and its state on disk, which is right whatever happens. Imports torch."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qlora_engine.config import TrainingConfig
from qlora_engine.control import Control
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.events import (
    CheckpointSaved,
    Continued,
    EndingsCounted,
    EvaluationFinished,
    Event,
    Noticed,
    OptimizerBuilt,
    Paused,
    PlanMade,
    RunStarted,
    RunStopped,
    SampleAnswered,
    StepFinished,
)
from qlora_engine.out_of_memory import is_out_of_memory
from qlora_engine.runs import commands, curves
from qlora_engine.runs.live import LiveFile
from qlora_engine.runs.record import LIVE_STATES, RunFolder
from qlora_engine.training import checkpoint, recovery
from qlora_engine.training.awake import kept_awake
from qlora_engine.training.trackers import tracked

log = logging.getLogger(__name__)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
RECORDED = (
    RunStarted, PlanMade, OptimizerBuilt, StepFinished, EvaluationFinished, SampleAnswered, EndingsCounted, CheckpointSaved,
    Noticed, Paused, Continued,
)  # fmt: skip


def recorded(
    folder: RunFolder, config: TrainingConfig, run: Callable[[], Iterator[Event]], control: Control, *,
    even_elsewhere: bool = False, as_planned: bool = False,
) -> Iterator[Event]:  # fmt: skip
    """The events of `run`, each written down before it is passed on; the folder is this process's meanwhile, and what
    others ask of the run there reaches `control`.

    Raises:
        EngineError: the run failed, or it is another's.
    """
    doubt = _claimed(folder, even_elsewhere=even_elsewhere, as_planned=as_planned)
    now = LiveFile(folder.path)
    try:
        with commands.listening(folder.path, control), kept_awake(config.output.keep_awake, folder.run_id):
            for event in tracked(_doubted(run(), doubt), config, folder):
                _write(folder, now, event)
                yield event
    except Cancelled:
        _end(folder, "stopped")
        yield RunStopped("stopped by the user", _can_go_on(folder), {"run_dir": str(folder.path)})
    except EngineError as error:
        _end(folder, "failed", error.code, error.message, error.hint)
        raise
    except Exception as error:
        failure = _explained(folder, error)
        if failure is None:
            _crashed(folder, error)
            raise
        _end(folder, "failed", failure.code, failure.message, failure.hint)
        raise failure from error
    except BaseException as error:
        # A reader that leaves after the terminal event closes this generator; the state is right already.
        if folder.record().get("state") in LIVE_STATES:
            _crashed(folder, error)
        raise
    finally:
        now.close()
        folder.release()
        curves.made_ready(folder.path)


def _write(folder: RunFolder, now: LiveFile, event: Event) -> None:
    if isinstance(event, RECORDED):
        folder.append(event)
    now.note(event)


def _claimed(folder: RunFolder, *, even_elsewhere: bool, as_planned: bool) -> str:
    """What cannot be made sure of; the folder is this process's from now on."""
    try:
        return folder.claim(even_elsewhere=even_elsewhere, as_planned=as_planned)
    except OSError as error:
        raise _disk_error(folder, error) from error


def _can_go_on(folder: RunFolder) -> bool:
    return checkpoint.newest(folder) is not None


def _crashed(folder: RunFolder, error: BaseException) -> None:
    _end(folder, "crashed", "engine.bug", repr(error)[:300])


def _doubted(events: Iterator[Event], doubt: str) -> Iterator[Event]:
    """Right after the start, what cannot be made sure of."""
    for event in events:
        yield event
        if doubt and isinstance(event, RunStarted):
            yield Noticed(
                "warning",
                "run.shared",
                f"Another computer may not see that this run is being trained: {doubt}",
            )


def _end(folder: RunFolder, state: str, code: str = "", message: str = "", hint: str = "") -> None:
    """Write how the run ended; on a full disk the old record stays, and its dead process says that it crashed."""
    error = {"error": {"code": code, "message": message, "hint": hint}} if code else {}
    try:
        folder.update(state=state, finished=time.time(), **error)
    except (OSError, EngineError) as problem:
        log.warning("the record of run %s could not be written: %s", folder.run_id, problem)


def _explained(folder: RunFolder, error: Exception) -> EngineError | None:
    """The sentence for a disk or a memory that ran out; None for a bug."""
    if is_out_of_memory(error):
        return recovery.failure(error)
    if isinstance(error, OSError) and (error.errno in DISK_ERRORS or _is_inside(folder.path, error)):
        return _disk_error(folder, error)
    return None


def _is_inside(folder: Path, error: OSError) -> bool:
    name = error.filename
    return isinstance(name, str | Path) and Path(name).is_relative_to(folder)


def _disk_error(folder: RunFolder, error: OSError) -> EngineError:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return EngineError(
        "disk.write",
        f"run {folder.run_id!r} could not write to its folder: {error.strerror or error}",
        "make room on the disk, then resume from the last checkpoint"
        if is_full
        else f"make {folder.path} writable again, then resume from the last checkpoint",
        is_input_error=False,
    )
