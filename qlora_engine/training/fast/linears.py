"""Adapted linear layers with few operations: base, adapter and their sum as one step of autograd. Imports the ML stack.

    y = x W' + b + s (x A') B'        W dequantized, kept or not; ' is transposed; s the adapter's scale
    dx = dy W + g A, dA = g' x, dB = s dy' h        with h = x A', g = s dy B

Layers that read the same tensor (queries, keys and values; gate and up) are computed together: one product with all
their A at once. PEFT copies the base's output, and scales, casts and adds the adapter's in tensors of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit as AdaptedLinear4bit

from qlora_engine.models import four_bit

ADAPTER = "default"


class Site:
    """One adapted 4-bit linear layer. `kept` is its weight dequantized once (out, in), or None."""

    def __init__(self, layer: AdaptedLinear4bit) -> None:
        self.layer = layer
        self.base: Linear4bit = layer.get_base_layer()
        self.scale = float(layer.scaling[ADAPTER])
        self.kept: torch.Tensor | None = None
        self.kept_t: torch.Tensor | None = None
        self.group = Group([self])

    def weight(self) -> torch.Tensor:
        return dequantized(self.base) if self.kept is None else self.kept

    def base_output(self, x: torch.Tensor) -> torch.Tensor:
        """(T, in) -> (T, out), a tensor of its own."""
        if self.kept is None or self.kept_t is None:
            return self.base(x)
        if self.base.bias is None:
            return torch.mm(x.to(self.kept.dtype), self.kept_t).to(x.dtype)
        return torch.addmm(self.base.bias, x.to(self.kept.dtype), self.kept_t).to(x.dtype)

    def keep(self, weight: torch.Tensor | None) -> None:
        self.kept, self.kept_t = weight, None if weight is None else weight.t()

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer.lora_A[ADAPTER].weight, self.layer.lora_B[ADAPTER].weight

    @property
    def is_active(self) -> bool:
        return not (self.layer.disable_adapters or self.layer.merged)

    def forward(self, x: torch.Tensor, *arguments: Any, **more: Any) -> torch.Tensor:
        """What replaces the layer's own forward, which stays for everything unusual."""
        if arguments or more or not self.is_active:
            return type(self.layer).forward(self.layer, x, *arguments, **more)
        return self.group.output(self, x)


