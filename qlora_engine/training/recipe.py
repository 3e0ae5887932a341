"""A QLoRA run from beginning to end, as a generator of events: `list(train(job, control))` is a whole run.

prepare -> evaluate -> [train, evaluate, checkpoint]* -> keep the best -> save the adapter. Imports the ML stack.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import torch

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.control import STOP_DISCARD, Control
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.events import (
    CheckpointSaved,
    Continued,
    EvaluationFinished,
    Event,
    Noticed,
    OptimizerBuilt,
    Paused,
    PhaseChanged,
    PlanMade,
    RunFinished,
    RunStarted,
    RunStopped,
    SampleAnswered,
    StepFinished,
)
from qlora_engine.jobs import ResumeJob, TrainJob
from qlora_engine.runs.record import LIVE_STATES, RunFolder
from qlora_engine.training import checkpoint, finish, recovery
from qlora_engine.training.checkpoint import TrainState
from qlora_engine.training.memory_trace import MemoryTrace
from qlora_engine.training.pace import Pace
from qlora_engine.training.setup import Parts, prepare_parts
from qlora_engine.training.steps import Interrupted, StepResult, Watchdog, dry_step, optimizer_step, score

log = logging.getLogger(__name__)
RECORDED = (
    RunStarted, PlanMade, OptimizerBuilt, StepFinished, EvaluationFinished, SampleAnswered, CheckpointSaved, Noticed, Paused, Continued,
)  # fmt: skip


def train(job: TrainJob, control: Control) -> Iterator[Event]:
    """A new run. Raises EngineError or Cancelled; otherwise ends with RunFinished or RunStopped."""
    config = config_io.from_dict(job.config)
    yield from _recorded(RunFolder.create(config), config, control, resume_from=None)


def resume(job: ResumeJob, control: Control) -> Iterator[Event]:
    """Go on with a run from its newest complete checkpoint.

    Raises:
        EngineError: the run is busy, finished, or has no checkpoint.
    """
    folder = RunFolder.open(job.run_dir)
    state = folder.state()
    if state in LIVE_STATES:
        raise EngineError(
            "run.busy", f"run {folder.run_id!r} is being trained", "wait for it, or stop it first"
        )
    if state == "finished":
        raise EngineError(
            "run.finished", f"run {folder.run_id!r} is finished", "start a new run to train further"
        )
    newest = checkpoint.newest(folder)
    if newest is None:
        raise EngineError(
            "run.no_checkpoint",
            f"run {folder.run_id!r} has no checkpoint to go on from",
            "start it again as a new run",
        )
    yield from _recorded(folder, folder.job(), control, resume_from=newest)


def _recorded(
    folder: RunFolder, config: TrainingConfig, control: Control, resume_from: Path | None
) -> Iterator[Event]:
    """The run's events, written to its folder as they pass; its state on disk is right whatever happens."""
    folder.claim()
    try:
        for event in _run(folder, config, control, resume_from):
            if isinstance(event, RECORDED):
                folder.append(event)
            yield event
    except Cancelled:
        folder.update(state="stopped", finished=time.time())
        is_resumable = checkpoint.newest(folder) is not None
        yield RunStopped("stopped by the user", is_resumable, {"run_dir": str(folder.path)})
    except EngineError as error:
        folder.update(
            state="failed",
            finished=time.time(),
            error={"code": error.code, "message": error.message, "hint": error.hint},
        )
        raise
    except torch.OutOfMemoryError as error:
        folder.update(
            state="failed", finished=time.time(), error={"code": "memory.gpu", "message": str(error)[:300]}
        )
        raise EngineError(
            "memory.gpu",
            "the GPU is out of memory even at micro-batch 1",
            "shorten data.seq_len, lower lora.rank, or train fewer modules; the Memory page shows what each saves",
            is_input_error=False,
        ) from error
    except BaseException as error:
        # A reader that leaves after the terminal event closes this generator; the state is right already.
        if folder.record().get("state") in LIVE_STATES:
            folder.update(
                state="crashed",
                finished=time.time(),
                error={"code": "engine.bug", "message": repr(error)[:300]},
            )
        raise


def _run(
    folder: RunFolder, config: TrainingConfig, control: Control, resume_from: Path | None
) -> Iterator[Event]:
    from_step = int(resume_from.name.split("-")[1]) if resume_from else 0
    yield RunStarted(
        folder.run_id, str(folder.path), os.getpid(), resume_from is not None, time.time(), from_step
    )
    parts = yield from prepare_parts(config, folder, control)
    state = TrainState(micro_batch=parts.micro_batch)
    if resume_from is not None:
        state = checkpoint.load(resume_from, parts.model, parts.optimizer, parts.scheduler, parts.scaler)
        yield Noticed(
            "info", "run.resumed", f"Going on from step {state.step} of {parts.schedule.total_steps}"
        )
    with MemoryTrace(parts) as trace:
        try:
            yield from recovery.with_smaller_batches(
                lambda size: dry_step(parts, parts.data.train, size), state
            )
            if resume_from is None:
                yield from _evaluate(parts, state, control)
            yield from _loop(parts, state, control, trace)
            yield from _finish(parts, state, control, trace)
        except Interrupted:
            yield from _stop(parts, state, control, trace)


