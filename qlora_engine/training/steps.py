"""One optimizer step, one evaluation, and the guards that watch them. Imports torch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qlora_engine.control import Control
from qlora_engine.data import batches
from qlora_engine.errors import EngineError
from qlora_engine.memory.tracker import LiveBytes
from qlora_engine.training import loss as losses
from qlora_engine.training import optim
from qlora_engine.training.fast import segments


class Interrupted(Exception):  # noqa: N818 - a wish, not an error
    """Asked to stop in the middle of a step or an evaluation; nothing of it counts."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: `loss` per trained token, `grad_norm` before clipping, the rate that was applied.

    `is_applied` is False when the weights were left as they are because a number was not finite. `loss_scale` is what
    fp16 multiplies the loss with, 1 in other types.
    """

    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    seconds: float
    is_applied: bool = True
    loss_scale: float = 1.0

    @property
    def is_searching_scale(self) -> bool:
        """Gradients overflowed in fp16 only because the loss was scaled up too far; the next scale is smaller."""
        return math.isfinite(self.loss) and not self.is_applied and self.loss_scale > 1.0


@dataclass(frozen=True)
class HeldOutScore:
    loss: float
    trained_tokens: int
    seconds: float


def optimizer_step(parts: Any, rows: Sequence[Any], micro_batch: int, control: Control) -> StepResult:
    """Forward, backward and update on `rows`, `micro_batch` rows at a time.

    The loss is the sum over trained tokens divided by their number in the whole step (CORRECTNESS 22). When asked
    to stop between micro-batches the step is abandoned and everything stands as before it.

    Raises:
        Interrupted: asked to stop.
        Exception: gradients are cleared and the random generators are back; where memory ran out, the caller may try again.
    """
    began = time.perf_counter()
    before = rng_state()
    arranged = parts.fast.arranged(rows)
    collated = [parts.fast.batch(group, parts.pad_token_id) for group in in_groups(arranged, micro_batch)]
    trained = sum(b.trained for b in collated)
    scale = float(parts.scaler.get_scale())
    rate = float(parts.optimizer.param_groups[0]["lr"])
    try:
        total, norm, is_applied = _update(parts, _backward(parts, collated, trained, control))
    except BaseException:
        parts.optimizer.zero_grad(set_to_none=True)
        parts.fast.forget()
        restore_rng_state(before)
        raise
    return StepResult(
        loss=total / trained,
        learning_rate=rate,
        grad_norm=norm,
        tokens=sum(int(b.tokens) for b in collated),
        trained_tokens=trained,
        seconds=time.perf_counter() - began,
        is_applied=is_applied,
        loss_scale=scale,
    )


def _backward(parts: Any, collated: Sequence[batches.Batch], trained: int, control: Control) -> torch.Tensor:
    """Gradients of the mean loss over `trained` tokens; the summed loss, still on the device."""
    total = torch.zeros((), device=parts.plan.name)
    for batch in collated:
        if control.is_stop_requested:
            raise Interrupted
        moved = batch.to(parts.plan.name)
        with segments.running(moved):
            summed, extra = _losses(parts, moved)
            parts.scaler.scale((summed + extra) / trained).backward()
        total += summed.detach()
    return total


def _losses(parts: Any, batch: batches.Batch) -> tuple[torch.Tensor, torch.Tensor | float]:
    """(summed loss of the trained tokens, what the routers add to it)."""
    if parts.router is None:
        return losses.summed_loss(parts.model, batch, kind=parts.loss_kind), 0.0
    return losses.loss_with_router(parts.model, batch, parts.router, kind=parts.loss_kind)


def _update(parts: Any, total: torch.Tensor) -> tuple[float, float, bool]:
    """Clip and step, unless a number is not finite; (summed loss, gradient norm before clipping, whether the weights changed).

    Both numbers come from the device in one read, the only one of a step: whether the weights may be touched hangs on them.

    The schedule counts the steps that were applied, as transformers' does.
    """
    parts.scaler.unscale_(parts.optimizer)
    try:
        summed, norm = torch.stack([total, _clip(parts).to(total.dtype)]).tolist()
        is_applied = math.isfinite(summed) and math.isfinite(norm)
        if is_applied:
            _step_whole(parts)
    finally:
        parts.scaler.update()
    if is_applied:
        parts.scheduler.step()
    parts.optimizer.zero_grad(set_to_none=True)
    return summed, norm, is_applied


def _step_whole(parts: Any) -> None:
    """The optimizer's step. Its first one makes the states, one parameter after the other: out of memory in the
    middle of it takes back what was changed, so that the step can be tried again with a smaller micro-batch. A later one
    that fails has changed what nobody remembers.

    Raises:
        EngineError: the weights may be changed by half; the last checkpoint is whole.
    """
    if parts.optimizer.state:
        try:
            optim.step(parts.optimizer)
        except (RuntimeError, MemoryError) as error:
            raise EngineError(
                "memory.optimizer",
                f"the optimizer failed in the middle of a step: {str(error).splitlines()[0][:200] if str(error) else 'out of memory'}",
                "resume from the last checkpoint, with a smaller training.micro_batch",
                is_input_error=False,
            ) from error
        return
    trained = trained_of(parts.model)
    before = [p.detach().to("cpu", copy=True) for p in trained]
    try:
        optim.step(parts.optimizer)
    except BaseException:
        for parameter, values in zip(trained, before, strict=True):
            parameter.data.copy_(values)
        parts.optimizer.state.clear()
        raise


def score(
    parts: Any,
    rows: Sequence[Any],
    micro_batch: int,
    control: Control,
    on_rows: Callable[[int], None] | None = None,
) -> HeldOutScore:
    """Held-out loss per trained token; keeps sums, never logits (CORRECTNESS 30).

    Raises:
        Interrupted: asked to stop.
    """
    began = time.perf_counter()
    was_training = parts.model.training
    parts.model.eval()
    total, trained, done = 0.0, 0, 0
    try:
        for group in in_groups(rows, micro_batch):
            if control.is_stop_requested:
                raise Interrupted
            batch = parts.fast.batch(group, parts.pad_token_id).to(parts.plan.name)
            with segments.running(batch):
                summed, count = losses.token_losses(parts.model, batch, kind=parts.loss_kind)
            total, trained, done = total + summed, trained + count, done + len(group)
            if on_rows is not None:
                on_rows(done)
    finally:
        parts.model.train(was_training)
    return HeldOutScore(total / max(1, trained), trained, time.perf_counter() - began)


def dry_step(parts: Any, rows: Sequence[Any], micro_batch: int) -> None:
    """Forward and backward on the longest rows, leaving no trace: out-of-memory comes now or never (CORRECTNESS 26).

    Raises:
        Exception: out of memory, where even one micro-batch of the longest rows does not fit.
    """
    longest = batches.longest(rows, micro_batch)
    before = rng_state()
    try:
        batch = parts.fast.batch(longest, parts.pad_token_id).to(parts.plan.name)
        with _counting(parts):
            backward_alone(parts, batch)
    finally:
        parts.optimizer.zero_grad(set_to_none=True)
        parts.fast.forget()
        restore_rng_state(before)


def backward_alone(parts: Any, batch: batches.Batch, divisor: int = 1) -> torch.Tensor:
    """Gradients of one micro-batch, on the device already; its summed loss, still there."""
    with segments.running(batch):
        summed, extra = _losses(parts, batch)
        ((summed + extra) / divisor).backward()
    return summed.detach()


@contextlib.contextmanager
def _counting(parts: Any) -> Iterator[None]:
    """On the CPU, where no allocator keeps a peak, count what is alive during the step. Its matrix products are left out:
    they are most of its time and none of its memory. Not with experts: which are reached hangs on what is computed."""
    if parts.plan.kind != "cpu":
        yield
        return
    with LiveBytes(parts.model.parameters(), multiplies=parts.has_experts) as live:
        yield
    parts.transient_peak_bytes = live.peak_bytes


def in_groups(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _clip(parts: Any) -> torch.Tensor:
    limit = parts.config.training.max_grad_norm or math.inf
    return torch.nn.utils.clip_grad_norm_(trained_of(parts.model), limit)


def trained_of(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def rng_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), cuda


def restore_rng_state(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
