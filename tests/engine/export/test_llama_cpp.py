"""llama.cpp is asked through the real shape of its Python package; a stand-in computes what it would."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from qlora_engine.export import gguf_tokenizer
from qlora_engine.export.reopened import gguf_of
from qlora_engine.models import gguf_facts, gguf_header, gguf_import
from tests.engine.export.conftest import Export, RunOf, failed, proven

CHECK = "llama.cpp computes the same"


class Llama:
    """As llama_cpp.Llama 0.3: keyword arguments, `tokenize` of bytes, `eval` appends, `scores` (n_ctx, n_vocab)."""

    noise = 0.0
    digit = 0

    def __init__(
        self, model_path: str, *, n_gpu_layers: int = 0, n_ctx: int = 512, n_batch: int = 512, logits_all: bool = False,
        lora_path: str | None = None, verbose: bool = True,
    ) -> None:  # fmt: skip
        assert logits_all
        assert not verbose
        file = Path(model_path)
        self._model = gguf_import.read(file, gguf_facts.facts_of_gguf(file, "x"), lambda *_: None)[0].eval()
        pre = str(gguf_header.read_header(file).fields["tokenizer.ggml.pre"])
        self._tokenizer = gguf_tokenizer.read(file, pre)
        self._n_ctx, self.n_tokens = n_ctx, 0
        self.scores = np.zeros((n_ctx, self._model.config.vocab_size), dtype=np.single)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        assert special
        found = self._tokenizer(text.decode(), add_special_tokens=add_bos)["input_ids"]
        return [*found[:-1], found[-1] + self.digit]

    def reset(self) -> None:
        self.n_tokens = 0

    def eval(self, tokens: Sequence[int]) -> None:
        assert self.n_tokens == 0
        with torch.no_grad():
            logits = self._model(torch.tensor([list(tokens)])).logits[0].numpy()
        self.scores[: len(tokens)] = logits + self.noise * np.random.default_rng(0).normal(size=logits.shape)
        self.n_tokens = len(tokens)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("llama_cpp")
    module.__spec__ = ModuleSpec("llama_cpp", None)
    module.Llama = type("Llama", (Llama,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    return module.Llama


def test_where_it_is_not_installed_the_proof_says_so(run_of: RunOf, export: Export) -> None:
    run = run_of("lora")
    checks = proven(run, export(run, "gguf"), "gguf")
    if "llama_cpp" not in sys.modules:
        assert checks[CHECK][0] is None
    assert failed(checks) == []


def test_a_right_file_passes(run_of: RunOf, export: Export, installed: Any) -> None:
    installed.noise = 1e-3
    run = run_of("lora")
    passed, numbers = proven(run, export(run, "gguf"), "gguf")[CHECK]
    assert passed is True
    assert 0 < numbers["kl_divergence"] < 0.05
    assert numbers["agreement"] > 0.9


@pytest.mark.parametrize("fault", ["noise", "digit", "file"])
def test_what_it_finds_fails_the_proof(
    run_of: RunOf, export: Export, installed: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of("lora")
    out = export(run, "gguf")
    if fault == "file":

        def refuses(self: Any, *_: Any, **__: Any) -> None:
            raise ValueError(f"Failed to load model from file: {gguf_of(out)}")

        monkeypatch.setattr(installed, "__init__", refuses)
    else:
        setattr(installed, fault, {"noise": 3.0, "digit": 1}[fault])
    assert proven(run, out, "gguf")[CHECK][0] is False