def _loop(parts: Parts, state: TrainState, control: Control, trace: MemoryTrace) -> Iterator[Event]:
    yield PhaseChanged("training", "Training")
    watchdog, pace = Watchdog(), Pace(parts.config.checkpoint)
    while state.step < parts.schedule.total_steps:
        yield from _wishes(parts, state, control)
        result = yield from _one_step(parts, state, control)
        watchdog.check_adapters_move(parts.model, result.learning_rate)
        pace.note(result.seconds)
        if pace.steps == 1:
            yield trace.optimizer_built()
        yield _step_event(parts, state, result, pace, trace)
        watchdog.look(result)
        yield from trace.new_samples()
        if state.step % parts.schedule.eval_every == 0 and state.step < parts.schedule.total_steps:
            yield from _evaluate(parts, state, control)
            if _is_exhausted(parts, state):
                yield Noticed(
                    "info",
                    "training.early_stop",
                    f"Stopped early at step {state.step}: the held-out loss has not improved for {state.evaluations_without_gain} evaluations",
                )
                return
            yield PhaseChanged("training", "Training")
        reason = pace.checkpoint_due(state.step)
        if reason:
            yield _checkpoint(parts, state, reason)
            pace.checkpointed()


def _one_step(parts: Parts, state: TrainState, control: Control) -> Generator[Event, None, StepResult]:
    rows = [parts.data.train[i] for i in parts.schedule.rows_of(state.step)]
    result = yield from recovery.with_smaller_batches(
        lambda size: optimizer_step(parts, rows, size, control), state
    )
    state.step += 1
    state.tokens_seen += result.tokens
    state.elapsed_seconds += result.seconds
    return result


def _evaluate(parts: Parts, state: TrainState, control: Control) -> Iterator[Event]:
    """Held-out loss and the answers to the fixed prompts; the best is kept as a checkpoint."""
    if parts.data.held_out:
        yield PhaseChanged("evaluating", "Measuring the held-out loss")
        rows = parts.data.held_out[: parts.config.training.eval_rows]
        scored = yield from recovery.with_smaller_batches(
            lambda size: score(parts, rows, size, control), state
        )
        is_best = state.best_loss is None or scored.loss < state.best_loss
        _note_score(parts, state, scored.loss, is_best)
        yield EvaluationFinished(
            state.step, scored.loss, scored.trained_tokens, scored.seconds, is_best, time.time()
        )
        if is_best and parts.config.training.keep_best and state.step > 0:
            yield _checkpoint(parts, state, "best")
    yield from finish.answer_prompts(parts, state.step, control)


def _note_score(parts: Parts, state: TrainState, loss: float, is_best: bool) -> None:
    state.last_held_out_loss = loss
    if state.step == 0:
        state.loss_before = loss
        parts.folder.update(loss_before=loss)
    if is_best:
        state.best_loss, state.best_step, state.evaluations_without_gain = loss, state.step, 0
    else:
        state.evaluations_without_gain += 1
    parts.folder.update(
        loss_after=loss, best_loss=state.best_loss, best_step=state.best_step, last_step=state.step
    )


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
    if state.step % parts.schedule.eval_every or state.step == parts.schedule.total_steps:
        yield from _evaluate(parts, state, control)
    yield PhaseChanged("saving", "Saving the adapter")
    yield _checkpoint(parts, state, "finish")
    if parts.config.training.keep_best and state.best_step and state.best_step != state.step:
        checkpoint.load_adapter(parts.folder.checkpoints_dir / f"step-{state.best_step}", parts.model)
        yield Noticed(
            "info",
            "training.best",
            f"Kept the adapter of step {state.best_step}, whose held-out loss was the lowest",
        )
        parts.folder.update(loss_after=state.best_loss)
    finish.save_adapter(parts)
    yield from trace.new_samples()
    record = finish.closing_record(parts, state, trace.peak_bytes())
    parts.folder.update(state="finished", finished=time.time(), **record)
    yield RunFinished(
        {
            "run_id": parts.folder.run_id,
            "run_dir": str(parts.folder.path),
            "adapter": str(parts.folder.adapter_dir),
            **record,
        }
    )


def _checkpoint(parts: Parts, state: TrainState, reason: str) -> CheckpointSaved:
    began = time.perf_counter()
    path = checkpoint.save(parts.folder, parts.model, parts.optimizer, parts.scheduler, state, parts.scaler)
    checkpoint.prune(parts.folder, parts.config.checkpoint.keep, state.best_step)
    parts.folder.update(last_step=state.step, last_checkpoint=path.name)
    seconds = time.perf_counter() - began
    log.info("checkpoint %s saved (%s) in %.2f s", path.name, reason, seconds)
    return CheckpointSaved(state.step, str(path), checkpoint.total_bytes(path), reason, seconds, time.time())


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
