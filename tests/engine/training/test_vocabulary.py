"""Tokenizer and embedding of different sizes are told before the load, and dead adapters after the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from qlora_engine import config_io
from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.events import Event, ModelLoaded, Noticed
from qlora_engine.jobs import TrainJob
from qlora_engine.models import catalog
from qlora_engine.training import recipe, vocabulary
from qlora_engine.training.guard import AdapterGuard
from tests.engine.training.conftest import MakeConfig
from tests.support import tiny_runs
from tests.support.tiny import make_tiny, tiny_tokenizer


def test_a_token_without_an_embedding_ends_the_run_before_the_load(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """The template writes a token that was added behind the last row: an IndexError in the middle of a step once."""
    folder = make_tiny("llama", tmp_path / "short")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<|extra{n}|>" for n in range(320)], special_tokens=True)
    last = len(tokenizer) - 1
    token = tokenizer.convert_ids_to_tokens(last)
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|im_end|>", token)
    tokenizer.save_pretrained(folder)
    job = TrainJob(config_io.to_dict(make_config(model__name=str(folder))))
    seen: list[Event] = []
    with pytest.raises(EngineError, match=rf"has {last + 1:,} entries .* embeddings for 320") as caught:
        seen.extend(recipe.train(job, Control()))
    assert caught.value.code == "model.vocabulary"
    assert not tiny_runs.of(seen, ModelLoaded)


def test_entries_that_no_row_uses_are_told_and_do_no_harm() -> None:
    tokenizer = tiny_tokenizer()
    more = list(vocabulary.compare(tokenizer, len(tokenizer) - 3, [[1, 2, 3]]))
    assert [e.code for e in more if isinstance(e, Noticed)] == ["model.vocabulary"]
    far = list(vocabulary.compare(tokenizer, len(tokenizer) + 2000, [[1, 2, 3]]))
    assert [
        e.message
        for e in far
        if isinstance(e, Noticed) and f"embeddings for {len(tokenizer) + 2000:,}" in e.message
    ]
    assert list(vocabulary.compare(tokenizer, len(tokenizer) + 1000, [[1, 2, 3]])) == []
    tokenizer.pad_token = None
    bare = list(vocabulary.compare(tokenizer, len(tokenizer), [[]]))
    assert [e.code for e in bare if isinstance(e, Noticed)] == ["model.no_pad"]


def test_a_tokenizer_without_padding_trains_the_same_model(make_config: MakeConfig, tmp_path: Path) -> None:
    """Short rows are filled with the end token, which is masked by length."""
    folder = make_tiny("llama", tmp_path / "bare", num_hidden_layers=1)
    settings = {"model__name": str(folder), "training__join_rows": False, "training__max_steps": 2}
    padded = tiny_runs.losses(tiny_runs.train(make_config(**settings)))
    bare = tiny_tokenizer()
    bare.pad_token = None
    bare.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token_id is None
    events = tiny_runs.train(make_config(**settings))
    assert tiny_runs.losses(events) == padded
    assert "model.no_pad" in [e.code for e in tiny_runs.of(events, Noticed)]


def test_a_revision_of_what_lies_on_the_disk_is_refused(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "llama")
    for name in (str(folder), "starter", str(tmp_path / "model.gguf")):
        with pytest.raises(EngineError, match="no hub model"):
            catalog.resolve(name, "v2")


class Two(torch.nn.Module):
    """Two adapters of which a step moves as many as it is told."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("first", "second"):
            layer = torch.nn.Module()
            layer.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(2, 2, bias=False)})
            torch.nn.init.zeros_(layer.lora_B["default"].weight)
            self.add_module(name, layer)

    def move(self, *names: str) -> None:
        for name in names:
            self.get_submodule(name).lora_B["default"].weight.data += 1


def test_an_adapter_that_no_step_moves_is_named_once() -> None:
    model = Two()
    guard = AdapterGuard(model)
    model.move("first")
    assert list(guard.after(0.0, True, list)) == [], "warm-up begins with a rate of 0"
    told = list(guard.after(0.1, True, list))
    assert [e.code for e in told if isinstance(e, Noticed)] == ["adapters.unmoved"]
    assert "1 of 2 adapters did not change in the first step: second" in told[0].message  # type: ignore[attr-defined]
    assert list(guard.after(0.1, True, list)) == []


def test_matrices_that_do_not_begin_at_zero_must_move_too() -> None:
    model = Two()
    model.move("first", "second")
    guard = AdapterGuard(model)
    model.move("second")
    assert len(list(guard.after(0.1, True, list))) == 1
    with pytest.raises(EngineError, match="changed no adapter"):
        list(AdapterGuard(model).after(0.1, True, list))


def test_the_head_is_refused_with_the_true_reason(make_config: MakeConfig) -> None:
    with pytest.raises(EngineError, match="computes the logits"):
        tiny_runs.train(make_config(lora__targets=("lm_head",)))
