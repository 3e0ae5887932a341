"""Experts in 4 bits are the dequantized ones in all they compute and learn, one at a time, from wherever they are kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from qlora_engine import adapters
from qlora_engine.config import LoraSettings, QuantizationSettings
from qlora_engine.device import DevicePlan
from qlora_engine.errors import EngineError
from qlora_engine.memory.tracker import LiveBytes
from qlora_engine.models.experts.quantizer import FourBitConfig
from qlora_engine.models.experts.stack import Stacked4bit, stacks_of
from qlora_engine.models.four_bit import dequantized
from qlora_engine.models.loading import keep_weights_as_they_are
from qlora_engine.models.quiet import quiet
from tests.support.tiny import make_tiny
from tests.support.tiny_experts import MIXTURES

IDS = torch.randint(5, 300, (2, 10), generator=torch.Generator().manual_seed(3))
EVERYWHERE = LoraSettings(rank=4, alpha=8.0, experts=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("mixtures")
    return {kind: make_tiny(kind, made / kind, **settings) for kind, settings in MIXTURES.items()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loaded(folder: Path, *, on_host: bool = False, told: Any = None) -> Any:
    from qlora_engine.models.experts.host import keep_on_host

    settings = FourBitConfig(
        bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32, told=told,
        on_host=on_host,
    )  # fmt: skip
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=settings, dtype=torch.float32, device_map={"": "cpu"}
        ).requires_grad_(False)
    keep_weights_as_they_are(model)
    if on_host:
        keep_on_host(model, torch.device("cpu"))
    return model


def as_sixteen_bit(folder: Path) -> Any:
    """The plain class with every weight that was quantized as it comes out of 4 bits again."""
    source = loaded(folder)
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    for name, stack in stacks_of(source).items():
        plain.get_parameter(name).data = torch.stack([stack.expert(n) for n in range(stack.experts)])
    for name, module in source.named_modules():
        if isinstance(module, Linear4bit):
            weight = dequantized(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = weight
    return plain


def trained(
    model: Any,
    settings: LoraSettings = EVERYWHERE,
    steps: int = 3,
    rate: float = 0.01,
    ids: torch.Tensor = IDS,
) -> tuple[Any, list[float]]:
    """A PEFT model after some steps on one batch, recomputing its activations; and its losses."""
    tuned, _ = adapters.attach(model, settings, seed=1)
    tuned.train()
    tuned.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    tuned.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        loss = tuned(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return tuned, losses


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS, use_cache=False).logits
        return found


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_losses_are_those_of_dequantized_experts_wherever_they_are_kept(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """And what was trained loads in plain PEFT on 16-bit weights and computes the same."""
    tuned, losses = trained(loaded(folders[kind]))
    sixteen, wanted = trained(as_sixteen_bit(folders[kind]))
    _, from_host = trained(loaded(folders[kind], on_host=True))
    assert losses == pytest.approx(wanted, rel=1e-3)
    assert losses == from_host, "bit for bit"
    assert losses[-1] < losses[0]
    adapters.save(tuned, tmp_path, folders[kind])
    with quiet():
        plain = PeftModel.from_pretrained(as_sixteen_bit(folders[kind]), tmp_path)
    torch.testing.assert_close(logits(tuned), logits(plain), rtol=1e-4, atol=1e-4)
    with plain.disable_adapter():
        assert float((logits(plain) - logits(tuned)).abs().max()) > 0.05, "the adapter acts"
    assert {n for n, p in tuned.named_parameters() if p.requires_grad} == {
        n for n, p in sixteen.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("kind", MIXTURES)
def test_one_expert_is_dequantized_at_a_time(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In forward, in the forward that backward repeats, and in backward: none is kept for later."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    whole = Stacked4bit.expert

    def watched(stack: Stacked4bit, index: int) -> torch.Tensor:
        nonlocal most
        weight = whole(stack, index)
        alive.append(weakref.ref(weight))
        most = max(most, sum(ref() is not None for ref in alive))
        return weight

    monkeypatch.setattr(Stacked4bit, "expert", watched)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        trained(loaded(folders[kind]), steps=1)
    finally:
        if was_enabled:
            gc.enable()
    assert most == 1
    assert len(alive) > 8


def test_the_peak_of_a_step_holds_no_layer_of_experts(tmp_path: Path) -> None:
    """32 experts of 192 KiB a block: a step needs less than a block of them dequantized, and less than two in 16 bits."""
    folder = make_tiny(
        "qwen3_moe",
        tmp_path / "wide",
        num_experts=32,
        moe_intermediate_size=256,
        num_experts_per_tok=4,
        hidden_size=64,
    )
    model = loaded(folder)
    block = sum(4 * stack.weights for name, stack in stacks_of(model).items() if ".0." in name)
    tuned, _ = adapters.attach(model, LoraSettings(rank=1, targets="attention"), seed=1)
    tuned.train()
    tuned.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    tuned.enable_input_require_grads()
    with LiveBytes(tuned.parameters()) as live:
        tuned(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert live.peak_bytes < block / 4


def test_only_experts_that_tokens_reached_are_dequantized(folders: dict[str, Path]) -> None:
    model = loaded(folders["qwen3_moe"])
    reached: set[tuple[int, int]] = set()
    for stack in stacks_of(model).values():
        stack.on_dequantize = lambda found, index: reached.add((id(found), index))
    with torch.no_grad():
        model(IDS[:1, :1])
    assert len(reached) == 2 * 2 * 2, "a token, two experts of four, two stacks in each of two blocks"


@pytest.mark.parametrize("on_host", [False, True])
def test_the_rest_of_the_experts_stay_where_they_are(folders: dict[str, Path], on_host: bool) -> None:
    """At most two blocks are fetched from the host at once, each once a pass."""
    model = loaded(folders["qwen3_moe"], on_host=on_host)
    place = next(iter(stacks_of(model).values())).place
    assert (place is not None) == on_host
    if place is None:
        return
    assert not place._there  # type: ignore[attr-defined]
    logits(model)
    assert place.fetched == 2  # type: ignore[attr-defined]
    assert len(place._there) <= 2  # type: ignore[attr-defined]


def test_adapters_on_experts_learn_a_row_that_attention_at_rank_1_cannot(folders: dict[str, Path]) -> None:
    """A hundred tokens by heart."""
    row = torch.randint(5, 300, (1, 100), generator=torch.Generator().manual_seed(3))

    def learned(settings: LoraSettings) -> float:
        model = loaded(folders["qwen3_moe"])
        model.lm_head.weight.data *= 20  # a random head is too short for any sentence
        return trained(model, settings, steps=30, rate=0.01, ids=row)[1][-1]

    assert learned(LoraSettings(rank=8, alpha=16.0, targets="attention", experts=True)) < 0.5
    assert learned(LoraSettings(rank=1, alpha=2.0, targets="attention")) > 2.0


class Largest(TorchDispatchMode):
    """The most elements that a floating-point result had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point() and result.device.type != "meta":
            self.elements = max(self.elements, result.numel())
        return result


