"""Blocks that recompute: which, chosen by what fits, and the same numbers whichever they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_engine.events import Noticed
from qlora_engine.memory.estimate import variant_of, with_blocks_chosen
from qlora_engine.models import known
from qlora_engine.training import recipe, recomputing, recovery
from qlora_engine.training.steps import dry_step
from tests.engine.memory.settings import config
from tests.engine.training.conftest import MakeConfig
from tests.support import tiny_runs
from tests.support.tiny import make_tiny

WAYS: dict[str, dict[str, Any]] = {
    "none": {"gradient_checkpointing": False},
    "every second": {"checkpoint_every": 2},
    "inputs sent away": {"offload_inputs": True},
    "both": {"checkpoint_every": 2, "offload_inputs": True},
    "what fits": {"checkpoint_every": 0},
}


@pytest.fixture(scope="module")
def three_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("models") / "three", num_hidden_layers=3)


def blocks_of(model: Any) -> list[bool]:
    return [
        one.gradient_checkpointing for one in model.modules() if isinstance(one, GradientCheckpointingLayer)
    ]


def test_whatever_is_recomputed_and_wherever_it_waits_the_numbers_are_the_same(
    make_config: MakeConfig, three_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, with dropout, whose masks must come again."""
    seen: dict[str, tuple[list[bool], int]] = {}
    said: dict[str, list[str]] = {}
    away = [0]

    def run(name: str, **changes: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
        away[0] = 0

        def looking(parts: Any, *rest: Any) -> None:
            dry_step(parts, *rest)
            seen[name] = (blocks_of(parts.model), away[0])

        with monkeypatch.context() as patch:
            patch.setattr(recipe, "dry_step", looking)
            events = tiny_runs.train(
                make_config(
                    model=three_layers,
                    lora__dropout=0.1,
                    training__max_steps=2,
                    **{f"training__{key}": value for key, value in changes.items()},
                )
            )
        said[name] = [e.message for e in tiny_runs.of(events, Noticed) if e.code == "training.recomputing"]
        weights = load_file(tiny_runs.run_dir(events) / "adapter" / "adapter_model.safetensors")
        return tiny_runs.losses(events), weights

    original = recomputing.on_host

    def counting() -> Any:
        away[0] += 1
        return original()

    monkeypatch.setattr(recomputing, "on_host", counting)
    losses, weights = run("every")
    for name, changes in WAYS.items():
        found, adapter = run(name, **changes)
        assert found == losses, name
        assert all(torch.equal(adapter[key], value) for key, value in weights.items()), name
    assert {name: blocks for name, (blocks, _) in seen.items()} == {
        "every": [True, True, True],
        "none": [False, False, False],
        "every second": [True, False, True],
        "inputs sent away": [True, True, True],
        "both": [True, False, True],
        "what fits": [True, False, False],
    }
    assert said.pop("what fits") == ["One block of 3 recomputes its activations: as few as fit"]
    assert not any(said.values())
    assert {name for name, (_, count) in seen.items() if count} == {"inputs sent away", "both"}


def test_out_of_memory_makes_every_block_recompute(
    make_config: MakeConfig, three_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[bool]] = []

    def failing(parts: Any, *rest: Any) -> None:
        seen.append(blocks_of(parts.model))
        if not all(seen[-1]):
            raise MemoryError
        dry_step(parts, *rest)

    monkeypatch.setattr(recipe, "dry_step", failing)
    changes = {"training__checkpoint_every": 3, "training__micro_batch": 1, "training__kept_weights_gib": 0.0}
    events = tiny_runs.train(make_config(model=three_layers, training__max_steps=1, **changes))
    assert seen == [[True, False, False], [True, True, True]]
    said = [e.message for e in events if getattr(e, "code", "") == "memory.micro_batch"]
    assert said == [f"Out of memory: {recovery.RELIEFS[recovery.RECOMPUTED]}; going on"]


def test_as_few_blocks_recompute_as_fit() -> None:
    facts, asked = known.find("llama-3.2-1b").facts(), config(1, training__checkpoint_every=0)
    size: dict[str, Any] = {"seq_len": 2048, "micro_batch": 1, "device": "cuda"}
    needs = [
        variant_of(facts, config(1, training__checkpoint_every=n), **size).device_likely
        for n in range(1, facts.layers + 1)
    ]
    assert needs == sorted(needs)
    assert needs[0] < needs[1] < needs[3] < needs[-1]

    def chosen(usable: int) -> tuple[int, bool]:
        training = with_blocks_chosen(facts, asked, usable_bytes=usable, **size).training
        return training.checkpoint_every, training.offload_inputs

    assert chosen(needs[-1]) == (facts.layers, False)
    assert chosen(needs[3]) == (max(n for n, need in enumerate(needs, 1) if need <= needs[3]), False)
    assert chosen(needs[0]) == (1, False)
    assert chosen(needs[0] - 1) == (1, True)
    fixed = config(1, training__checkpoint_every=2)
    assert with_blocks_chosen(facts, fixed, usable_bytes=0, **size) == fixed
