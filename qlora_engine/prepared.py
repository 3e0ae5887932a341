"""What a worker that waits for its job imports meanwhile. Imports the ML stack, of course."""

from __future__ import annotations

import contextlib
import importlib

ANYWHERE = (
    "torch",
    "datasets",
    "safetensors.torch",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "qlora_engine.data",
)
WITHOUT_GPU = ("qlora_engine.training.recipe", "qlora_engine.evaluate.chat")
"""They import bitsandbytes, which asks every GPU that torch was built for what it is; a waiting worker touches none."""


def import_all() -> None:
    """One that cannot be imported is met, and told of, by the job."""
    for name in ANYWHERE:
        _import(name)
    import torch

    for name in () if torch.version.cuda or torch.version.hip else WITHOUT_GPU:
        _import(name)


def _import(name: str) -> None:
    with contextlib.suppress(Exception):
        importlib.import_module(name)
