"""Root-mean-square norms and rotary positions with few operations, each compared with the model's own first. Imports torch.

    norm:    y = w x r,  r = 1 / sqrt(mean(x^2) + eps);  dx = r (w dy - x mean(w dy x) r^2)
    rotary:  y = x cos + swap(x) sin',  sin' negative in the first half;  dx = dy cos - swap(dy) sin'

`swap` exchanges the two halves of a head. In fp32 alone: other types round in places of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

_ORIGINALS: dict[str, Any] = {}
"""The functions that were replaced, for the process: a second model of a family finds the first one's."""
ROTARY = "apply_rotary_pos_emb"
TOLERANCE = 1e-5


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = inverse.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x, inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight, inverse = ctx.saved_tensors
        weighted = torch.mul(grad, weight)
        shared = torch.linalg.vecdot(weighted, x).unsqueeze_(-1)
        shared = shared.mul_(inverse).mul_(inverse).div_(-x.shape[-1])
        return weighted.addcmul_(x, shared).mul_(inverse), None, None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return torch.mul(x, cos).addcmul_(torch.roll(x, x.shape[-1] // 2, -1), signed_sin)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        cos, signed_sin = ctx.saved_tensors
        swapped = torch.roll(grad, grad.shape[-1] // 2, -1)
        return torch.mul(grad, cos).addcmul_(swapped, signed_sin, value=-1), None, None


def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """As transformers' function of this kind, where cosines and sines are those of half a head, twice."""
    if _Last.sin is not sin or _Last.cos is not cos or _Last.dim != unsqueeze_dim:
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        _Last.sin, _Last.cos, _Last.dim = sin, cos, unsqueeze_dim
        _Last.shaped = (cos.unsqueeze(unsqueeze_dim), signed.unsqueeze(unsqueeze_dim))
    cos, signed = _Last.shaped
    return _rotated(q, cos, signed), _rotated(k, cos, signed)


def _rotate_in_fp32(
    own: Callable[..., Any], q: torch.Tensor, k: torch.Tensor, *more: Any, **named: Any
) -> Any:
    """In place of a model's `own`, for the whole process: a later model of the family may compute in another type, and with
    sines of another than its heads."""
    tensors = (q, k, *more, *named.values())
    is_fp32 = all(one.dtype == torch.float32 for one in tensors if isinstance(one, torch.Tensor))
    return (rotate if is_fp32 else own)(q, k, *more, **named)


def _rotated(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Some families turn only the first part of a head."""
    size = cos.shape[-1]
    if size == x.shape[-1]:
        return _Rotary.apply(x, cos, signed_sin)
    return torch.cat([_Rotary.apply(x[..., :size], cos, signed_sin), x[..., size:]], -1)


class _Last:
    """Cosines and sines of the positions now computed: every layer brings the same."""

    sin: torch.Tensor | None = None
    cos: torch.Tensor | None = None
    dim = 1
    shaped: tuple[torch.Tensor, torch.Tensor]


class Installed:
    """What was replaced in `model`, and how to put it back."""

    def __init__(self, model: Any) -> None:
        self.norms = list(_replace_norms(model))
        self.rotary_modules = list(_replace_rotary(model))

    @property
    def is_any(self) -> bool:
        return bool(self.norms or self.rotary_modules)

    def remove(self) -> None:
        for norm in self.norms:
            del norm.forward
        for module, own in self.rotary_modules:
            setattr(module, ROTARY, own)


def _replace_norms(model: Any) -> Iterator[Any]:
    for module in model.modules():
        if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "weight"):
            continue
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        replaced = None if epsilon is None else _norm_like(module, float(epsilon))
        if replaced is not None:
            module.forward = replaced
            yield module


def _norm_like(module: Any, epsilon: float) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A forward that gives what the module's own gives, its weight being a factor or what is added to 1; None if neither."""
    weight = module.weight
    if weight is None or weight.dtype != torch.float32 or weight.requires_grad:
        return None
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn(3, weight.shape[0], generator=generator).to(weight.device)
    with torch.no_grad():
        wanted = module(trial)
        for factor in (weight.detach(), 1.0 + weight.detach()):
            if torch.allclose(_RmsNorm.apply(trial, factor, epsilon), wanted, rtol=TOLERANCE, atol=TOLERANCE):
                return partial(_normalized, factor=factor, epsilon=epsilon)
    return None


def _normalized(x: torch.Tensor, *, factor: torch.Tensor, epsilon: float) -> torch.Tensor:
    return _RmsNorm.apply(x, factor, epsilon)


def _replace_rotary(model: Any) -> Iterator[tuple[Any, Any]]:
    """The function of the model's own source file, where it does what ours does."""
    modules = {type(m).__module__ for m in model.modules()}
    for name in sorted(modules):
        source = sys.modules.get(name)
        own = _ORIGINALS.get(name) or getattr(source, ROTARY, None)
        if own is not None and _rotates_alike(own):
            _ORIGINALS[name] = own
            setattr(source, ROTARY, partial(_rotate_in_fp32, own))
            yield source, own


def _rotates_alike(own: Callable[..., Any]) -> bool:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 5, 8, generator=generator) for heads in (4, 2))
    angles = torch.randn(1, 5, 4, generator=generator).repeat(1, 1, 2)
    try:
        wanted = own(q, k, angles.cos(), angles.sin())
        found = rotate(q, k, angles.cos(), angles.sin())
        return all(torch.allclose(a, b, atol=TOLERANCE) for a, b in zip(found, wanted, strict=True))
    except (TypeError, ValueError, RuntimeError):
        return False
