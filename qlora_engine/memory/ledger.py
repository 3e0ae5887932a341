"""Writes down the birth and death of every tensor storage while a symbolic step runs, and finds the peaks. Imports torch.

Entered above a FakeTensorMode. Operations that allocate inside themselves are taken apart by its rules (`operations.py`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from qlora_engine.memory.experts import TRACED_EXPERTS

HOST = "host"
"""Tag of what waits in the computer's memory, beside the GPU."""
NESTED = "nested"
"""Tag of what only double quantization allocates: the constants, dequantized."""


@dataclass(frozen=True)
class Storage:
    """One storage that was born inside: bytes, the operation, the phase, and a tag."""

    bytes_: int
    operation: str
    phase: str
    tag: str


@dataclass
class Peak:
    """The most that was alive in one phase, by category, and what was running."""

    bytes_: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    operation: str = ""


Rule = Callable[["Ledger", Any, Any, Any], Any]
"""What answers for an operation (ledger, function, args, kwargs); NotImplemented leaves it to torch."""


class Ledger(TorchDispatchMode):
    """Storages born while it is active, in order. `phase` is set from outside; `check` is called at every operation
    and may raise to end the step."""

    def __init__(
        self,
        *,
        device: str,
        is_packed: bool,
        trained_tokens: int,
        check: Callable[[], None],
        rules: Mapping[Any, Rule],
        experts: int = 0,
    ) -> None:
        super().__init__()
        self.phase = "forward"
        self.storages: list[Storage] = []
        self.log: list[int] = []
        """Index of the storage + 1 when born, negative when it died."""
        self.kept: frozenset[int] = frozenset()
        self.device, self.is_packed, self.trained_tokens = device, is_packed, trained_tokens
        self._check, self._rules = check, rules
        self.experts = min(experts, TRACED_EXPERTS)
        self._numbers: dict[int, int] = {}
        self.answers: dict[int, int] = {}
        """Storage of a value that only data would know -> what it is taken to be."""
        self.tag = ""

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Storages that exist already and are counted elsewhere."""
        for tensor in tensors:
            self._numbers[key_of(tensor)] = -1

    def keep_alive_now(self) -> None:
        """What is alive at this moment is what the forward pass keeps for the backward pass."""
        self.kept = frozenset(number for number in self._numbers.values() if number >= 0)

    def numbers_of(self, tensors: Iterable[torch.Tensor]) -> frozenset[int]:
        """The storages of `tensors` that were born inside."""
        found = (self._numbers.get(key_of(tensor), -1) for tensor in tensors)
        return frozenset(number for number in found if number >= 0)

    def peaks(self, gradients: frozenset[int], state: frozenset[int], *, has_nested: bool) -> dict[str, Peak]:
        """The peak of every phase. `state` (optimizer state) is left out: it is there from the second step on."""
        found: dict[str, Peak] = {}
        live: dict[str, int] = dict.fromkeys(("activations", "step_temporary", "gradients"), 0)
        for entry in self.log:
            number = abs(entry) - 1
            one = self.storages[number]
            if number in state or one.tag == HOST or (one.tag == NESTED and not has_nested):
                continue
            category = self._category(number, gradients)
            live[category] += one.bytes_ if entry > 0 else -one.bytes_
            if entry > 0:
                _raise_peak(found.setdefault(one.phase, Peak()), live, one.operation)
        return found

    def _category(self, number: int, gradients: frozenset[int]) -> str:
        if number in gradients:
            return "gradients"
        return "activations" if number in self.kept else "step_temporary"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._check()
        kwargs = kwargs or {}
        rule = self._rules.get(func)
        if rule is not None:
            result = rule(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self.write(result, str(func))
        return result

    def write(self, result: Any, operation: str) -> None:
        """Tensors that an operation gave back; what is known already stays as it is."""
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._born(tensor, operation)

    def _born(self, tensor: torch.Tensor, operation: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._numbers:
            return
        number = len(self.storages)
        self._numbers[key] = number
        self.storages.append(Storage(storage.nbytes(), operation, self.phase, self.tag))
        self.log.append(number + 1)
        weakref.finalize(storage, self._died, key)

    def resize(self, tensor: torch.Tensor, bytes_: int) -> None:
        """What was born inside has another size on the device."""
        number = self._numbers.get(key_of(tensor), -1)
        if number >= 0:
            self.storages[number] = replace(self.storages[number], bytes_=bytes_)

    def _died(self, key: int) -> None:
        number = self._numbers.pop(key, -1)
        self.answers.pop(key, None)
        if number >= 0:
            self.log.append(-number - 1)

    @contextmanager
    def tagged(self, tag: str) -> Iterator[None]:
        """What is born inside carries `tag`."""
        before, self.tag = self.tag, tag
        try:
            yield
        finally:
            self.tag = before

    def inputs_on_host(self) -> saved_tensors_hooks:
        """What autograd saves inside waits beside the GPU, and comes back as another tensor (torch's save_on_cpu)."""

        def away(tensor: torch.Tensor) -> torch.Tensor:
            with self.tagged(HOST):
                return tensor.clone()

        return saved_tensors_hooks(away, torch.clone)


def _raise_peak(peak: Peak, live: dict[str, int], operation: str) -> None:
    total = sum(live.values())
    if total > peak.bytes_:
        peak.bytes_, peak.parts, peak.operation = total, dict(live), operation


def key_of(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
