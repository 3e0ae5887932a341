"""Products with experts in 4 bits, forward and backward, with their adapters. Imports torch.

Which functions a class's own forward may use on its experts' weight: `weight[e]` and then a linear layer or a product;
one batched product over all of them (Llama 4); anything else gets the dequantized weight, which is right and large.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from qlora_engine.models.experts.stack import Stacked4bit

PRODUCTS = frozenset({torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__})
BATCHED = frozenset({torch.bmm, torch.Tensor.bmm, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__})
WHOLE = frozenset({
    torch.einsum, torch.Tensor.view, torch.Tensor.reshape, torch.Tensor.transpose, torch.Tensor.permute,
    torch.Tensor.chunk, torch.Tensor.split, torch.Tensor.unbind, torch.Tensor.mT.__get__, torch.Tensor.to,
    torch.Tensor.contiguous, torch.stack, torch.chunk, torch.split, torch.transpose, torch.permute,
})  # fmt: skip
"""On these the whole weight is made; `to` among them only when a floating-point type is asked for."""


class Expert:
    """One expert's weight, not yet dequantized. A tensor for what may be done with a frozen weight."""

    def __init__(self, stack: Stacked4bit, index: int) -> None:
        self.stack, self.index = stack, index

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dense(), name)

    def dense(self) -> torch.Tensor:
        """The weight with its adapters, which autograd keeps: for what has no better way."""
        weight = self.stack.expert(self.index)
        for one in self.stack.adapters:
            left, right = one.of(self.index)
            delta = one.scaling * (left @ right)
            weight = weight + delta.to(weight.dtype)
        return weight

    @classmethod
    def __torch_function__(cls, func: Any, types: Iterable[Any], args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        x, weight = (*args, None)[:2] if args else (None, None)
        if isinstance(weight, Expert) and isinstance(x, torch.Tensor):
            if func is torch.nn.functional.linear:
                bias = args[2] if len(args) > 2 else kwargs.get("bias")
                out = times(x, weight, is_transposed=False)
                return out if bias is None else out + bias
            if func in PRODUCTS:
                return times(x, weight, is_transposed=True)
        plain = [a.dense() if isinstance(a, Expert) else a for a in args]
        return func(*plain, **{k: v.dense() if isinstance(v, Expert) else v for k, v in kwargs.items()})


def of_stack(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func` gives on a stack, or NotImplemented where it is a matter of its bytes."""
    if func is torch.Tensor.__getitem__ and isinstance(args[0], Stacked4bit):
        return _taken(args[0], args[1])
    if func in BATCHED and len(args) == 2 and isinstance(args[1], Stacked4bit):
        return _batched(args[0], args[1])
    if func not in WHOLE or (func is torch.Tensor.to and not _asks_for_floats(args, kwargs)):
        return NotImplemented
    return func(*(_whole(a) if isinstance(a, Stacked4bit) else a for a in args), **kwargs)


def times(x: torch.Tensor, expert: Expert, *, is_transposed: bool) -> torch.Tensor:
    """x (tokens, in) with the expert's weight: (out, in), or (in, out) if `is_transposed`; with its adapters."""
    out: torch.Tensor = _Times.apply(x, expert.stack, expert.index, is_transposed)
    return _with_adapters(out, x, expert, is_transposed=is_transposed)


def _with_adapters(
    out: torch.Tensor, x: torch.Tensor, expert: Expert, *, is_transposed: bool
) -> torch.Tensor:
    for one in expert.stack.adapters:
        left, right = one.of(expert.index)
        first, second = (left, right) if is_transposed else (right.T, left.T)
        out = out + (one.scaling * (x.to(first.dtype) @ first @ second)).to(out.dtype)
    return out


class _Times(torch.autograd.Function):
    """The product with a frozen weight. Backward needs the weight alone, and dequantizes it again."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, stack: Stacked4bit, index: int, is_transposed: bool
    ) -> torch.Tensor:
        ctx.stack, ctx.index, ctx.is_transposed = stack, index, is_transposed
        weight = stack.expert(index).to(x.dtype)
        return x @ (weight if is_transposed else weight.T)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        weight = ctx.stack.expert(ctx.index).to(grad.dtype)
        return grad @ (weight.T if ctx.is_transposed else weight), None, None, None


def _taken(stack: Stacked4bit, index: Any) -> Any:
    if isinstance(index, int) or (
        isinstance(index, torch.Tensor) and index.ndim == 0 and not index.is_floating_point()
    ):
        return Expert(stack, int(index) % stack.experts)
    if isinstance(index, tuple) and index and isinstance(index[0], int):
        return Expert(stack, index[0] % stack.experts).dense()[index[1:]]
    return _whole(stack)[index]


def _batched(x: torch.Tensor, stack: Stacked4bit) -> torch.Tensor:
    """x (experts, tokens, in) with (experts, in, out). An expert whose tokens are all zero, which is how a router leaves one
    out, gives zero without being dequantized; its adapters give zero too."""
    found = []
    for index, tokens in enumerate(x.unbind(0)):
        expert = Expert(stack, index)
        product = _Times if bool(tokens.detach().any()) else _Zero
        out: torch.Tensor = product.apply(tokens, stack, index, True)
        found.append(_with_adapters(out, tokens, expert, is_transposed=True))
    return torch.stack(found)


class _Zero(torch.autograd.Function):
    """The product of zeros with a frozen weight, (in, out). Its gradient is not zero, where one arrives."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, stack: Stacked4bit, index: int, is_transposed: bool
    ) -> torch.Tensor:
        ctx.stack, ctx.index = stack, index
        return x.new_zeros(*x.shape[:-1], stack.form.shape[2])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        if not bool(grad.any()):
            return grad.new_zeros(*grad.shape[:-1], ctx.stack.form.shape[1]), None, None, None
        return grad @ ctx.stack.expert(ctx.index).to(grad.dtype).T, None, None, None


def _whole(stack: Stacked4bit) -> torch.Tensor:
    return torch.stack([Expert(stack, index).dense() for index in range(stack.experts)])


def _asks_for_floats(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    asked = [*args[1:], *kwargs.values()]
    return any(isinstance(a, torch.dtype) and a.is_floating_point for a in asked)
