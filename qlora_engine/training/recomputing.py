"""Which decoder blocks recompute their activations, and where the inputs of those wait meanwhile. Imports the ML stack."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

Place = Callable[[], contextlib.AbstractContextManager[Any]]
"""What autograd saves inside waits in another place."""


def enable(base: Any, every: int = 1) -> None:
    """Have the first and then each `every`-th block of `base`, a transformers model, recompute; the others keep what
    they computed. The numbers of a step are the same whichever do. transformers has the embeddings ask for gradients
    then, without which a class that checkpoints in torch's re-entrant way would pass none."""
    wanted = {"every_n_layers": every} if every > 1 else {}  # few classes that override it know this
    base.activation_checkpointing_enable({"use_reentrant": False}, **wanted)


def is_everywhere(base: Any) -> bool:
    """True when no block keeps its activations."""
    blocks = [one for one in base.modules() if isinstance(one, GradientCheckpointingLayer)]
    return bool(base.is_activation_checkpointing) and all(one.gradient_checkpointing for one in blocks)


def on_host() -> contextlib.AbstractContextManager[Any]:
    """The computer's memory, pinned where there is a GPU that reads it; nothing is copied where a run computes there."""
    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())


def keep_inputs(base: Any, place: Place) -> None:
    """Have what recomputed blocks start from wait in `place`. After `enable`, which undoes it."""
    for block in base.modules():
        recompute = vars(block).get("_gradient_checkpointing_func")
        if recompute is not None:
            block._gradient_checkpointing_func = _kept_in(place, recompute)


def _kept_in(place: Place, recompute: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        with place():
            return recompute(*arguments, **options)

    return run
