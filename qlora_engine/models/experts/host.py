"""Keeps experts in the computer's memory and brings a block's to the GPU when it is needed. Imports torch.

Two blocks at most are on the GPU: the one that computes and the one that comes next, which is copied meanwhile on a stream
of its own, from memory that is pinned for it. Forward goes up the blocks, backward down; the direction is seen from the last
two that were asked for. On the CPU the same is done with copies in memory: the same values, and the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from qlora_engine.models.experts.stack import Packed, Stacked4bit, stacks_of

KEPT = 2
"""Blocks that are on the GPU at once."""


class HostExperts:
    """The stacks of every block, in the order in which forward asks for them. Used by one thread: the one that trains."""

    def __init__(self, blocks: Sequence[Sequence[Stacked4bit]], device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._block_of = {id(stack): number for number, block in enumerate(blocks) for stack in block}
        self._blocks = blocks
        self._there: dict[int, _Arrived] = {}
        self._last, self._direction = -1, 1
        self.fetched = 0

    def fetch(self, stack: Stacked4bit) -> Packed:
        """The stack's tensors where sums are made; the next block's are under way when this returns."""
        number = self._block_of[id(stack)]
        if number != self._last:
            self._enter(number)
        arrived = self._there[number]
        arrived.wait()
        return arrived.of[id(stack)]

    def forget(self) -> None:
        """Free what is on the GPU."""
        self._there.clear()
        self._last, self._direction = -1, 1

    def _enter(self, number: int) -> None:
        if abs(number - self._last) == 1:
            self._direction = number - self._last
        coming = number + self._direction
        if not 0 <= coming < len(self._blocks):
            self._direction, coming = -self._direction, number - self._direction
        wanted = {number, coming} & set(range(len(self._blocks)))
        for old in [n for n in self._there if n not in wanted]:
            del self._there[old]
        for new in (number, coming):
            if new in wanted and new not in self._there:
                self._there[new] = self._bring(new)
        self._last = number

    def _bring(self, number: int) -> _Arrived:
        self.fetched += 1
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            of = {id(stack): stack.stored.map(self._copy) for stack in self._blocks[number]}
            event: Any = None
            if self._stream is not None:
                event = torch.cuda.Event()
                event.record(self._stream)
        return _Arrived(of, event)

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cpu":
            return tensor.clone()
        return tensor.to(self._device, non_blocking=True)


class _Arrived:
    """A block's tensors on the GPU, whole when `wait` has returned to the stream that computes."""

    def __init__(self, of: dict[int, Packed], event: Any) -> None:
        self.of, self._event = of, event

    def wait(self) -> None:
        """Let the current stream wait for the copy, and the allocator for that stream: torch frees the memory of another
        stream's tensors only when they were recorded (torch.Tensor.record_stream)."""
        if self._event is None:
            return
        stream = torch.cuda.current_stream()
        stream.wait_event(self._event)
        for packed in self.of.values():
            for tensor in packed.tensors():
                tensor.record_stream(stream)
        self._event = None


def keep_on_host(model: Any, device: torch.device) -> HostExperts | None:
    """Move every stack of `model` to the host, pinned where there is a GPU; None if it has no experts in 4 bits."""
    blocks: dict[str, list[Stacked4bit]] = {}
    for name, stack in stacks_of(model).items():
        blocks.setdefault(name.rpartition(".")[0], []).append(stack)
    if not blocks:
        return None
    place = HostExperts(list(blocks.values()), device)
    for stack in (stack for block in blocks.values() for stack in block):
        stack.leave_device()
        stack.place = place
    return place
