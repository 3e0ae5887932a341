"""Decoder blocks through torch's compiler, which is imported when this is used. Imports the ML stack.

One compiled function serves all blocks of a class and rows of any length. Passes without gradients, and attention over rows
laid end to end, stay outside of it. Blocks that recompute are not compiled: a graph that a later block had made was met by the
recomputing of an earlier one, which remembers what another graph kept.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qlora_engine import paths
from qlora_engine.training.fast import segments

BACKEND = "inductor"
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


class _Compiled:
    """What replaces the forward of a block."""

    def __init__(self, block: Any, function: Any) -> None:
        self._block, self._function = block, function

    def __call__(self, *args: Any, **named: Any) -> Any:
        block = self._block
        if not torch.is_grad_enabled():
            return type(block).forward(block, *args, **named)
        return self._function(block, *args, **named)


def blocks_of(model: Any) -> list[Any]:
    """Those whose own forward transformers has wrapped, so that it can be reached inside of the recomputing."""
    return [
        one
        for one in model.modules()
        if isinstance(one, GradientCheckpointingLayer) and hasattr(type(one).forward, "__wrapped__")
    ]


def install(model: Any) -> None:
    """Have every block of `model` compiled when it first runs with gradients.

    Raises:
        ValueError: it has none that can be.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError("its blocks are none that transformers recomputes")
    if any(block.gradient_checkpointing for block in blocks):
        raise ValueError("its blocks recompute, and would meet graphs that were made after their first pass")
    _prepare()
    functions: dict[Any, Any] = {}
    for block in blocks:
        own = type(block).forward.__wrapped__
        if own not in functions:
            functions[own] = torch.compile(own, dynamic=True, backend=BACKEND)
        block.forward = _Compiled(block, functions[own])


def _prepare() -> None:
    """Compile in this process, so that none is left when it ends, and keep what was compiled among the program's own caches."""
    os.environ.setdefault(CACHE_VARIABLE, str(paths.cache_dir() / "compiled"))
    import torch._dynamo.eval_frame  # before the compiler is there, nothing is marked for it (compiler_later)
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1
    if segments.NAME in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(segments.NAME, torch.compiler.disable(segments.attention))


def never_fail() -> None:
    """From here on, what cannot be compiled for a new shape runs as it is: a run must not end for that."""
    torch._dynamo.config.suppress_errors = True


def remove(model: Any) -> None:
    """The blocks' own forward again; what was compiled is let go."""
    for block in blocks_of(model):
        if isinstance(vars(block).get("forward"), _Compiled):
            del block.forward
    if segments.NAME in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(segments.NAME, segments.attention)
    torch._dynamo.reset()
    torch._dynamo.config.suppress_errors = False
