"""Asks llama.cpp itself, where its Python package is installed, what a GGUF file computes. Imports numpy and torch.

API: https://llama-cpp-python.readthedocs.io/en/latest/api-reference/: `Llama(model_path, logits_all=True)`, `tokenize`,
`eval`, and `scores`, which holds the logits of every token that was evaluated.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

PACKAGE = "llama_cpp"
KL_ALLOWED = 0.05
"""llama.cpp multiplies in 16 or 8 bits, so its logits are near and never equal. Nats per token; a wrong tokenizer, a wrong
order of heads or a wrong norm cost whole nats."""


@dataclass(frozen=True)
class Verdict:
    """`passed` is None where llama.cpp is not installed."""

    passed: bool | None
    detail: str
    kl: float | None = None
    agreement: float | None = None


def ask(file: Path, prompts: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], texts: Sequence[str],
        tokens_of: Callable[[str], list[int]]) -> Verdict:  # fmt: skip
    """Load `file`, compare its tokens of `texts` with `tokens_of`, and its logits of each prompt, (1, length), with `wanted`,
    (length, vocabulary)."""
    if importlib.util.find_spec(PACKAGE) is None:
        return Verdict(None, "llama-cpp-python is not installed here")
    package = importlib.import_module(PACKAGE)
    longest = max(prompt.shape[1] for prompt in prompts)
    model = package.Llama(
        model_path=str(file), n_ctx=max(512, longest), n_batch=max(512, longest), logits_all=True, n_gpu_layers=0,
        verbose=False,
    )  # fmt: skip
    different = [text for text in texts if _tokens(model, text) != tokens_of(text)]
    found = [_logits(model, prompt) for prompt in prompts]
    kl = max(_divergence(a, b) for a, b in zip(found, wanted, strict=True))
    same = [bool((a.argmax(-1) == b.argmax(-1))[-1]) for a, b in zip(found, wanted, strict=True)]
    agreement = float(
        torch.cat([(a.argmax(-1) == b.argmax(-1)).float() for a, b in zip(found, wanted, strict=True)]).mean()
    )
    said = f"KL divergence {kl:.1e} nats, same first choice at {agreement:.1%} of the places, allowed {KL_ALLOWED}"
    if different:
        said = f"other tokens for {different[0]!r}; {said}"
    return Verdict(not different and kl <= KL_ALLOWED and all(same), said, kl, agreement)


def _tokens(model: Any, text: str) -> list[int]:
    return [int(token) for token in model.tokenize(text.encode(), add_bos=False, special=True)]


def _logits(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    tokens = [int(token) for token in prompt[0]]
    model.reset()
    model.eval(tokens)
    return torch.from_numpy(np.array(model.scores[: len(tokens)], dtype=np.float32))


def _divergence(found: torch.Tensor, wanted: torch.Tensor) -> float:
    vocabulary = min(found.shape[-1], wanted.shape[-1])
    kl = torch.nn.functional.kl_div(
        found[:, :vocabulary].log_softmax(-1),
        wanted[:, :vocabulary].log_softmax(-1),
        log_target=True,
        reduction="none",
    )
    return float(kl.sum(-1).mean())
