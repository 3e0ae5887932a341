"""A sample of model types that changes with the date, each with every proof; and a class that transformers does not know."""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from qlora_engine.architectures import trial
from qlora_engine.models import classes, spec
from tests.architectures import proofs

PROVEN = (
    "apertus", "arcee", "bamba", "bart", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2",
    "cohere2_moe", "ctrl", "cwm", "diffllama", "doge", "dots1", "ernie4_5", "exaone", "exaone4", "falcon",
    "flint", "gemma3", "glm4", "gpt2", "gpt_neox", "granite", "helium", "lara_mini", "lfm2",
    "llama", "mamba", "mistral", "mistral3", "olmo2", "pegasus", "sarvam_moe", "seed_oss", "smollm3",
    "solar_open", "stablelm", "starcoder2", "vaultgemma", "xglm", "youtu",
)  # fmt: skip
"""Quick ones among all that hold every proof; `make test-architectures` tries every type there is."""
TODAY = random.Random(dt.date.today().toordinal()).sample(PROVEN, 20)  # noqa: DTZ011 - any day will do


@pytest.mark.parametrize("kind", TODAY)
@pytest.mark.filterwarnings("ignore")
def test_a_type_holds_every_proof(kind: str, tmp_path: Path, home: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert proofs.finite(proofs.prove(kind, tmp_path))
    finally:
        torch.set_num_threads(threads)


class DoubledConfig(LlamaConfig):
    model_type = "doubled_for_a_test"


class DoubledLayer(LlamaDecoderLayer):
    """With a second way through: a linear layer that no table knows."""

    def __init__(self, config: DoubledConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.second_way = torch.nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        out: torch.Tensor = super().forward(hidden_states, *args, **kwargs)
        return out + self.second_way(hidden_states)


class DoubledModel(LlamaModel):
    config_class = DoubledConfig

    def __init__(self, config: DoubledConfig) -> None:
        super().__init__(config)
        self.layers = torch.nn.ModuleList(DoubledLayer(config, n) for n in range(config.num_hidden_layers))
        self.post_init()


class DoubledForCausalLM(LlamaForCausalLM):
    config_class = DoubledConfig

    def __init__(self, config: DoubledConfig) -> None:
        super().__init__(config)
        self.model = DoubledModel(config)
        self.post_init()


def test_a_class_that_nobody_knew_trains_without_a_line_added(tmp_path: Path, home: Path) -> None:
    AutoConfig.register(DoubledConfig.model_type, DoubledConfig, exist_ok=True)
    AutoModelForCausalLM.register(DoubledConfig, DoubledForCausalLM, exist_ok=True)
    found = trial.attempt(DoubledConfig.model_type, tmp_path / "tried")
    assert found.trains, found.reason
    facts = spec.facts_of_folder(tmp_path / "tried")
    assert {linear.name: linear.count for linear in facts.linears}["second_way"] == facts.layers
    assert not list((home / "cache").glob("classes/*")), "a class of a program's own is not kept"
    assert classes.is_known(DoubledConfig.model_type)
    assert proofs.finite(proofs.prove(DoubledConfig.model_type, tmp_path / "proven"))
