"""What the class tells: equal to the table where both know a model, right for types that no table holds, quick, kept."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from qlora_engine.errors import EngineError
from qlora_engine.models import classes, families, known, spec, structure
from tests.support.tiny import make_tiny, tiny_config

HYBRID = {
    "model_type": "qwen3_next", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320, "intermediate_size": 128, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip


def parts(facts: spec.ModelFacts) -> dict[str, Any]:
    """What both sources must agree on."""
    return {
        "linears": sorted(facts.linears, key=lambda one: one.path),
        "stacked": sorted(facts.stacked, key=lambda one: one.path),
        "unquantized": sorted((replace(t, why="") for t in facts.unquantized), key=lambda one: one.name),
        "sizes": {key: getattr(facts, key) for key in classes.SIZES if key != "sliding_window"},
        "gated": facts.is_gated_mlp,
    }


def from_class(config: dict[str, Any]) -> spec.ModelFacts:
    text = spec.text_config(config)
    return classes.facts_from_class(config, text, "same", origin="known")


@pytest.mark.parametrize("kind", sorted({*families.DECODERS, "phi3", "phi", "gpt_neox", "opt"}))
def test_the_table_and_the_class_tell_the_same(kind: str, home: Path) -> None:
    config = tiny_config(kind).to_dict()
    assert parts(spec.facts_from_config(config, "same")) == parts(from_class(config))


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "gemma-3-4b", "phi-2", "mixtral-8x7b"])
def test_known_models_are_what_their_class_tells(name: str, home: Path) -> None:
    model = known.find(name)
    assert model is not None
    assert parts(model.facts()) == parts(replace(from_class(dict(model.config)), name=name))


def test_a_type_that_no_table_holds_is_read_off_its_class(home: Path) -> None:
    facts = spec.facts_from_config(HYBRID, "hybrid")
    assert facts.source == "class"
    names = {linear.name: linear.count for linear in facts.linears}
    assert names["q_proj"] == 1  # one block of four attends
    assert names["in_proj_qkvz"] == 3
    assert {one.name: (one.shape, one.count) for one in facts.stacked} == {
        "gate_up_proj": ((4, 128, 64), 4),
        "down_proj": ((4, 64, 64), 4),
    }
    roles = {t.name.rsplit(".", 2)[-2]: t.role for t in facts.unquantized}
    assert roles["conv1d"] == "kernel"
    assert roles["gate"] == "router"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    assert facts.blocks == structure.blocks_path(model, 2) == "model.layers"


def test_what_the_class_told_is_kept_and_told_again_without_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = spec.facts_from_config(HYBRID, "hybrid")
    monkeypatch.setattr(classes, "_here", lambda text: pytest.fail("built twice"))
    monkeypatch.setattr(classes, "_in_child", lambda text: pytest.fail("built twice"))
    assert spec.facts_from_config(HYBRID, "hybrid") == first
    assert spec.facts_from_dict(json.loads(json.dumps(spec.facts_to_dict(first)))) == first


def test_a_damaged_cache_is_built_again(home: Path) -> None:
    first = spec.facts_from_config(HYBRID, "hybrid")
    (kept,) = (home / "cache" / "classes").glob("*.json")
    kept.write_text('{"linears": 3}', encoding="utf-8")
    assert spec.facts_from_config(HYBRID, "hybrid") == first


def test_the_child_tells_what_the_class_tells_here(home: Path) -> None:
    assert classes._in_child(HYBRID) == classes._here(HYBRID)


def test_asking_does_not_import_the_ml_stack(home: Path, tmp_path: Path) -> None:
    script = (
        "import json, sys; from qlora_engine.models import spec\n"
        f"facts = spec.facts_from_config({HYBRID!r}, 'hybrid')\n"
        "print(json.dumps([facts.parameters, 'torch' in sys.modules, 'transformers' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [spec.facts_from_config(HYBRID, "x").parameters, False, False]


@pytest.mark.parametrize(
    ("config", "code", "words"),
    [
        ({"model_type": "llamma"}, "model.unknown_architecture", "not known to the installed transformers"),
        ({"model_type": "t5"}, "model.unsupported", "no causal language model"),
        ({}, "model.config", "no model_type"),
        ({**HYBRID, "hidden_size": "wide"}, "model.config", "qwen3_next"),
    ],
)
def test_what_cannot_be_built_gets_one_sentence(
    config: dict[str, Any], code: str, words: str, home: Path
) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        spec.facts_from_config(config, "x")
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_every_layer_with_weights_in_4_bits_or_kept_for_a_reason(home: Path) -> None:
    """Of a state-space block the kernel and what its scan reads directly are kept."""
    facts = spec.facts_from_config({"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2}, "m")
    assert {linear.name for linear in facts.linears} == {"in_proj"}
    kept = {t.name.rsplit(".", 2)[-2]: t.why for t in facts.unquantized if t.why}
    assert kept == dict.fromkeys(("dt_proj", "out_proj", "x_proj"), structure.READ)


def test_a_class_derived_from_linear_is_tried() -> None:
    class Same(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T + (0 if self.bias is None else self.bias)

    class Other(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).softmax(-1)

    assert structure.acts_as_linear(Same)
    assert not structure.acts_as_linear(Other)


def test_all_parameters_of_a_folder_are_accounted_for(tmp_path: Path, home: Path) -> None:
    facts = spec.facts_of_folder(make_tiny("qwen2_moe", tmp_path / "m", num_experts=4, num_experts_per_tok=2))
    assert facts.stored_bytes == 2 * facts.parameters
    assert facts.active_parameters < facts.parameters
