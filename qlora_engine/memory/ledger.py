"""Writes down the birth and death of every tensor storage while a symbolic step runs, and finds the peaks. Imports torch.

Entered above a FakeTensorMode. Operations that allocate inside themselves are taken apart by the rules at the end, so
that what they hold for a moment is counted too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import bitsandbytes  # noqa: F401 - defines the operations that the rules are for
import torch
from bitsandbytes.backends.cpu import ops as cpu_ops
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from qlora_engine.memory.experts import TRACED_EXPERTS

ATEN = torch.ops.aten
BNB = torch.ops.bitsandbytes
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
        experts: int = 0,
    ) -> None:
        super().__init__()
        self.phase = "forward"
        self.storages: list[Storage] = []
        self.log: list[int] = []
        """Index of the storage + 1 when born, negative when it died."""
        self.kept: frozenset[int] = frozenset()
        self._device, self._is_packed, self._trained_tokens, self._check = (
            device,
            is_packed,
            trained_tokens,
            check,
        )
        self._experts = min(experts, TRACED_EXPERTS)
        self._numbers: dict[int, int] = {}
        self._answers: dict[int, int] = {}
        """Storage of a value that only data would know -> what it is taken to be."""
        self._tag = ""

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Storages that exist already and are counted elsewhere."""
        for tensor in tensors:
            self._numbers[_key(tensor)] = -1

    def keep_alive_now(self) -> None:
        """What is alive at this moment is what the forward pass keeps for the backward pass."""
        self.kept = frozenset(number for number in self._numbers.values() if number >= 0)

    def numbers_of(self, tensors: Iterable[torch.Tensor]) -> frozenset[int]:
        """The storages of `tensors` that were born inside."""
        found = (self._numbers.get(_key(tensor), -1) for tensor in tensors)
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
        rule = _RULES.get(func)
        if rule is not None:
            result = rule(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self._write(result, str(func))
        return result

    def _write(self, result: Any, operation: str) -> None:
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
        self.storages.append(Storage(storage.nbytes(), operation, self.phase, self._tag))
        self.log.append(number + 1)
        weakref.finalize(storage, self._died, key)

    def _died(self, key: int) -> None:
        number = self._numbers.pop(key, -1)
        self._answers.pop(key, None)
        if number >= 0:
            self.log.append(-number - 1)

    @contextmanager
    def tagged(self, tag: str) -> Iterator[None]:
        """What is born inside carries `tag`."""
        before, self._tag = self._tag, tag
        try:
            yield
        finally:
            self._tag = before

    def inputs_on_host(self) -> saved_tensors_hooks:
        """What autograd saves inside waits beside the GPU, and comes back as another tensor (torch's save_on_cpu)."""

        def away(tensor: torch.Tensor) -> torch.Tensor:
            with self.tagged(HOST):
                return tensor.clone()

        return saved_tensors_hooks(away, torch.clone)

    # ------------------------------------------------------------ operations taken apart

    def gemm_4bit(self, func: Any, args: Any, kwargs: Any) -> Any:
        """bitsandbytes dequantizes the constants, then the whole weight, then multiplies (backends/default/ops.py)."""
        a, b, shape, absmax, block, quant_type = args[:6]
        with self:
            if kwargs.get("absmax_8bit") is not None:
                with self.tagged(NESTED):
                    absmax = BNB.dequantize_blockwise.default(
                        kwargs["absmax_8bit"], absmax, kwargs["absmax_code"], 256, torch.float32
                    )
                    absmax = absmax + kwargs["absmax_offset"]
            weight = BNB.dequantize_4bit.default(b, absmax, block, quant_type, shape, a.dtype)
            return torch.nn.functional.linear(a, weight, kwargs.get("bias"))

    def dequantize_constants(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._tag:
            return NotImplemented
        with self.tagged(NESTED):
            result = func(*args, **kwargs)
            self._write(result, str(func))
        return result

    def logsumexp(self, func: Any, args: Any, kwargs: Any) -> Any:
        """torch holds exp(x - max) of the whole input meanwhile (aten/native/ReduceOps.cpp)."""
        with self:
            inner = torch.empty_like(args[0])
        result = func(*args, **kwargs)
        self._write(result, str(func))
        del inner
        return result

    def flash_backward(self, func: Any, args: Any, kwargs: Any) -> Any:
        """On CUDA the gradient of the queries is summed in fp32, and keys and values get one gradient per query head
        (flash-attention 2, csrc/flash_attn/flash_api.cpp)."""
        if self._device != "cuda":
            return NotImplemented
        query, key = args[1], args[2]
        with self:
            inner = [torch.empty(query.shape, dtype=torch.float32, device=query.device)]
            if key.shape[1] != query.shape[1]:
                inner += [torch.empty_like(query), torch.empty_like(query)]
        result = func(*args, **kwargs)
        self._write(result, str(func))
        del inner
        return result

    def chosen_rows(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Rows by a mask: as many as tokens are trained, which only the data knows."""
        source, indices = args
        masks = [index for index in indices if index is not None]
        if len(masks) != 1 or masks[0].dtype != torch.bool:
            return NotImplemented
        mask = masks[0]
        with self:
            rows = [
                torch.empty(self._trained_tokens, dtype=torch.int64, device=source.device)
                for _ in range(mask.dim())
            ]
            result = torch.empty(
                (self._trained_tokens, *source.shape[mask.dim() :]), dtype=source.dtype, device=source.device
            )
            del rows
        return result

    def put_rows(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The gradient of `chosen_rows`, added in place."""
        masks = [index for index in args[1] if index is not None]
        if len(masks) != 1 or masks[0].dtype != torch.bool:
            return NotImplemented
        with self:
            rows = [
                torch.empty(self._trained_tokens, dtype=torch.int64, device=args[0].device)
                for _ in range(masks[0].dim())
            ]
            del rows
        return args[0]

    def grouped_mm(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Rows (T, K) times the experts (E, K, N); on the CPU torch falls back to one product after another."""
        if args[0].dtype == torch.bfloat16 or args[0].dim() != 2 or args[1].dim() != 3:
            return NotImplemented
        with self:
            return torch.empty(
                (args[0].shape[0], args[1].shape[-1]), dtype=args[0].dtype, device=args[0].device
            )

    def dropout_mask(self, func: Any, args: Any, kwargs: Any) -> Any:
        """CUDA's fused dropout keeps a mask of one byte per element (aten/native/cuda/Dropout.cu), the CPU one as wide as
        its input."""
        number = self._numbers.get(_key(args[0]), -1)
        if self._device == "cuda" and number >= 0:
            self.storages[number] = replace(self.storages[number], bytes_=args[0].numel())
        return NotImplemented

    def found(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Which experts are reached: all. Which tokens are sent to one of them: its share of all."""
        mask = args[0]
        if not self._experts or mask.dim() not in (1, 2):
            return NotImplemented
        count = min(mask.numel(), self._experts) if mask.dim() == 1 else -(-mask.numel() // self._experts)
        with self:
            places = torch.empty((count, mask.dim()), dtype=torch.int64, device=mask.device)
        self._answers[_key(places)] = 0
        return places

    def equals(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Whether an expert is the one behind the last, which stands for none: it is not."""
        result = func(*args, **kwargs)
        self._write(result, str(func))
        if args[0].dim() == 0 and _key(args[0]) in self._answers:
            self._answers[_key(result)] = 0
        return result

    def any_of(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Whether an expert received tokens: it did."""
        result = func(*args, **kwargs)
        self._write(result, str(func))
        if args[0].is_floating_point():
            self._answers[_key(result)] = 1
        return result

    def decide(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A question about values: transformers asks whether no rows are packed; others are answered where they arise."""
        if _key(args[0]) in self._answers:
            answer = self._answers[_key(args[0])]
            return bool(answer) if args[0].dtype == torch.bool else answer
        return not self._is_packed if args[0].dtype == torch.bool else NotImplemented

    def sum_gradients(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Autograd adds a second gradient into the first where nothing else holds that; a view's base holds it
        (torch/csrc/autograd/input_buffer.cpp, can_accumulate_inplace). For tensors of a mode it never does."""
        first, second = args
        is_accumulating = self.phase.startswith("backward") and not torch.is_grad_enabled()
        if not is_accumulating or not isinstance(second, torch.Tensor) or kwargs:
            return NotImplemented
        is_like = first.shape == second.shape and first.dtype == second.dtype
        return ATEN.add_.Tensor(first, second) if is_like and not first._is_view() else NotImplemented

    def optimizer_on_cpu(self, func: Any, args: Any, kwargs: Any) -> Any:
        """bitsandbytes' CPU optimizers work on fp32 copies; its CUDA kernels need nothing besides."""
        if self._device != "cpu":
            return func(*args, **kwargs)
        is_8bit = func is BNB.optimizer_update_8bit_blockwise.default
        update = (
            cpu_ops._optimizer_update_8bit_blockwise_cpu if is_8bit else cpu_ops._optimizer_update_32bit_cpu
        )
        with self, self.tagged("optimizer"):
            return update(*args, **kwargs)


Rule = Callable[[Ledger, Any, Any, Any], Any]
_RULES: dict[Any, Rule] = {
    BNB.gemm_4bit.default: Ledger.gemm_4bit,
    BNB.dequantize_blockwise.default: Ledger.dequantize_constants,
    BNB.optimizer_update_8bit_blockwise.default: Ledger.optimizer_on_cpu,
    BNB.optimizer_update_32bit.default: Ledger.optimizer_on_cpu,
    ATEN.logsumexp.default: Ledger.logsumexp,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default: Ledger.flash_backward,
    ATEN.bernoulli_.float: Ledger.dropout_mask,
    ATEN._grouped_mm.default: Ledger.grouped_mm,
    ATEN.index.Tensor: Ledger.chosen_rows,
    ATEN.index_put_.default: Ledger.put_rows,
    ATEN._index_put_impl_.default: Ledger.put_rows,
    ATEN._local_scalar_dense.default: Ledger.decide,
    ATEN.nonzero.default: Ledger.found,
    ATEN.eq.Scalar: Ledger.equals,
    ATEN.any.default: Ledger.any_of,
    ATEN.add.Tensor: Ledger.sum_gradients,
}  # fmt: skip


def _raise_peak(peak: Peak, live: dict[str, int], operation: str) -> None:
    total = sum(live.values())
    if total > peak.bytes_:
        peak.bytes_, peak.parts, peak.operation = total, dict(live), operation


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
