"""Weights dequantized once and kept: for small models on the CPU, within a budget. Imports the ML stack.

Without it each weight is dequantized in every forward, recomputed and backward pass of every micro-batch. What is kept
has the very bits that would be computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit

from qlora_engine.training.fast.linears import Site, dequantized


def needed_bytes(model: Any) -> int:
    """What all 4-bit linear layers of `model` take in their compute type."""
    return sum(
        layer.in_features * layer.out_features * (layer.compute_dtype or torch.float32).itemsize
        for layer in model.modules()
        if isinstance(layer, Linear4bit)
    )


def keep(model: Any, sites: Sequence[Site], budget_bytes: int) -> int:
    """Keep every weight if all of them fit, those of `sites` for the fused adapters; the bytes that they take, 0 if none."""
    size = needed_bytes(model)
    if size > budget_bytes:
        return 0
    by_base = {id(site.base): site for site in sites}
    for layer in model.modules():
        if not isinstance(layer, Linear4bit):
            continue
        weight, site = dequantized(layer), by_base.get(id(layer))
        if site is not None:
            site.keep(weight)
        else:
            layer.forward = _Product(layer, weight)
    return size


def release(model: Any, sites: Sequence[Site]) -> None:
    """Give all of them up: every pass dequantizes again."""
    for site in sites:
        site.keep(None)
    for layer in model.modules():
        if isinstance(vars(layer).get("forward"), _Product):
            del layer.forward


class _Product:
    """What replaces the forward of a layer without a fused adapter."""

    def __init__(self, layer: Linear4bit, weight: torch.Tensor) -> None:
        self._layer, self._weight = layer, weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.nn.functional.linear(x.to(self._weight.dtype), self._weight, self._layer.bias)
        return found.to(x.dtype)
