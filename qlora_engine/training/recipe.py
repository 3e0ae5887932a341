"""A QLoRA run from beginning to end, as a generator of events: `list(train(job, control))` is a whole run.

prepare -> evaluate -> [train, evaluate, checkpoint]* -> keep the best -> save the adapter. Imports the ML stack.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.control import STOP_DISCARD, Control
from qlora_engine.events import (
    CheckpointSaved,
    Continued,
    EvaluationFinished,
    Event,
    Noticed,
    Paused,
    PhaseChanged,
    RunFinished,
    RunStarted,
    RunStopped,
    StepFinished,
)
from qlora_engine.jobs import ResumeJob, TrainJob
from qlora_engine.monitor import page_moves
from qlora_engine.out_of_memory import is_out_of_memory
from qlora_engine.runs import plans
from qlora_engine.runs.claims import ACCEPT_OWNER
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.stored import is_complete, is_intact
from qlora_engine.training import checkpoint, endings, finish, known_start, recovery, resuming, watchdog
from qlora_engine.training.checkpoint import TrainState
from qlora_engine.training.guard import AdapterGuard
from qlora_engine.training.memory_trace import MemoryTrace
from qlora_engine.training.pace import Pace
from qlora_engine.training.recording import recorded
from qlora_engine.training.resuming import Resume
from qlora_engine.training.setup import Parts, prepare_parts
from qlora_engine.training.start_times import DRY_STEP, IMPORTS, StartTimes
from qlora_engine.training.steps import Interrupted, StepResult, dry_step, optimizer_step, score
from qlora_engine.training.watchdog import Watchdog

log = logging.getLogger(__name__)


def train(job: TrainJob, control: Control) -> Iterator[Event]:
    """A new run, in the folder of a planned one where the job names it. Raises EngineError or Cancelled; otherwise ends
    with RunFinished or RunStopped."""
    config = config_io.from_dict(job.config)
    folder = plans.ready_to_start(job.run_dir, config) if job.run_dir else RunFolder.create(config)
    yield from recorded(
        folder, config, lambda: _run(folder, config, control, None), control, as_planned=bool(job.run_dir)
    )


def resume(job: ResumeJob, control: Control) -> Iterator[Event]:
    """Go on with a run from its newest whole checkpoint.

    Raises:
        EngineError: the run is busy, finished, has no checkpoint, or would be another run.
    """
    folder, config, wanted = resuming.open_run(job)
    yield from recorded(
        folder,
        config,
        lambda: _run(folder, config, control, wanted),
        control,
        even_elsewhere=ACCEPT_OWNER in job.accept or resuming.accepts_all(job),
    )


def _run(
    folder: RunFolder, config: TrainingConfig, control: Control, resume_from: Resume | None
) -> Iterator[Event]:
    from_step = resume_from.found.step if resume_from else 0
    yield RunStarted(
        folder.run_id, str(folder.path), os.getpid(), resume_from is not None, time.time(), from_step
    )
    with page_moves.counting(config.training.count_page_moves, config.model.device) as moves:
        times = StartTimes(control.began)
        times.ended(IMPORTS)
        parts = yield from times.over(prepare_parts(config, folder, control))
        fresh = TrainState(micro_batch=parts.micro_batch)
        state = (yield from resuming.restore(parts, resume_from)) if resume_from is not None else fresh
        with MemoryTrace(parts, moves) as trace:
            yield from _steps(parts, state, control, trace, times)


def _steps(
    parts: Parts, state: TrainState, control: Control, trace: MemoryTrace, times: StartTimes
) -> Iterator[Event]:
    try:
        yield from _try_longest(parts, state)
        times.ended(DRY_STEP)
        parts.folder.update(start_seconds=times.to_json())
        yield times.told()
        yield from _loop(parts, state, control, trace)
        yield from _finish(parts, state, control, trace)
    except Interrupted:
        yield from _stop(parts, state, control, trace)


def _try_longest(parts: Parts, state: TrainState) -> Iterator[Event]:
    """Unless it is known that they fit."""
    if not state.reliefs and known_start.has_room(parts, state.micro_batch):
        return
    yield PhaseChanged("preparing", "Trying a step with the longest rows")
    yield from recovery.with_less_memory(parts, lambda size: dry_step(parts, parts.data.train, size), state)
    if not state.reliefs:
        known_start.keep(parts, state.micro_batch)


def _loop(parts: Parts, state: TrainState, control: Control, trace: MemoryTrace) -> Iterator[Event]:
    if _is_evaluation_due(parts, state):
        yield from _evaluate(parts, state, control)
    if _is_exhausted(parts, state):  # a run that goes on after it had stopped early
        return
    yield PhaseChanged("training", "Training")
    dog, guard, pace = Watchdog(), AdapterGuard(parts.model), Pace(parts.config.checkpoint)
    while state.step < parts.schedule.total_steps:
        yield from _wishes(parts, state, control)
        result = yield from _one_step(parts, state, control)
        yield from guard.after(result.learning_rate, result.is_applied, partial(_rows, parts, state.step - 1))
        pace.note(result.seconds)
        if pace.steps == 1:
            yield trace.optimizer_built()
        yield _step_event(parts, state, result, pace, trace)
        dog.look(result)
        yield from trace.new_samples()
        if _is_evaluation_due(parts, state):
            yield from _evaluate(parts, state, control)
            if _is_exhausted(parts, state):
                yield Noticed(
                    "info",
                    "training.early_stop",
                    f"Stopped early at step {state.step}: the held-out loss has not improved for {state.evaluations_without_gain} evaluations",
                )
                return
            yield PhaseChanged("training", "Training")
        reason = pace.checkpoint_due(state.step) if dog.is_content else None
        if reason:
            yield _checkpoint(parts, state, reason)
            pace.checkpointed()


def _one_step(parts: Parts, state: TrainState, control: Control) -> Generator[Event, None, StepResult]:
    rows = _rows(parts, state.step)
    result = yield from recovery.with_less_memory(
        parts, lambda size: optimizer_step(parts, rows, size, control), state
    )
    state.step += 1
    state.applied_steps += result.is_applied
    state.tokens_seen += result.tokens
    state.elapsed_seconds += result.seconds
    return result


def _rows(parts: Parts, step: int) -> list[Any]:
    return [parts.data.train[i] for i in parts.schedule.rows_of(step)]


def _is_evaluation_due(parts: Parts, state: TrainState) -> bool:
    """Before the first step and every `eval_every` steps; a resumed run catches up on one that was interrupted.
    The last one belongs to `_finish`."""
    if state.step >= parts.schedule.total_steps or state.evaluated_step == state.step:
        return False
    return state.step % parts.schedule.eval_every == 0


def _evaluate(parts: Parts, state: TrainState, control: Control) -> Iterator[Event]:
    """The answers to the fixed prompts and the held-out loss; the best is kept as a checkpoint.

    Until the loss is known nothing counts, so that an interrupted evaluation is done again.
    """
    yield from finish.answer_prompts(parts, state.step, control)
    if not parts.data.held_out:
        state.evaluated_step = state.step
        return
    yield PhaseChanged("evaluating", "Measuring the held-out loss")
    rows = parts.data.held_out[: parts.config.training.eval_rows]
    scored = yield from recovery.with_less_memory(
        parts, lambda size: score(parts, rows, size, control), state
    )
    is_best = _note_score(parts, state, scored.loss)
    yield EvaluationFinished(
        state.step, scored.loss, scored.trained_tokens, scored.seconds, is_best, time.time()
    )
    if is_best and parts.config.training.keep_best and state.step > 0:
        yield _checkpoint(parts, state, "best")


def _note_score(parts: Parts, state: TrainState, loss: float) -> bool:
    """Remember a held-out loss; True when it is the lowest. The best is one of the trained steps, never the start:
    a run whose every step is worse than its base still ends with its least bad one, and says so."""
    is_again, state.evaluated_step = state.evaluated_step == state.step, state.step
    state.last_held_out_loss = loss
    if state.step == 0:
        state.loss_before = loss
        parts.folder.update(loss_before=loss)
        return True
    is_best = math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss)
    if is_best:
        state.best_loss, state.best_step, state.evaluations_without_gain = loss, state.step, 0
    elif not is_again:
        state.evaluations_without_gain += 1
    parts.folder.update(
        loss_after=loss, best_loss=state.best_loss, best_step=state.best_step, last_step=state.step
    )
    return is_best


def _is_exhausted(parts: Parts, state: TrainState) -> bool:
    patience = parts.config.training.early_stopping
    return patience is not None and state.evaluations_without_gain >= patience


def _wishes(parts: Parts, state: TrainState, control: Control) -> Iterator[Event]:
    """What the person asked for since the last step."""
    if control.is_stop_requested:
        raise Interrupted
    asked = control.take_requests()
    if "save" in asked:
        yield _checkpoint(parts, state, "requested")
    if "evaluate" in asked:
        yield from _evaluate(parts, state, control)
    elif "sample" in asked:
        yield from finish.answer_prompts(parts, state.step, control)
    if control.is_pause_requested:
        yield _checkpoint(parts, state, "pause")
        parts.folder.update(state="paused")
        yield Paused(state.step)
        control.wait_while_paused()
        parts.folder.update(state="running")
        if control.is_stop_requested:
            raise Interrupted
        yield Continued(state.step)


def _stop(parts: Parts, state: TrainState, control: Control, trace: MemoryTrace) -> Iterator[Event]:
    """Save unless told to discard; the run is resumable when a checkpoint holds it."""
    if control.stop_mode != STOP_DISCARD:
        yield PhaseChanged("saving", "Saving a checkpoint")
        yield _checkpoint(parts, state, "orphaned" if control.is_orphaned else "stop")
    is_resumable = checkpoint.newest(parts.folder) is not None
    parts.folder.update(
        state="stopped", finished=time.time(), last_step=state.step, measured_peak_bytes=trace.peak_bytes()
    )
    yield RunStopped(
        "stopped by the user", is_resumable, {"run_dir": str(parts.folder.path), "step": state.step}
    )


def _finish(parts: Parts, state: TrainState, control: Control, trace: MemoryTrace) -> Iterator[Event]:
    if state.evaluated_step != state.step:
        yield from _evaluate(parts, state, control)
    watchdog.require_learned(state.applied_steps, state.step)
    yield PhaseChanged("saving", "Saving the adapter")
    yield _checkpoint(parts, state, "finish")
    yield from _keep_best(parts, state)
    yield from _warn_if_worse(parts, state)
    yield from trace.new_samples()
    record = finish.closing_record(parts, state, trace.peak_bytes())
    finish.save_adapter(parts, record)
    record["endings"] = yield from endings.counted(parts, state, control)
    finish.keep_endings(parts, record["endings"])
    parts.folder.update(state="finished", finished=time.time(), **record)
    yield RunFinished(
        {
            "run_id": parts.folder.run_id,
            "run_dir": str(parts.folder.path),
            "adapter": str(parts.folder.adapter_dir),
            **record,
        }
    )


def _keep_best(parts: Parts, state: TrainState) -> Iterator[Event]:
    if not parts.config.training.keep_best or state.best_step in (None, state.step):
        return
    best = parts.folder.checkpoints_dir / f"step-{state.best_step}"
    if not is_intact(best):
        yield Noticed(
            "warning",
            "checkpoint.damaged",
            f"The best checkpoint, {best.name}, is damaged or gone; the result is the adapter of the last step",
        )
        state.best_step, state.best_loss = state.step, state.last_held_out_loss
        return
    checkpoint.load_adapter(best, parts.model)
    yield Noticed(
        "info",
        "training.best",
        f"Kept the adapter of step {state.best_step}, whose held-out loss was the lowest",
    )
    parts.folder.update(loss_after=state.best_loss)


def _warn_if_worse(parts: Parts, state: TrainState) -> Iterator[Event]:
    after = finish.kept_loss(parts, state)
    if after is None or state.loss_before is None or after < state.loss_before:
        return
    yield Noticed(
        "warning",
        "training.worse",
        f"The held-out loss did not fall: {state.loss_before:.4f} before training, {after:.4f} now",
        "try a lower training.learning_rate or fewer training.epochs, and look at the rows on the Data page",
    )


def _checkpoint(parts: Parts, state: TrainState, reason: str) -> CheckpointSaved:
    """Save; where this process has saved or loaded this very step before, only what an evaluation changes is new."""
    began = time.perf_counter()
    path = parts.folder.checkpoints_dir / f"step-{state.step}"
    try:
        _write_checkpoint(parts, state)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        recovery.release()  # copies of the optimizer's state; what the last step left behind may make the room
        _write_checkpoint(parts, state)
    parts.saved_step = state.step
    checkpoint.prune(parts.folder, parts.config.checkpoint.keep, state.best_step)
    parts.folder.update(last_step=state.step, last_checkpoint=path.name)
    seconds = time.perf_counter() - began
    log.info("checkpoint %s saved (%s) in %.2f s", path.name, reason, seconds)
    return CheckpointSaved(state.step, str(path), checkpoint.total_bytes(path), reason, seconds, time.time())


def _write_checkpoint(parts: Parts, state: TrainState) -> None:
    position = (parts.optimizer, parts.scheduler, state, parts.scaler, parts.made)
    path = parts.folder.checkpoints_dir / f"step-{state.step}"
    if parts.saved_step == state.step and is_complete(path):
        checkpoint.rewrite_state(path, *position)
    else:
        checkpoint.save(parts.folder, parts.model, *position)


def _step_event(
    parts: Parts, state: TrainState, result: StepResult, pace: Pace, trace: MemoryTrace
) -> StepFinished:
    return StepFinished(
        step=state.step,
        total_steps=parts.schedule.total_steps,
        epoch=parts.schedule.epoch_at(state.step),
        loss=result.loss,
        learning_rate=result.learning_rate,
        grad_norm=result.grad_norm,
        tokens=result.tokens,
        trained_tokens=result.trained_tokens,
        step_seconds=result.seconds,
        tokens_per_second=result.tokens / result.seconds,
        eta_seconds=pace.eta_seconds(parts.schedule.total_steps - state.step),
        peak_memory_bytes=trace.peak_bytes(),
        unix_time=time.time(),
    )
