"""The closed form: against the rehearsal over a grid, what must grow with what, its speed, and its totals."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_engine.config import OPTIMIZERS
from qlora_engine.memory.estimate import PART_NAMES, SIDES, Estimate, estimate
from qlora_engine.memory.rehearsal import Question, rehearse
from tests.engine.memory.settings import config, estimated, facts
from tests.engine.memory.test_known_models import PUBLISHED

NAMES = sorted(PUBLISHED)
LADDER = ("smollm2-135m", "llama-3.2-1b", "llama-7b", "llama-13b", "llama-33b", "llama-65b")


def drawn(rng: random.Random) -> tuple[str, int, int, str, dict[str, Any]]:
    """A setting of the grid: model, tokens, rows, device, changes."""
    changes = {
        "training__gradient_checkpointing": rng.random() < 0.6,
        "training__loss": rng.choice(["chunked", "full"]),
        "training__optimizer": rng.choice(["paged_adamw_8bit", "paged_adamw_32bit", "adamw_torch_fused"]),
        "lora__rank": rng.choice([8, 16, 64]),
        "lora__targets": rng.choice(["all-linear", "attention"]),
        "lora__dtype": rng.choice(["fp32", "bf16"]),
    }
    return (
        rng.choice(NAMES),
        rng.choice([128, 512, 1024, 2048, 4096]),
        rng.choice([1, 1, 2, 4]),
        rng.choice(["cuda", "cuda", "cpu"]),
        changes,
    )


def error(name: str, seq_len: int, rows: int, device: str, changes: dict[str, Any]) -> float:
    """Closed form / rehearsal - 1."""
    closed = estimated(name, seq_len, rows, device=device, **changes).double_quant.peak_bytes
    rehearsed = rehearse(Question(facts(name), config(rows, **changes), seq_len, rows, device))
    return closed / rehearsed.double_quant.peak_bytes - 1


def test_the_grid() -> None:
    """24 settings here; `make bench-memory` takes 240 and prints them."""
    rng = random.Random(20240514)
    errors = {str(one): error(*one) for one in (drawn(rng) for _ in range(24))}
    worst = max(errors, key=lambda one: abs(errors[one]))
    assert abs(errors[worst]) < 0.015, (worst, errors[worst])


@pytest.mark.parametrize(
    ("name", "seq_len", "rows", "device", "changes"),
    [
        ("starcoder2-3b", 2048, 2, "cpu", {"lora__rank": 64}),
        ("nemotron-mini-4b", 4096, 2, "cpu", {}),
        ("glm-4-9b", 2048, 1, "cpu", {"lora__targets": "attention", "training__gradient_checkpointing": False}),
        ("gemma-2-2b", 2048, 2, "cpu", {"lora__dtype": "bf16"}),
        ("olmoe-1b-7b", 2048, 2, "cuda", {"lora__dtype": "bf16"}),
        ("mixtral-8x7b", 1024, 1, "cuda", {"lora__experts": True}),
        ("mixtral-8x7b", 1024, 1, "cuda", {"quantization__experts": "16bit"}),
        ("olmo-2-7b", 2048, 2, "cuda", {"lora__dtype": "bf16"}),
        ("phi-1.5", 2048, 2, "cuda", {"lora__targets": "attention", "training__gradient_checkpointing": False}),
        ("smollm2-135m", 2048, 1, "cuda", {"training__checkpoint_every": 3}),
        ("smollm2-135m", 2048, 1, "cuda", {"training__offload_inputs": True}),
        ("phi-1.5", 2048, 2, "cpu", {"training__checkpoint_every": 2}),
        ("gemma-2-2b", 2048, 1, "cuda", {"training__checkpoint_every": 4, "training__offload_inputs": True}),
    ],
)  # fmt: skip
def test_what_was_once_counted_wrong(
    name: str, seq_len: int, rows: int, device: str, changes: dict[str, Any]
) -> None:
    """What comes and goes in a step alone, without the weights that would hide an error."""
    closed = estimated(name, seq_len, rows, device=device, **changes).double_quant
    rehearsed = rehearse(Question(facts(name), config(rows, **changes), seq_len, rows, device)).double_quant
    moving = ("activations", "step_temporary", "gradients")
    one, two = (sum(side.parts[part] for part in moving) for side in (closed, rehearsed))
    assert one == pytest.approx(two, rel=0.03)


@pytest.mark.parametrize(
    "changes", [{"data__packing": True}, {"lora__dropout": 0.1}, {"training__effective_batch": 16}]
)
def test_what_the_grid_leaves_out(changes: dict[str, Any]) -> None:
    for is_checkpointed in (True, False):
        assert (
            abs(
                error(
                    "llama-3.2-1b",
                    1024,
                    1,
                    "cuda",
                    {**changes, "training__gradient_checkpointing": is_checkpointed},
                )
            )
            < 0.005
        )


def test_it_takes_milliseconds() -> None:
    estimated("llama-65b")
    began = time.perf_counter()
    for _ in range(10):
        estimated("llama-65b")
    assert (time.perf_counter() - began) / 10 < 0.020


def test_parts_and_totals_agree() -> None:
    found = estimated("llama-65b", 2048, 2)
    for name in SIDES:
        side = found.sides[name]
        assert tuple(side.parts) == PART_NAMES
        assert side.peak_bytes == sum(side.parts.values()) - side.parts["device_context"]
        assert side.peak_bytes <= side.reserved_bytes <= side.device_likely
        assert side.device_low <= side.device_likely <= side.device_high
    assert found.lora_16bit == found.sides["lora_16bit"].peak_bytes > 3 * found.double_quant.peak_bytes
    assert found.full_16bit == found.sides["full_16bit"].peak_bytes > 780e9


def test_other_moments() -> None:
    side = estimated("llama-7b").double_quant
    base = (
        side.parts["quantized_weights"]
        + side.parts["quantization_constants"]
        + side.parts["unquantized_weights"]
    )
    assert set(side.moments) == {"loading", "evaluating", "generating", "saving", "resuming", "host_loading"}
    assert base < side.moments["loading"] < 1.1 * base
    assert base < side.moments["evaluating"] < side.peak_bytes
    assert all(value > base for name, value in side.moments.items() if name != "host_loading")


sizes = st.integers(16, 8192)
rows = st.integers(1, 16)
ranks = st.sampled_from([1, 4, 8, 16, 64, 256])
names = st.sampled_from(NAMES)
optimizers = st.sampled_from(sorted(OPTIMIZERS))
flags = st.booleans()
kinds = st.sampled_from(["chunked", "full"])
devices = st.sampled_from(["cuda", "cpu"])


def both(found: Estimate) -> tuple[int, int]:
    return found.double_quant.peak_bytes, found.single_quant.peak_bytes


@settings(max_examples=60, deadline=None)
@given(names, sizes, sizes, rows, flags, kinds, devices)
def test_longer_rows_never_need_less(
    name: str, one: int, other: int, count: int, is_checkpointed: bool, loss: str, device: str
) -> None:
    short, long = sorted((one, other))
    changes = {"training__gradient_checkpointing": is_checkpointed, "training__loss": loss}
    less, more = (both(estimated(name, n, count, device=device, **changes)) for n in (short, long))
    assert less[0] <= more[0]
    assert less[1] <= more[1]


@settings(max_examples=60, deadline=None)
@given(names, sizes, rows, rows, flags, kinds, devices)
def test_more_rows_never_need_less(
    name: str, length: int, one: int, other: int, is_checkpointed: bool, loss: str, device: str
) -> None:
    few, many = sorted((one, other))
    changes = {"training__gradient_checkpointing": is_checkpointed, "training__loss": loss}
    less, more = (both(estimated(name, length, n, device=device, **changes)) for n in (few, many))
    assert less[0] <= more[0]


@settings(max_examples=60, deadline=None)
@given(names, sizes, ranks, ranks, optimizers, devices)
def test_a_higher_rank_never_needs_less(
    name: str, length: int, one: int, other: int, optimizer: str, device: str
) -> None:
    low, high = sorted((one, other))
    less, more = (
        both(estimated(name, length, device=device, lora__rank=n, training__optimizer=optimizer))
        for n in (low, high)
    )
    assert less[0] <= more[0]


@settings(max_examples=40, deadline=None)
@given(sizes, rows, ranks, flags, kinds)
def test_a_larger_model_never_needs_less(
    length: int, count: int, rank: int, is_checkpointed: bool, loss: str
) -> None:
    changes = {
        "training__gradient_checkpointing": is_checkpointed,
        "training__loss": loss,
        "lora__rank": rank,
    }
    llamas = [name for name in LADDER if name not in ("smollm2-135m", "llama-3.2-1b")]
    peaks = [estimated(name, length, count, **changes).double_quant.peak_bytes for name in llamas]
    assert peaks == sorted(peaks)


@settings(max_examples=60, deadline=None)
@given(names, sizes, rows, flags, kinds, devices)
def test_double_quantization_never_costs_memory(
    name: str, length: int, count: int, is_checkpointed: bool, loss: str, device: str
) -> None:
    changes = {"training__gradient_checkpointing": is_checkpointed, "training__loss": loss}
    double, single = both(estimated(name, length, count, device=device, **changes))
    assert double <= single


@settings(max_examples=40, deadline=None)
@given(names, ranks, sizes, optimizers, devices)
def test_paged_plus_resident_is_constant(
    name: str, rank: int, length: int, optimizer: str, device: str
) -> None:
    """Neither the length nor the side moves optimizer state; paging only moves it between the two parts."""
    found = estimated(name, length, device=device, lora__rank=rank, training__optimizer=optimizer)
    other = estimated(name, 16, device="cpu", lora__rank=rank, training__optimizer=optimizer)
    totals = {
        side.parts["optimizer_resident"] + side.parts["optimizer_pageable"]
        for side in (found.double_quant, found.single_quant, other.double_quant)
    }
    assert len(totals) == 1


def test_estimates_of_all_known_models_are_whole() -> None:
    for name in NAMES:
        found = estimate(facts(name), config(), seq_len=512, micro_batch=1)
        assert all(value >= 0 for value in found.double_quant.parts.values()), name
