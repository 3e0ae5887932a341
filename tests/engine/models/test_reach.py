"""Layers that predicting text never reaches: found by trying, in 4 bits all the same, without adapters."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig

from qlora_engine import adapters
from qlora_engine.architectures import trial
from qlora_engine.memory import static
from qlora_engine.models import reach, spec, structure

CROSS = {f"model.decoder.layers.*.encoder_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "out_proj")}


def test_attention_to_an_encoder_that_is_not_there_gets_no_adapters(tmp_path: Path, home: Path) -> None:
    folder = trial.make("pegasus", tmp_path / "base")
    facts = spec.facts_of_folder(folder)
    assert {linear.path for linear in facts.linears if not linear.is_reached} == CROSS
    assert all(linear.is_quantized for linear in facts.linears)
    model = trial.prepare(folder).loaded.model
    for targets in ("all-linear", "attention"):
        told = {t.path: t.count for t in static.target_linears(facts, targets)}
        assert not CROSS & told.keys()
        chosen = adapters.resolve_targets(model, targets)
        assert not any("encoder_attn" in name for name in chosen)
        linears = structure.linear_layers(model)
        found = [path for path in linears if any(f".{path}".endswith(f".{name}") for name in chosen)]
        assert len(found) == sum(told.values())
    (asked,) = static.target_linears(facts, ("encoder_attn.q_proj",))  # what is asked for by name is done
    assert asked.path in CROSS
    assert structure.UNREACHED in " ".join(trial.notes_of(facts))


def test_trying_leaves_the_random_numbers_alone() -> None:
    config = AutoConfig.for_model("llama", hidden_size=64, num_hidden_layers=3, vocab_size=320)
    before = torch.get_rng_state()
    assert reach.unreached(config) == ()
    assert torch.equal(before, torch.get_rng_state())


def test_a_class_of_which_no_replica_runs_tells_nothing() -> None:
    assert reach.unreached(object()) == ()
