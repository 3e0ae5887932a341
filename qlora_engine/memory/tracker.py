"""Counts the bytes of live tensor storages while real operations run: the CPU's answer to an allocator's peak.

Imports torch.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """While active: `live_bytes` of storages born inside and still alive, their `peak_bytes`, and the operation at the
    peak. Storages that existed before are not counted; backward passes on the CPU run in the same thread and are."""

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_operation: str | None = None
        self._seen: dict[int, int] = {}
        for tensor in known:
            self._seen.setdefault(_key(tensor), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._seen.setdefault(_key(tensor), 0)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._born(tensor, str(func))
        return result

    def _born(self, tensor: torch.Tensor, operation: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen[key] = storage.nbytes()
        weakref.finalize(storage, self._died, key)
        self.live_bytes += self._seen[key]
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_operation = self.live_bytes, operation

    def _died(self, key: int) -> None:
        self.live_bytes -= self._seen.pop(key, 0)


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
