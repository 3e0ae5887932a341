"""What stays is equal, byte for byte, to what bitsandbytes and PEFT build on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Params4bit

from qlora_engine.config import TrainingConfig
from qlora_engine.memory.estimate import estimate
from qlora_engine.memory.optimizer_state import state_bytes
from qlora_engine.models import catalog
from qlora_engine.models.experts.stack import Stacked4bit
from qlora_engine.training import optim
from tests.engine.memory.measure import build
from tests.engine.memory.settings import COUNTED, config, estimated, facts
from tests.support.starter import starter_folder
from tests.support.tiny import make_tiny, tiny_config, with_new_tokens
from tests.support.tiny_experts import MIXTURES

ARCHITECTURES = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi3", "phi",
    "gpt_neox", "opt", "olmo2", "stablelm", "starcoder2", "cohere", "smollm3",
)  # fmt: skip


def storages(model: Any, *, has_buffers: bool) -> dict[str, int]:
    """Bytes of distinct storages by part, read off the built model; facts that a class told count its buffers too."""
    found: dict[str, dict[int, int]] = {
        "quantized_weights": {}, "quantization_constants": {}, "adapters": {}, "unquantized_weights": {},
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        part = "adapters" if "lora_" in name or "trainable_tokens" in name else "unquantized_weights"
        if isinstance(parameter, Params4bit):
            part = "quantized_weights"
            for constant in constants(parameter.quant_state):
                _add(found["quantization_constants"], constant)
        if isinstance(parameter, Stacked4bit):
            part = "quantized_weights"
            for constant in (*parameter.stored.tensors()[1:], *parameter.form.codes):
                if constant is not None and constant.numel():
                    _add(found["quantization_constants"], constant)
        _add(found[part], parameter)
    if has_buffers:
        for _, buffer in model.named_buffers():
            _add(found["unquantized_weights"], buffer)
    return {part: sum(sizes.values()) for part, sizes in found.items()}


def constants(state: Any) -> list[torch.Tensor]:
    kept = [state.absmax, state.code]
    return [*kept, state.state2.absmax, state.state2.code, state.offset] if state.nested else kept


def _add(sizes: dict[int, int], tensor: torch.Tensor) -> None:
    sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()


def compare(folder: Path, is_double: bool, **changes: Any) -> dict[str, int]:
    """The bytes of each part, predicted and built alike."""
    settings = config(quantization__double_quant=is_double, **changes)
    facts_of_it = catalog.facts_for(replace(settings.model, name=str(folder)))
    found = estimate(facts_of_it, settings, seq_len=64, micro_batch=1, device="cpu")
    built = storages(build(folder, settings), has_buffers=facts_of_it.source == "class")
    parts = found.chosen(is_double).parts
    assert {name: parts[name] for name in built} == built
    return built


@pytest.mark.parametrize("is_double", [True, False])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_static_parts_are_the_storages_that_are_built(kind: str, is_double: bool, tmp_path: Path) -> None:
    compare(make_tiny(kind, tmp_path / kind), is_double)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora__targets": "attention"},
        {"lora__targets": ("down_proj",)},
        {"lora__dtype": "bf16"},
        {"lora__rank": 3},
        {"lora__dora": True},
    ],
)
def test_adapters_are_the_ones_that_are_built(changes: dict[str, Any], tmp_path: Path) -> None:
    compare(make_tiny("llama", tmp_path / "llama"), True, **changes)


@pytest.mark.parametrize(("kind", "is_tied"), [("llama", True), ("llama", False), ("gpt2", True)])
def test_new_rows_of_the_embeddings_are_the_ones_that_are_built(
    kind: str, is_tied: bool, tmp_path: Path
) -> None:
    """Of the class's facts buffers are counted too: what PEFT keeps to undo a merge is not there."""
    folder = with_new_tokens(make_tiny(kind, tmp_path / kind, tie_word_embeddings=is_tied), 30)
    found = compare(folder, True, model__resize_embeddings=True)
    assert found["adapters"] - compare(folder, True)["adapters"] == 4 * 64 * 30 * (1 if is_tied else 2)


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_and_their_adapters_are_the_ones_that_are_built(kind: str, tmp_path: Path) -> None:
    folder = make_tiny(kind, tmp_path / kind, **MIXTURES[kind])
    compare(folder, True, lora__experts=True)
    compare(folder, False)
    compare(folder, True, quantization__experts="16bit")


@pytest.mark.starter
@pytest.mark.parametrize("is_double", [True, False])
def test_the_starter_byte_for_byte(is_double: bool) -> None:
    compare(starter_folder(), is_double)


@pytest.mark.parametrize(
    "name", ["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "lion_8bit", "adamw_torch_fused"]
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_optimizer_state_is_what_is_built(name: str, dtype: str) -> None:
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    sizes = (100, 4095, 4096, 5000, 120_000)
    parameters = [torch.nn.Parameter(torch.zeros(size, dtype=kind)) for size in sizes]
    optimizer = optim.build(
        TrainingConfig(training=config(training__optimizer=name).training).training, parameters
    )
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optim.step(optimizer)
    built: dict[int, int] = {}
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                _add(built, value)
    found = state_bytes(name, [(size, 1) for size in sizes], can_page=False, element_bytes=kind.itemsize)
    assert found.total == sum(built.values())


def test_only_large_states_are_paged() -> None:
    small = state_bytes("paged_adamw_8bit", [(99_999, 1)], can_page=True)
    large = state_bytes("paged_adamw_8bit", [(100_000, 1)], can_page=True)
    assert small.pageable == 0
    assert large.pageable == 200_000
    assert state_bytes("paged_adamw_8bit", [(100_000, 1)], can_page=False).pageable == 0


@pytest.mark.parametrize("name", COUNTED)
def test_double_quantization_saves_0373_bits(name: str) -> None:
    """The scales save 0.373 bits everywhere; below a billion parameters the tables of each layer take some of it back."""
    found = estimated(name)
    saved = (
        found.single_quant.parts["quantization_constants"]
        - found.double_quant.parts["quantization_constants"]
    )
    if found.parameters > 1e9:
        assert saved * 8 / found.quantized_parameters == pytest.approx(0.373, abs=0.005)
    layers = sum(linear.count for linear in facts(name).linears)
    tables = layers * (256 * 4 + 4)
    assert (saved + tables) * 8 / found.quantized_parameters == pytest.approx(0.373, abs=0.001)


def test_double_quantization_saves_3_gb_at_65b() -> None:
    found = estimated("llama-65b")
    saved = (
        found.single_quant.parts["quantization_constants"]
        - found.double_quant.parts["quantization_constants"]
    )
    assert saved / 1e9 == pytest.approx(3.02, abs=0.02)


def test_tiny_configs_cover_what_is_claimed() -> None:
    assert len(ARCHITECTURES) >= 12
    assert all(tiny_config(kind).model_type for kind in ARCHITECTURES)
