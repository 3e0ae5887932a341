"""Operations that allocate inside themselves, taken apart for the ledger, so that what they hold for a moment is counted too.

Imports torch. A rule answers for its operation, or says NotImplemented where it is as plain as any other.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes  # noqa: F401 - defines the operations that the rules are for
import torch
from bitsandbytes.backends.cpu import ops as cpu_ops

from qlora_engine.memory.ledger import NESTED, Ledger, Rule, key_of

ATEN = torch.ops.aten
BNB = torch.ops.bitsandbytes


def gemm_4bit(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """bitsandbytes dequantizes the constants, then the whole weight, then multiplies (backends/default/ops.py)."""
    a, b, shape, absmax, block, quant_type = args[:6]
    with ledger:
        if kwargs.get("absmax_8bit") is not None:
            with ledger.tagged(NESTED):
                absmax = BNB.dequantize_blockwise.default(
                    kwargs["absmax_8bit"], absmax, kwargs["absmax_code"], 256, torch.float32
                )
                absmax = absmax + kwargs["absmax_offset"]
        weight = BNB.dequantize_4bit.default(b, absmax, block, quant_type, shape, a.dtype)
        return torch.nn.functional.linear(a, weight, kwargs.get("bias"))


def dequantize_constants(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    if ledger.tag:
        return NotImplemented
    with ledger.tagged(NESTED):
        result = func(*args, **kwargs)
        ledger.write(result, str(func))
    return result


def logsumexp(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """torch holds exp(x - max) of the whole input meanwhile (aten/native/ReduceOps.cpp)."""
    with ledger:
        inner = torch.empty_like(args[0])
    result = func(*args, **kwargs)
    ledger.write(result, str(func))
    del inner
    return result


def flash_backward(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """On CUDA the gradient of the queries is summed in fp32, and keys and values get one gradient per query head
    (flash-attention 2, csrc/flash_attn/flash_api.cpp)."""
    if ledger.device != "cuda":
        return NotImplemented
    query, key = args[1], args[2]
    with ledger:
        inner = [torch.empty(query.shape, dtype=torch.float32, device=query.device)]
        if key.shape[1] != query.shape[1]:
            inner += [torch.empty_like(query), torch.empty_like(query)]
    result = func(*args, **kwargs)
    ledger.write(result, str(func))
    del inner
    return result


def chosen_rows(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """Rows by a mask: as many as tokens are trained, which only the data knows."""
    source, indices = args
    masks = [index for index in indices if index is not None]
    if len(masks) != 1 or masks[0].dtype != torch.bool:
        return NotImplemented
    mask = masks[0]
    with ledger:
        rows = [
            torch.empty(ledger.trained_tokens, dtype=torch.int64, device=source.device)
            for _ in range(mask.dim())
        ]
        result = torch.empty(
            (ledger.trained_tokens, *source.shape[mask.dim() :]), dtype=source.dtype, device=source.device
        )
        del rows
    return result


def put_rows(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """The gradient of `chosen_rows`, added in place."""
    masks = [index for index in args[1] if index is not None]
    if len(masks) != 1 or masks[0].dtype != torch.bool:
        return NotImplemented
    with ledger:
        rows = [
            torch.empty(ledger.trained_tokens, dtype=torch.int64, device=args[0].device)
            for _ in range(masks[0].dim())
        ]
        del rows
    return args[0]


def grouped_mm(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """Rows (T, K) times the experts (E, K, N); on the CPU torch falls back to one product after another."""
    if args[0].dtype == torch.bfloat16 or args[0].dim() != 2 or args[1].dim() != 3:
        return NotImplemented
    with ledger:
        return torch.empty((args[0].shape[0], args[1].shape[-1]), dtype=args[0].dtype, device=args[0].device)


def dropout_mask(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """CUDA's fused dropout keeps a mask of one byte per element (aten/native/cuda/Dropout.cu), the CPU one as wide as
    its input."""
    if ledger.device == "cuda":
        ledger.resize(args[0], args[0].numel())
    return NotImplemented


def found(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """Which experts are reached: all. Which tokens are sent to one of them: its share of all."""
    mask = args[0]
    if not ledger.experts or mask.dim() not in (1, 2):
        return NotImplemented
    count = min(mask.numel(), ledger.experts) if mask.dim() == 1 else -(-mask.numel() // ledger.experts)
    with ledger:
        places = torch.empty((count, mask.dim()), dtype=torch.int64, device=mask.device)
    ledger.answers[key_of(places)] = 0
    return places


def equals(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """Whether an expert is the one behind the last, which stands for none: it is not."""
    result = func(*args, **kwargs)
    ledger.write(result, str(func))
    if args[0].dim() == 0 and key_of(args[0]) in ledger.answers:
        ledger.answers[key_of(result)] = 0
    return result


def any_of(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """Whether an expert received tokens: it did."""
    result = func(*args, **kwargs)
    ledger.write(result, str(func))
    if args[0].is_floating_point():
        ledger.answers[key_of(result)] = 1
    return result


def decide(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """A question about values: transformers asks whether no rows are packed; others are answered where they arise."""
    if key_of(args[0]) in ledger.answers:
        answer = ledger.answers[key_of(args[0])]
        return bool(answer) if args[0].dtype == torch.bool else answer
    return not ledger.is_packed if args[0].dtype == torch.bool else NotImplemented


def sum_gradients(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """Autograd adds a second gradient into the first where nothing else holds that; a view's base holds it
    (torch/csrc/autograd/input_buffer.cpp, can_accumulate_inplace). For tensors of a mode it never does."""
    first, second = args
    is_accumulating = ledger.phase.startswith("backward") and not torch.is_grad_enabled()
    if not is_accumulating or not isinstance(second, torch.Tensor) or kwargs:
        return NotImplemented
    is_like = first.shape == second.shape and first.dtype == second.dtype
    return ATEN.add_.Tensor(first, second) if is_like and not first._is_view() else NotImplemented


def optimizer_on_cpu(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """bitsandbytes' CPU optimizers work on fp32 copies; its CUDA kernels need nothing besides."""
    if ledger.device != "cpu":
        return func(*args, **kwargs)
    is_8bit = func is BNB.optimizer_update_8bit_blockwise.default
    update = cpu_ops._optimizer_update_8bit_blockwise_cpu if is_8bit else cpu_ops._optimizer_update_32bit_cpu
    with ledger, ledger.tagged("optimizer"):
        return update(*args, **kwargs)


RULES: dict[Any, Rule] = {
    BNB.gemm_4bit.default: gemm_4bit,
    BNB.dequantize_blockwise.default: dequantize_constants,
    BNB.optimizer_update_8bit_blockwise.default: optimizer_on_cpu,
    BNB.optimizer_update_32bit.default: optimizer_on_cpu,
    ATEN.logsumexp.default: logsumexp,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default: flash_backward,
    ATEN.bernoulli_.float: dropout_mask,
    ATEN._grouped_mm.default: grouped_mm,
    ATEN.index.Tensor: chosen_rows,
    ATEN.index_put_.default: put_rows,
    ATEN._index_put_impl_.default: put_rows,
    ATEN._local_scalar_dense.default: decide,
    ATEN.nonzero.default: found,
    ATEN.eq.Scalar: equals,
    ATEN.any.default: any_of,
    ATEN.add.Tensor: sum_gradients,
}  # fmt: skip