class Group:
    """Sites that read the same tensor, in the order in which they are called."""

    def __init__(self, sites: list[Site]) -> None:
        self.sites = sites
        self._input: Any = None
        self._version = 0
        self._waiting: dict[int, torch.Tensor] = {}

    def output(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        """The output of one; the first one called computes those of all, the others find theirs."""
        if x is self._input and id(site) in self._waiting and x._version == self._version:
            found = self._waiting.pop(id(site))
            if not self._waiting:
                self._input = None
            return found
        if site is not self.sites[0] or len(self.sites) == 1 or not all(s.is_active for s in self.sites):
            return apply([site], x)[0]
        outputs = apply(self.sites, x)
        self._input, self._version = x, x._version
        self._waiting = {id(s): y for s, y in zip(self.sites[1:], outputs[1:], strict=True)}
        return outputs[0]

    def forget(self) -> None:
        """Let go of what an abandoned pass left."""
        self._input, self._waiting = None, {}


def apply(sites: Sequence[Site], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    factors = [factor for site in sites for factor in site.factors()]
    return _AdaptedLinears.apply(x, tuple(sites), *factors)


class _AdaptedLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sites: tuple[Site, ...], *factors: torch.Tensor) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        downs, ups = factors[0::2], factors[1::2]
        down = downs[0] if len(downs) == 1 else torch.cat(downs)
        inner = torch.mm(flat.to(down.dtype), down.t())
        outputs, start = [], 0
        for site, up in zip(sites, ups, strict=True):
            part = inner.narrow(1, start, up.shape[1]) if len(ups) > 1 else inner
            outputs.append(_add_product(site.base_output(flat), part, up, site.scale))
            start += up.shape[1]
        ctx.sites, ctx.shape = sites, x.shape
        ctx.save_for_backward(flat, inner, down, *ups)
        return tuple(y.view(*x.shape[:-1], -1) for y in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        flat, inner, down, *ups = ctx.saved_tensors
        sites = ctx.sites
        outer, up_grads, into, start = [], [], None, 0
        for site, up, grad in zip(sites, ups, grads, strict=True):
            dy = grad.reshape(-1, grad.shape[-1])
            cast = dy.to(up.dtype)
            part = inner.narrow(1, start, up.shape[1]) if len(ups) > 1 else inner
            outer.append(torch.addmm(part, cast, up, beta=0, alpha=site.scale))
            up_grads.append(torch.addmm(up, cast.t(), part, beta=0, alpha=site.scale))
            start += up.shape[1]
            if ctx.needs_input_grad[0]:
                weight = site.weight().to(dy.dtype)
                into = torch.mm(dy, weight) if into is None else into.addmm_(dy, weight)
        g = outer[0] if len(outer) == 1 else torch.cat(outer, 1)
        down_grad = torch.mm(g.t(), flat.to(g.dtype))
        if into is not None:
            into = (into.addmm_(g, down) if into.dtype == g.dtype else into.add_(torch.mm(g, down))).view(
                ctx.shape
            )
        down_grads = down_grad.split([up.shape[1] for up in ups]) if len(ups) > 1 else (down_grad,)
        pairs = [one for pair in zip(down_grads, up_grads, strict=True) for one in pair]
        return into, None, *pairs


def _add_product(y: torch.Tensor, inner: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """y + scale * inner up', in y's memory."""
    if y.dtype == up.dtype:
        return y.addmm_(inner, up.t(), alpha=scale)
    return y.add_(torch.mm(inner, up.t()), alpha=scale)


def dequantized(base: Linear4bit) -> torch.Tensor:
    """(out, in) in the compute type; the same bits that every pass computes with."""
    weight = four_bit.dequantized(base.weight.data, base.weight.quant_state)
    return weight if base.compute_dtype is None else weight.to(base.compute_dtype)


def can_be_fused(layer: Any) -> bool:
    """Plain LoRA alone on a 4-bit linear layer: no dropout, no variant, no bias of its own."""
    if type(layer) is not AdaptedLinear4bit or list(layer.lora_A) != [ADAPTER] or layer.lora_variant:
        return False
    is_plain = layer.lora_A[ADAPTER].bias is None and layer.lora_B[ADAPTER].bias is None
    return is_plain and isinstance(layer.lora_dropout[ADAPTER], torch.nn.Identity)


def install(model: Any) -> list[Site]:
    """Replace the forward of every layer that can be fused; the sites, in the model's order."""
    sites = []
    for module in model.modules():
        if isinstance(module, LoraLayer) and can_be_fused(module):
            site = Site(module)
            module.forward = site.forward
            sites.append(site)
    return sites


def remove(sites: Sequence[Site]) -> None:
    """The layers' own forward again."""
    for site in sites:
        del site.layer.forward


def put_back(sites: Sequence[Site]) -> None:
    """What `remove` took away."""
    for site in sites:
        site.layer.forward = site.forward


def group_by_input(sites: Sequence[Site], run: Any) -> None:
    """See in one pass, `run()`, which neighbours read the same tensor, and have them computed together."""
    seen: list[tuple[Site, torch.Tensor]] = []
    hooks = [
        site.layer.register_forward_pre_hook(lambda _, inputs, site=site: seen.append((site, inputs[0])))
        for site in sites
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    group: list[Site] = []
    last: torch.Tensor | None = None
    for site, x in seen:
        if x is last:
            group.append(site)
        else:
            group, last = [site], x
        site.group = Group(group) if len(group) == 1 else group[0].group


def groups_of(sites: Sequence[Site]) -> list[list[int]]:
    """The places of the sites that are computed together."""
    places = {id(site): place for place, site in enumerate(sites)}
    found = {id(site.group): [places[id(one)] for one in site.group.sites] for site in sites}
    return list(found.values())


def regroup(sites: Sequence[Site], groups: Sequence[Sequence[int]]) -> None:
    """Computed together as `groups_of` told.

    Raises:
        ValueError: that was told of other sites.
    """
    if sorted(place for group in groups for place in group) != list(range(len(sites))):
        raise ValueError(f"{len(sites)} adapted layers, which are grouped otherwise")
    for places in groups:
        group = Group([sites[place] for place in places])
        for site in group.sites:
            site.group = group
