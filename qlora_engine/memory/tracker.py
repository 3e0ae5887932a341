"""Counts the bytes of live tensor storages while real operations run: the CPU's answer to an allocator's peak.

Imports torch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """While active: `live_bytes` of storages born inside and still alive, their `peak_bytes`, and the operation at the
    peak. Storages that existed before are not counted; backward passes on the CPU run in the same thread and are.

    With `multiplies` false matrix products are left out: each result is there, written to and zero. What is alive when is the same
    wherever it hangs on shapes alone, at a fraction of the time.
    """

    def __init__(self, known: Iterable[torch.Tensor] = (), *, multiplies: bool = True) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._peak_operation: Any = None
        self._multiplies = multiplies
        self._seen: dict[int, int] = {}
        for tensor in known:
            self._seen.setdefault(_key(tensor), 0)

    @property
    def peak_operation(self) -> str | None:
        return None if self._peak_operation is None else str(self._peak_operation)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors(args):
            self._met(tensor)
        for tensor in _tensors(kwargs.values() if kwargs else ()):
            self._met(tensor)
        left_out = None if self._multiplies else PRODUCTS.get(func)
        result = func(*args, **(kwargs or {})) if left_out is None else left_out(*args)
        for tensor in _tensors((result,)):
            self._born(tensor, func)
        return result

    def _met(self, tensor: torch.Tensor) -> None:
        """One that was there before, or made where nobody looks, is not counted; what later lies at its address is."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = 0
            weakref.finalize(storage, self._died, storage._cdata)

    def _born(self, tensor: torch.Tensor, operation: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen[key] = storage.nbytes()
        weakref.finalize(storage, self._died, key)
        self.live_bytes += self._seen[key]
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self._peak_operation = self.live_bytes, operation

    def _died(self, key: int) -> None:
        self.live_bytes -= self._seen.pop(key, 0)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Those among an operation's arguments or results: alone, or in lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _zeros(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_zeros(*a.shape[:-1], b.shape[-1])


def _zero_sum(_: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _zeros(a, b)


def _unchanged(target: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return target


PRODUCTS: dict[Any, Callable[..., torch.Tensor]] = {
    _aten.mm.default: _zeros,
    _aten.bmm.default: _zeros,
    _aten.addmm.default: _zero_sum,
    _aten.baddbmm.default: _zero_sum,
    _aten.addmm_.default: _unchanged,
    _aten.baddbmm_.default: _unchanged,
}
"""What stands for a product that is left out, as large as it; called without the factors alpha and beta."""


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of distinct storages."""
    return sum({_key(t): t.untyped_storage().nbytes() for t in tensors}.values())


def model_bytes(model: Any) -> int:
    """Bytes of a model's parameters and buffers and of the quantization constants of its 4-bit weights."""
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in list(tensors):
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code]
            if state.nested:
                tensors += [state.state2.absmax, state.state2.code, state.offset]
        stored = getattr(parameter, "stored", None)  # experts in 4 bits
        if stored is not None:
            tensors += [*stored.tensors()[1:], *(code for code in parameter.form.codes if code is not None)]
    return tensor_bytes(tensors)


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
