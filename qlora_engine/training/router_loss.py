"""The loss by which a class keeps its routers from sending everything to few experts, as the class itself computes it.

Imports torch. Routers are frozen here; what the loss moves are the adapters before them (arXiv 2101.03961, section 2.2).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from qlora_engine.events import Event, Noticed

FUNCTION = "load_balancing_loss_func"
"""What transformers calls it in every module of a class that has one."""


@dataclass(frozen=True)
class RouterLoss:
    """`coefficient` times the balance of `experts`, `per_token` of which take a token."""

    coefficient: float
    experts: int
    per_token: int
    function: Callable[..., Any]

    def of(self, router_logits: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """0-d, of one micro-batch; `router_logits` as the backbone returns them, (tokens, experts) for each layer.

        Raises:
            ValueError: the backbone returned none.
        """
        if not isinstance(router_logits, tuple) or not router_logits:
            raise ValueError("the model returned no router logits")
        found = self.function(router_logits, self.experts, self.per_token, attention_mask)
        return self.coefficient * torch.as_tensor(found)


def of_class(causal: Any) -> RouterLoss | None:
    """The loss of this model's class; None where it has none, or weighs it with nothing."""
    function = getattr(sys.modules.get(type(causal).__module__), FUNCTION, None)
    config = causal.config.get_text_config(decoder=True)
    coefficient = float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0)
    experts = getattr(causal, "num_experts", None) or getattr(config, "num_local_experts", None)
    per_token = getattr(causal, "num_experts_per_tok", None) or getattr(config, "num_experts_per_tok", None)
    if function is None or not coefficient or not experts or not per_token:
        return None
    return RouterLoss(coefficient, int(experts), int(per_token), function)


def chosen(causal: Any, setting: str, has_experts: bool) -> tuple[RouterLoss | None, Iterator[Event]]:
    """What `training.router_loss` comes to on this model, and what to say of it."""
    found = of_class(causal)
    return (found if setting == "class" else None), _words(found, setting, has_experts)


def _words(found: RouterLoss | None, setting: str, has_experts: bool) -> Iterator[Event]:
    if found is None and setting == "class":
        yield Noticed(
            "warning" if has_experts else "info", "router.none",
            "This model's class has no auxiliary loss for its routers, so training.router_loss adds nothing",
        )  # fmt: skip
    elif found is not None and setting == "class":
        yield Noticed(
            "info", "router.loss",
            f"The routers' auxiliary loss is added with {found.coefficient:g}, as the class has it; the loss shown is without it",
        )  # fmt: skip
    elif found is not None:
        yield Noticed(
            "info", "router.loss",
            f"The routers' auxiliary loss, which the class weighs with {found.coefficient:g}, is off: routers are frozen",
            "training.router_loss adds it",
        )  # fmt: skip