def test_experts_are_quantized_one_by_one_while_loading(folders: dict[str, Path], tmp_path: Path) -> None:
    """Of files that keep each expert by itself, no more than an expert is ever there in 16 bits."""
    folder = make_tiny("mixtral", tmp_path / "many", num_local_experts=16, intermediate_size=128)
    with Largest() as seen:
        stacks = stacks_of(loaded(folder))
    assert next(iter(stacks.values())).weights == 16 * 256 * 64
    assert seen.elements <= max(320 * 64, 256 * 64)
    told: list[int] = []
    model = loaded(folder, told=told.append)
    linears = sum(isinstance(module, Linear4bit) for module in model.modules())
    assert told == [linears + 4] * (linears + 4)


@pytest.mark.parametrize("placement", ["device", "host"])
def test_what_was_built_is_reported(
    folders: dict[str, Path], home: Path, cpu: DevicePlan, placement: str
) -> None:
    from qlora_engine.models import loading

    settings = QuantizationSettings(expert_placement=placement)
    found = loading.load_quantized(folders["qwen3_moe"], settings, cpu).report
    assert found.expert_stacks == 4
    assert found.expert_parameters == 2 * 4 * (128 * 64 + 64 * 64)
    assert (found.host_bytes > found.expert_parameters / 2) == (placement == "host")
    plain = loading.load_quantized(folders["qwen3_moe"], QuantizationSettings(experts="16bit"), cpu).report
    assert plain.expert_stacks == 0
    assert plain.unquantized_bytes - found.unquantized_bytes == 4 * found.expert_parameters


def test_a_model_without_experts_is_told_that_it_has_none(tmp_path: Path, cpu: DevicePlan) -> None:
    with pytest.raises(EngineError, match="has no experts"):
        trained(loaded(make_tiny("llama", tmp_path / "llama")))
