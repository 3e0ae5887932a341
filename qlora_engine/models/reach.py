"""Which linear layers of a class learn when it predicts text, found by trying: a tiny replica runs once forward and back.

Some are built for what this program never does: attention to an encoder's output, a pooler, a tower for pictures. Others only
choose which tokens are seen, and a choice has no gradient. An adapter there would stay what it was. Imports the ML stack.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from qlora_engine.models import structure, tiny
from qlora_engine.models.parts import pattern
from qlora_engine.models.quiet import quiet

TOKENS = 24
"""Longer than the windows of a replica, so that what only acts beyond them is seen."""
FIRST_TOKEN = 4
"""Those before it are the ends of texts in a replica."""


def unreached(config: Any) -> tuple[str, ...]:
    """Patterns of the linear layers that no gradient reaches, sorted; none where no replica of the class can be run, and the
    first step of a run then tells (training.guard)."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for made in (tiny.replica_of, _of_type):
            try:
                return _tried(made(config))
            except Exception:  # noqa: BLE001 - whatever a class says against a replica, it tells nothing of the class
                continue
    return ()


def _of_type(config: Any) -> Any:
    return tiny.tiny_config(str(config.model_type))


def _tried(config: Any) -> tuple[str, ...]:
    """A layer is reached if one of its kind is: which experts get tokens is chance."""
    model = tiny.with_values(AutoModelForCausalLM.from_config(config, dtype=torch.float32)).train()
    model.requires_grad_(False)
    linears = structure.quantizable_linears(model)
    for module in linears.values():
        module.weight.requires_grad_(True)
    ids = torch.randint(FIRST_TOKEN, model.get_input_embeddings().weight.shape[0], (1, TOKENS))
    logits = model(input_ids=ids, use_cache=False).logits.float()
    (logits * torch.randn_like(logits)).sum().backward()
    found: dict[str, bool] = defaultdict(bool)
    for name, module in linears.items():
        gradient = module.weight.grad
        found[pattern(name)] |= gradient is not None and bool(gradient.any())
    if not any(found.values()):
        return ()
    return tuple(sorted(name for name, is_reached in found.items() if not is_reached))
