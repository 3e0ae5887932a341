"""Which known models fit a machine: searched, filtered, and the largest that takes the settings as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.memory import choosing
from qlora_engine.memory.choosing import Room
from qlora_engine.memory.estimate import PART_NAMES, Variant, estimate
from qlora_engine.models import known
from tests.engine.memory.settings import facts

CARD = choosing.room_of("RTX 4090")
GB = 10**9


def variant(name: str, settings: Mapping[str, object], length: int = 1024) -> Variant:
    config = TrainingConfig()
    for path, value in settings.items():
        config = with_value(config, path, value)
    return estimate(facts(name), config, seq_len=length, micro_batch=1, wants_advice=False).double_quant


@pytest.mark.parametrize(
    ("name", "placement", "below_gb"),
    [
        ("qwen3-30b-a3b", "device", 24),
        ("qwen3-30b-a3b", "host", 8),
        ("gpt-oss-20b", "device", 16),
        ("mixtral-8x7b", "device", 32),
    ],
)
def test_mixtures_fit_where_they_should_at_1024_tokens(name: str, placement: str, below_gb: float) -> None:
    """Experts in 4 bits; shown by part, with what is assumed of the device."""
    found = variant(name, {"quantization.expert_placement": placement})
    assert found.device_likely < below_gb * GB
    assert tuple(found.parts) == PART_NAMES
    assert sum(found.parts.values()) == found.peak_bytes + found.parts["device_context"]
    assert found.context.source
    in_4_bits = sum(one.weights for one in facts(name).stacked) / 2
    if placement == "device":
        assert found.parts["quantized_weights"] > in_4_bits
    else:
        assert found.parts["quantized_weights"] < in_4_bits
        assert found.numbers["quantized_weights"]["bytes of experts on the host"]


def test_a_search_finds_by_every_word() -> None:
    found = choosing.choices(TrainingConfig(), CARD, query="QWEN3 apache moe")
    names = [one.model.name for one in found]
    assert "qwen3-30b-a3b" in names
    assert all(one.model.licence == "Apache-2.0" for one in found)
    assert "llama-7b" not in names
    sizes = [one.model.facts().parameters for one in found]
    assert sizes == sorted(sizes, reverse=True)
    chats = choosing.choices(TrainingConfig(), CARD, query="qwen3-8b", is_chat=True)
    assert [one.model.name for one in chats] == ["qwen3-8b"], "and not its base"


def test_what_fits_says_how_long_rows_may_be() -> None:
    found = {one.model.name: one for one in choosing.choices(TrainingConfig(), CARD, query="llama-3.1")}
    small = found["llama-3.1-8b"]
    assert small.fits(CARD)
    assert small.longest is not None
    lengths = [*choosing.LENGTHS]
    after = lengths[lengths.index(small.longest) + 1]
    assert variant("llama-3.1-8b", {}, small.longest).device_likely <= CARD.usable_bytes
    assert variant("llama-3.1-8b", {}, after).device_likely > CARD.usable_bytes
    assert not found["llama-3.1-70b"].fits(CARD)
    assert found["llama-3.1-70b"].longest is None


def test_experts_go_to_the_host_only_where_they_must_and_can() -> None:
    model = known.find("qwen3-next-80b-a3b")
    assert model is not None
    away = choosing.choice_of(model, TrainingConfig(), CARD)
    assert away.fits(CARD)
    assert away.host_bytes > 35 * 2**30
    little = Room(CARD.title, "cuda", CARD.usable_bytes, CARD.context, host_bytes=16 * 2**30)
    assert not choosing.choice_of(model, TrainingConfig(), little).fits(little)
    small = known.find("gpt-oss-20b")
    assert small is not None
    assert choosing.choice_of(small, TrainingConfig(), CARD).host_bytes == 0


@pytest.mark.parametrize("length", [512, 2048, 4096])
def test_the_largest_model_takes_the_settings_as_they_are(length: int) -> None:
    """It is long enough for the rows, it fits with them, and nothing larger that does both is left out."""
    name = choosing.largest_model(TrainingConfig(), CARD, length, 1)
    assert name is not None
    chosen = facts(name)
    assert chosen.max_positions is not None
    assert chosen.max_positions >= length
    assert variant(name, {}, length).device_likely <= CARD.usable_bytes
    for other in known.known_models():
        its = other.facts()
        if its.parameters > chosen.parameters and (its.max_positions or 0) >= length:
            assert variant(other.name, {}, length).device_likely > CARD.usable_bytes, other.name


def test_a_model_without_the_named_layers_is_not_offered() -> None:
    config = with_value(TrainingConfig(), "lora.targets", ("qkv_proj",))
    name = choosing.largest_model(config, CARD, 512, 1)
    assert name is not None
    assert any(linear.name == "qkv_proj" for linear in facts(name).linears)


def test_this_machine_is_a_room_too() -> None:
    room = choosing.room_here()
    assert room.usable_bytes > 0
    assert room.device in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("variants", ("choosing", "advise", "estimate")),
        ("choosing", ("advise", "estimate")),
        ("advise", ("estimate",)),
    ],
)
def test_what_advice_is_made_of_imports_nothing_that_gives_it(name: str, later: tuple[str, ...]) -> None:
    source = Path(f"qlora_engine/memory/{name}.py").read_text(encoding="utf-8")
    for other in later:
        assert f"import {other}" not in source
        assert f"memory.{other} import" not in source
