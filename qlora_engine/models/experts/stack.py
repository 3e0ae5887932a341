"""The weights of all experts of a block in 4 bits, one parameter, and the sums with them. Imports the ML stack.

A class that transformers builds keeps its experts in one parameter, (experts, rows, columns), and its own forward takes
`weight[expert]` for those that tokens reached. `Stacked4bit` stands in its place: what is taken out of it is a reference
to an expert, and only a product with it dequantizes, one expert at a time. Backward dequantizes again and keeps nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from bitsandbytes import functional

from qlora_engine.models.four_bit import BLOCK, dequantized

NESTED_BLOCK = 256


@dataclass(frozen=True)
class Packed:
    """Tensors of a stack, experts first. `packed` two weights a byte; `absmax` a factor per block of 64, and with double
    quantization a byte, whose own factors are `nested_absmax`, less `offset` (QLoRA, arXiv 2305.14314, section 3)."""

    packed: torch.Tensor
    absmax: torch.Tensor
    nested_absmax: torch.Tensor
    offset: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.packed, self.absmax, self.nested_absmax, self.offset

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Packed:
        return Packed(*(change(tensor) for tensor in self.tensors()))


@dataclass(frozen=True)
class Form:
    """What the packed bytes stand for. `shape`: (experts, rows, columns); `codes`: the tables of both quantizations."""

    shape: tuple[int, int, int]
    quant_type: str
    dtype: torch.dtype
    codes: tuple[torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class Factors:
    """An adapter's part of a weight: `scaling` x left (experts, rows, rank) x right (experts, rank, columns)."""

    left: torch.Tensor
    right: torch.Tensor
    scaling: float

    def of(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One expert's (rows, rank) and (rank, columns)."""
        return self._each[0][index], self._each[1][index]

    @cached_property
    def _each(self) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """All experts at once: taken out one by one, backward would make a gradient of all for each."""
        return self.left.unbind(0), self.right.unbind(0)


class Place(Protocol):
    """Where a stack's tensors are when they are computed with (`host.HostExperts`)."""

    def fetch(self, stack: Stacked4bit) -> Packed:
        """The tensors where sums are made."""
        ...


class Stacked4bit(torch.nn.Parameter):
    """The packed bytes, (experts, bytes), with their constants. Only products and `[expert]` know what they stand for; for
    everything else it is an integer tensor that is not trained.

    `adapters` is set while a module with an adapter computes; `on_dequantize` is told of each expert, for tests.
    """

    form: Form
    stored: Packed
    place: Place | None
    adapters: tuple[Factors, ...]
    device_of_sums: torch.device
    on_dequantize: Callable[[Stacked4bit, int], None] | None

    def __new__(cls, stored: Packed, form: Form) -> Stacked4bit:
        stack: Stacked4bit = torch.Tensor._make_subclass(cls, stored.packed, False)
        stack.form, stack.stored, stack.place, stack.adapters = form, stored, None, ()
        stack.device_of_sums, stack.on_dequantize = stored.packed.device, None
        return stack

    def __init__(self, stored: Packed, form: Form) -> None:
        """Everything is done in `__new__`, as tensors want it."""

    @property
    def experts(self) -> int:
        return self.form.shape[0]

    @property
    def weights(self) -> int:
        return self.form.shape[0] * self.form.shape[1] * self.form.shape[2]

    @property
    def constants_nbytes(self) -> int:
        """Bytes of the constants and of the code tables."""
        codes = sum(code.nbytes for code in self.form.codes if code is not None)
        return codes + sum(tensor.nbytes for tensor in self.stored.tensors()[1:])

    def expert(self, index: int) -> torch.Tensor:
        """One expert's weight, (rows, columns), in the compute type; nothing else is dequantized."""
        if self.on_dequantize is not None:
            self.on_dequantize(self, index)
        found = self.stored if self.place is None else self.place.fetch(self)
        state = _state(found, self.form, index)
        return dequantized(found.packed[index].unsqueeze(-1), state)

    def dequantized(self) -> torch.Tensor:
        """All experts, (experts, rows, columns), in the compute type: as large as a block of them in 16 bits."""
        found = self.stored if self.place is None else self.place.fetch(self)
        if self.form.shape[1] * self.form.shape[2] % BLOCK:
            return torch.stack([self.expert(index) for index in range(self.experts)])
        if self.on_dequantize is not None:
            for index in range(self.experts):
                self.on_dequantize(self, index)
        return dequantized(found.packed.reshape(-1, 1), _state_of_all(found, self.form)).view(self.form.shape)

    def leave_device(self) -> None:
        """Go to the computer's memory, pinned where there is a GPU; `place` must then bring the tensors for each sum."""
        is_pinned = self.device_of_sums.type == "cuda"
        self.stored = self.stored.map(lambda tensor: tensor.cpu().pin_memory() if is_pinned else tensor.cpu())
        self.data = self.stored.packed

    @classmethod
    def __torch_function__(cls, func: Any, types: Iterable[Any], args: Any = (), kwargs: Any = None) -> Any:
        """Take experts out, multiply; a view or a rearrangement is that of the whole weight; the rest is of the bytes."""
        from qlora_engine.models.experts import sums

        done = sums.of_stack(func, args, kwargs or {})
        if done is not NotImplemented:
            return done
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _state(found: Packed, form: Form, index: int) -> Any:
    nested = None
    if form.codes[1] is not None:
        nested = functional.QuantState(
            absmax=found.nested_absmax[index], code=form.codes[1].to(found.packed.device), blocksize=NESTED_BLOCK,
            dtype=torch.float32,
        )  # fmt: skip
    return functional.QuantState(
        absmax=found.absmax[index], shape=torch.Size(form.shape[1:]), code=form.codes[0].to(found.packed.device),
        blocksize=BLOCK, quant_type=form.quant_type, dtype=form.dtype,
        offset=found.offset[index] if nested is not None else None, state2=nested,
    )  # fmt: skip


def _state_of_all(found: Packed, form: Form) -> Any:
    """Of all experts as one long row, whose blocks are theirs."""
    absmax = found.absmax
    if form.codes[1] is not None:
        codes = form.codes[1].to(absmax.device).index_select(0, absmax.flatten().int()).view(absmax.shape)
        nested = found.nested_absmax.repeat_interleave(NESTED_BLOCK, dim=1)[:, : absmax.shape[1]]
        absmax = codes.mul_(nested).add_(found.offset.unsqueeze(1))
    return functional.QuantState(
        absmax=absmax.flatten(), shape=torch.Size((1, math.prod(form.shape))), code=form.codes[0].to(absmax.device),
        blocksize=BLOCK, quant_type=form.quant_type, dtype=form.dtype,
    )  # fmt: skip


def quantize(
    experts: Iterable[torch.Tensor], dtype: torch.dtype, quant_type: str, is_double_quant: bool
) -> Stacked4bit:
    """Pack experts, each (rows, columns), one after the other: no two of them need be there at once."""
    parts: list[tuple[torch.Tensor, ...]] = []
    shape: tuple[int, int] = (0, 0)
    codes: tuple[torch.Tensor, torch.Tensor | None] = (torch.empty(0), None)
    for weight in experts:
        shape = (weight.shape[0], weight.shape[1])
        packed, state = functional.quantize_4bit(
            weight.to(dtype).contiguous(),
            blocksize=BLOCK,
            compress_statistics=is_double_quant,
            quant_type=quant_type,
        )
        codes = state.code, state.state2.code if state.nested else None
        none = state.absmax.new_empty(0, dtype=torch.float32)
        nested = (state.state2.absmax, state.offset.reshape(())) if state.nested else (none, none)
        parts.append((packed.flatten(), state.absmax, *nested))
    stored = Packed(*(torch.stack(tensors) for tensors in zip(*parts, strict=True)))
    return Stacked4bit(stored, Form((len(parts), *shape), quant_type, dtype, codes))


def stacks_of(model: Any) -> dict[str, Stacked4bit]:
    """Every stack of a model by its parameter's name."""
    return {name: p for name, p in model.named_parameters() if isinstance(p, Stacked4bit)}
