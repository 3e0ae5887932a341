"""The base really is NF4 with double quantization, and training changes nothing of it: bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from qlora_engine.events import ModelLoaded
from qlora_engine.models import loading
from qlora_engine.training import optim, setup
from tests.engine.training.conftest import MakeConfig
from tests.support import tiny_runs

# arXiv 2305.14314, appendix E.
NF4_LEVELS = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
Seen = dict[str, torch.Tensor]


class Watch:
    """Keeps a copy of everything the base has right after loading, and looks at the gradients of each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model: Any = None
        self.before: Seen = {}
        self.steps = 0
        self._load, self._step = loading.load_quantized, optim.step
        monkeypatch.setattr(setup.loading, "load_quantized", self._loaded)
        monkeypatch.setattr(optim, "step", self._stepped)

    def _loaded(self, *args: Any, **kwargs: Any) -> loading.LoadedModel:
        loaded = self._load(*args, **kwargs)
        self.model = loaded.model
        self.before = {name: tensor.clone() for name, tensor in everything(loaded.model).items()}
        return loaded

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        self.steps += 1
        for name, parameter in self.model.named_parameters():
            is_adapter = "lora_" in name
            assert parameter.requires_grad == is_adapter, name
            assert (parameter.grad is not None) == is_adapter, name
        self._step(optimizer)


def everything(model: Any) -> Seen:
    """Every tensor of the base under its own name: parameters, buffers and quantization constants, without adapters."""
    found: Seen = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "lora_" not in name:
            found[name.replace(".base_layer", "")] = tensor.detach()
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            found |= {f"{name.replace('.base_layer', '')}.{key}": t for key, t in constants(module).items()}
    return found


def constants(module: Linear4bit) -> Seen:
    state = module.weight.quant_state
    found = {"absmax": state.absmax, "code": state.code}
    if state.nested:
        found |= {"offset": state.offset, "absmax2": state.state2.absmax, "code2": state.state2.code}
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training__gradient_checkpointing": False, "lora__dropout": 0.1},
        {"training__optimizer": "adamw_8bit", "data__packing": True},
        {"lora__dora": True},
        {"lora__init": "loftq"},
        {"quantization__double_quant": False},
        {"quantization__quant_type": "fp4"},
    ],
)
def test_the_base_is_bit_identical_before_and_after(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    watch = Watch(monkeypatch)
    run = tiny_runs.finished_run(make_config(training__sample_prompts=("Say water",), **changes))
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert watch.steps == 4
    after = everything(watch.model)
    assert set(after) == set(watch.before)
    for name, tensor in watch.before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name


def test_the_adapters_did_change(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    tiny_runs.train(make_config())
    moved = [bool(p.any()) for name, p in watch.model.named_parameters() if "lora_B" in name]
    assert len(moved) == 7
    assert all(moved)


def test_the_base_is_nf4_with_double_quantization(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    events = tiny_runs.train(make_config())
    (loaded,) = tiny_runs.of(events, ModelLoaded)
    total = 0
    linears = [m for m in watch.model.modules() if isinstance(m, Linear4bit)]
    for module in linears:
        elements, found = module.in_features * module.out_features, constants(module)
        blocks = elements // 64
        assert module.weight.dtype == torch.uint8
        assert module.weight.numel() == elements // 2
        assert found["code"].tolist() == pytest.approx(NF4_LEVELS)
        assert (found["absmax"].dtype, found["absmax"].numel()) == (torch.uint8, blocks)
        assert (found["absmax2"].dtype, found["absmax2"].numel()) == (torch.float32, math.ceil(blocks / 256))
        assert module.weight.quant_state.state2.blocksize == 256
        total += blocks + 4 * math.ceil(blocks / 256) + 4 * 16 + 4 * 256 + 4
    assert len(linears) == 7
    assert loaded.report["constants_bytes"] == total


def test_without_double_quantization_each_block_has_its_own_float(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    events = tiny_runs.train(make_config(quantization__double_quant=False))
    (loaded,) = tiny_runs.of(events, ModelLoaded)
    linears = [m for m in watch.model.modules() if isinstance(m, Linear4bit)]
    assert {constants(m)["absmax"].dtype for m in linears} == {torch.float32}
    assert loaded.report["constants_bytes"] == sum(
        4 * (m.in_features * m.out_features // 64) + 4 * 16 for m in linears
    )
