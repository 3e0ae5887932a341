"""Memory in plain words: GiB with two digits, and never a claim that is not known."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qlora_engine.memory.optimizer_state import StateBytes
from qlora_engine.monitor import nvml_words, words
from qlora_engine.monitor.residency import NEVER_ON_WINDOWS, NEVER_UNDER_WSL
from qlora_engine.monitor.words import Slowdown
from tests.engine.monitor.samples import GIB, MIB, cpu_sample, gpu, gpu_sample


def paged(**changes: Any) -> dict[str, Any]:
    return {**gpu_sample()["paged"], **changes}


def test_a_quiet_run() -> None:
    text = words.memory_line(gpu_sample(), predicted_bytes=16 * GIB + 9 * GIB // 10)
    assert text == "18.00 of 24.00 GiB; 0.40 GiB under the estimate; optimizer fully on the GPU"


def test_a_paging_run() -> None:
    block = paged(
        on_gpu_bytes=GIB, on_cpu_bytes=GIB // 2, residency_kind="estimated", uncertainty_bytes=64 * MIB
    )
    text = words.memory_line(gpu_sample(paged=block), slowdown_ratio=0.12)
    assert (
        text
        == "18.00 of 24.00 GiB; about 0.50 GiB of optimizer state is on the CPU: steps are about 12 % slower"
    )


@pytest.mark.parametrize(
    ("predicted", "reached", "text"),
    [
        (10 * GIB, 10 * GIB + MIB, "as estimated"),
        (10 * GIB, 11 * GIB, "1.00 GiB over the estimate"),
        (10 * GIB, 9 * GIB, "1.00 GiB under the estimate"),
        (None, 9 * GIB, ""),
        (9 * GIB, None, ""),
    ],
)
def test_against_the_estimate(predicted: int | None, reached: int | None, text: str) -> None:
    assert words.against(predicted, reached) == text


def test_within_its_uncertainty_nothing_is_on_the_cpu() -> None:
    block = paged(on_cpu_bytes=60 * MIB, uncertainty_bytes=64 * MIB, residency_kind="estimated")
    assert words.where(block) == "optimizer fully on the GPU"


def test_an_unknown_place_says_why() -> None:
    block = paged(on_cpu_bytes=None, residency_reason="the driver is not answering")
    assert words.where(block) == "where the optimizer's 1.50 GiB are is unknown: the driver is not answering"


def test_a_cpu_run_and_a_machine_without_a_gpu() -> None:
    text = words.memory_line(cpu_sample(), predicted_bytes=2 * GIB, reached_bytes=3 * GIB)
    assert (
        text == "24.00 of 64.00 GiB host memory (no NVIDIA driver is installed); 1.00 GiB over the estimate"
    )
    lost = gpu(used_bytes=None) | {"unavailable": {"used_bytes": "the GPU is lost"}}
    assert "(the GPU is lost)" in words.memory_line(gpu_sample(gpus=[lost], paged=None))
    assert words.memory_line(cpu_sample(host=None, gpu_problem=None)) == "host memory n/a"


def test_spilled_memory_is_named() -> None:
    sample = gpu_sample(paged=None)
    sample["torch"]["spilled_bytes"] = 2 * GIB
    assert words.memory_line(sample).endswith(
        "2.00 GiB of the run is in shared GPU memory, which is system memory: steps are much slower"
    )


def test_what_should_not_hold_a_gpu_back_is_named() -> None:
    warm = gpu(throttle_reasons=("power limit", "too warm (hardware)", "idle"))
    assert words.memory_line(gpu_sample(gpus=[warm])).endswith("the GPU is held back: too warm (hardware)")
    usual = gpu(throttle_reasons=("power limit", "idle"))
    assert "held back" not in words.memory_line(gpu_sample(gpus=[usual]))
    assert words.held_back(None) == ""
    assert set(words.ALARMING) <= {each for _, each in nvml_words._THROTTLES}


def test_the_badge() -> None:
    assert words.paging_badge("AdamW", 0, None) is None
    assert words.paging_badge("PagedAdamW32bit", 5, None) is None
    assert (
        words.paging_badge("PagedAdamW32bit", 0, "all too small")
        == "PagedAdamW32bit pages nothing: all too small"
    )
    assert words.paging_badge("AdamW", 5, None, NEVER_UNDER_WSL) is None
    assert (
        words.paging_badge("PagedAdamW32bit", 5, None, NEVER_UNDER_WSL)
        == "PagedAdamW32bit protects nothing here: under WSL the driver cannot move managed memory out of the GPU"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {},
            "of 320 MiB optimizer state 168 MiB can be paged at rank 16; at this batch nothing should need to",
        ),
        ({"peak_bytes": None}, "of 320 MiB optimizer state 168 MiB can be paged at rank 16"),
        (
            {"peak_bytes": 24 * GIB + 100 * MIB},
            "of 320 MiB optimizer state 168 MiB can be paged at rank 16; at this batch about 100 MiB will have to move, and steps will be slower",
        ),
        (
            {"peak_bytes": 26 * GIB},
            "of 320 MiB optimizer state 168 MiB can be paged at rank 16; at this batch 2,048 MiB are missing, more than paging can free",
        ),
        (
            {"state": StateBytes(320 * MIB, 0, 0)},
            "of 320 MiB optimizer state nothing can be paged at rank 16: every adapter tensor has fewer than 100,000 elements",
        ),
        (
            {"why_never": NEVER_ON_WINDOWS},
            "the 320 MiB of optimizer state stay on the GPU: on Windows the driver cannot move managed memory out of the GPU",
        ),
        ({"optimizer": "adamw_8bit"}, "adamw_8bit does not page: its 320 MiB of state stay on the GPU"),
        (
            {"device": "cpu"},
            "the 320 MiB of optimizer state are in the computer's memory: on the CPU nothing is paged",
        ),
    ],
)
def test_the_forecast(changes: dict[str, Any], text: str) -> None:
    asked: dict[str, Any] = {
        "optimizer": "paged_adamw_32bit", "rank": 16, "state": StateBytes(152 * MIB, 168 * MIB, 0), "device": "cuda",
        "peak_bytes": 20 * GIB, "usable_bytes": 24 * GIB,
    }  # fmt: skip
    assert words.paging_forecast(**{**asked, **changes}) == text


def test_the_slowdown_is_a_ratio_of_medians() -> None:
    slowdown = Slowdown()
    for seconds in (9.0, 1.0, 1.0, 1.0, 1.0):  # the first step warms up
        slowdown.note(seconds, 0)
    slowdown.note(50.0, None)
    assert slowdown.ratio is None
    for seconds in (1.12, 1.12, 7.0, 1.12):
        slowdown.note(seconds, GIB)
    assert slowdown.ratio == pytest.approx(0.12)
    slowdown.note(1.0, 0)
    assert slowdown.ratio is None


def test_gib_has_two_digits_everywhere() -> None:
    texts = [words.memory_line(gpu_sample(), 10 * GIB), words.memory_line(cpu_sample(), 10 * GIB)]
    for text in texts:
        assert all(re.fullmatch(r"\d+\.\d\d", n) for n in re.findall(r"\d+\.\d+", text)), text
