"""All experts of a block in one product: dequantized together, each multiplied with the tokens that were sent to it.

One by one, an expert costs some twenty operations, and the host waits to be told which were reached. Here transformers' own
grouped forward sorts the tokens by their expert, and what it takes for the weight is `AllExperts`: its product dequantizes,
in backward again, and keeps nothing. The adapters of all experts are two more such products. Imports the ML stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.integrations import moe

from qlora_engine.models.experts.stack import Factors, Stacked4bit

PRODUCTS = tuple(
    found
    for found in (getattr(torch.nn.functional, "grouped_mm", None), getattr(torch, "_grouped_mm", None))
    if found is not None
)
"""The public name is of torch 2.10 and newer."""
NEEDED_CAPABILITY = (8, 0)
MOST_WEIGHTS = 2**31 - 1
"""bitsandbytes counts them in 32 bits."""
RANKS_OF_16_BITS = 8
"""torch's kernels want rows of whole 16 bytes."""


class AllExperts:
    """A stack as the weight of a grouped product: (experts, in, out), or (experts, out, in) until it `is_turned`."""

    def __init__(self, stack: Stacked4bit, *, is_turned: bool = False) -> None:
        self.stack, self.is_turned = stack, is_turned
        self.dtype, self.device = stack.form.dtype, stack.device_of_sums

    def transpose(self, *_: int) -> AllExperts:
        return AllExperts(self.stack, is_turned=not self.is_turned)

    def data_ptr(self) -> int:
        """Aligned, as whatever torch allocates."""
        return 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Iterable[Any], args: Any = (), kwargs: Any = None) -> Any:
        if func not in PRODUCTS:
            return NotImplemented
        x, weight = args
        return times(x, weight, kwargs["offs"])


class _Module:
    """A module of experts as the grouped forward is to see it."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return AllExperts(found) if isinstance(found, Stacked4bit) else found


class Grouped:
    """What replaces the forward of a module of experts. Few tokens without gradients, as when a model answers, reach few
    experts: those go one by one."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        module = self.module
        if not torch.is_grad_enabled() and top_k_index.numel() < module.num_experts:
            return type(module).forward(module, hidden_states, top_k_index, top_k_weights)
        return moe.grouped_mm_experts_forward(_Module(module), hidden_states, top_k_index, top_k_weights)


def times(x: torch.Tensor, weight: AllExperts, ends: torch.Tensor) -> torch.Tensor:
    """x (tokens, in), sorted by expert, with each expert's weight and adapters -> (tokens, out). `ends` (experts,) int32: where
    each expert's tokens end."""
    factors = [
        one for adapter in weight.stack.adapters for one in _factors(adapter, x.dtype, weight.is_turned)
    ]
    scales = tuple(adapter.scaling for adapter in weight.stack.adapters)
    out: torch.Tensor = _Times.apply(x, weight, ends, scales, *factors)
    return out


def _factors(adapter: Factors, dtype: torch.dtype, is_turned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts, in, rank) and (experts, rank, out), in the type of the product."""
    left, right = adapter.left.to(dtype).contiguous(), adapter.right.to(dtype).contiguous()
    missing = -left.shape[-1] % RANKS_OF_16_BITS if dtype.itemsize == 2 else 0
    if missing:
        left, right = pad(left, (0, missing)), pad(right, (0, 0, 0, missing))
    return (right.mT, left.mT) if is_turned else (left, right)


class _Times(torch.autograd.Function):
    """y = x W + s (x A) B by groups;  dx = dy W' + g A',  dA = x' g,  dB = s (x A)' dy  with  g = s dy B'."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: AllExperts, ends: torch.Tensor, scales: Sequence[float], *factors: torch.Tensor
    ) -> torch.Tensor:  # fmt: skip
        out, inners = _product(x, _dense(weight), ends), []
        for scale, first, second in zip(scales, factors[::2], factors[1::2], strict=True):
            inners.append(_product(x, first, ends))
            out.add_(_product(inners[-1], second, ends), alpha=scale)
        ctx.weight, ctx.scales = weight, scales
        ctx.save_for_backward(ends, *([x] if factors else []), *inners, *factors)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        ends, *kept = ctx.saved_tensors
        grad, count = grad.contiguous(), len(ctx.scales)
        into = _product(grad, _dense(ctx.weight).mT, ends) if ctx.needs_input_grad[0] else None
        of_factors: list[torch.Tensor] = []
        for index, scale in enumerate(ctx.scales):
            x, inner = kept[0], kept[1 + index]
            first, second = kept[1 + count + 2 * index : 3 + count + 2 * index]
            outer = _product(grad, second.mT, ends).mul_(scale)
            of_factors += [_product(x.mT, outer, ends), _product(inner.mT, grad, ends).mul_(scale)]
            if into is not None:
                into.add_(_product(outer, first.mT, ends))
        return into, None, None, None, *of_factors


def _product(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = PRODUCTS[0](a, b, offs=ends)
    return found


def _dense(weight: AllExperts) -> torch.Tensor:
    """(experts, in, out)."""
    found = weight.stack.dequantized()
    return found.mT if weight.is_turned else found


def modules_of(model: Any) -> list[Any]:
    """The modules of experts in 4 bits whose class transformers can also compute in groups."""
    return [
        module for module in model.modules() if _stacks_of(module) and hasattr(type(module), "_apply_gate")
    ]


def _stacks_of(module: Any) -> list[Stacked4bit]:
    return [found for found in module._parameters.values() if isinstance(found, Stacked4bit)]


def _all_stacks(model: Any) -> list[Stacked4bit]:
    return [stack for module in modules_of(model) for stack in _stacks_of(module)]


def needed_bytes(model: Any) -> int:
    """What the largest stack takes while it is dequantized as a whole."""
    return max((stack.weights * stack.form.dtype.itemsize for stack in _all_stacks(model)), default=0)


def why_not(model: Any, device: str) -> str | None:
    """Why the experts of `model` cannot be computed in groups, None where they can."""
    stacks = _all_stacks(model)
    if not stacks:
        return "it has no experts in 4 bits that transformers computes in groups"
    if not PRODUCTS:
        return "this torch has no product of groups"
    if max(stack.weights for stack in stacks) > MOST_WEIGHTS:
        return "a block's experts have more weights than are dequantized at once"
    if device != "cuda":
        return None
    if {stack.form.dtype for stack in stacks} != {torch.bfloat16}:
        return "torch's product of groups is for bf16 on a GPU"
    if torch.cuda.get_device_capability() < NEEDED_CAPABILITY:
        return "torch's product of groups needs a GPU of compute capability 8.0"
    return None


def install(model: Any) -> None:
    """Have every module of experts that can be compute all of them together."""
    for module in modules_of(model):
        module.forward = Grouped(module)


def remove(model: Any) -> None:
    """Their own forward again, one expert after the other."""
    for module in modules_of(model):
        if isinstance(vars(module).get("forward"), Grouped):
            del module.forward
