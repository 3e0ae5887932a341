"""What the script for a borrowed GPU measures, judges and shows, without one."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import scenarios
from tests.gpu.offline import report
from tests.gpu.offline.settings import CHECKPOINTING, OPTIMIZER, every, groups


def test_the_settings_of_a_card_are_those_that_matter() -> None:
    chosen = list(every("cuda"))
    assert len(chosen) >= 24
    assert {group.model for group, _ in chosen} == {"llama-3-8b", "qwen3-8b", "llama-3.2-1b", "qwen3_moe"}
    assert {512, 1024, 2048, 4096, 8192} <= {setting.seq_len for _, setting in chosen}
    assert {group.is_double_quant for group, _ in chosen} == {True, False}
    assert {setting.changes.get(CHECKPOINTING, True) for _, setting in chosen} == {True, False}
    assert len({setting.changes.get(OPTIMIZER, "paged_adamw_8bit") for _, setting in chosen}) >= 3
    assert any(setting.packed > 1 for _, setting in chosen)
    assert any(setting.rows > 1 for _, setting in chosen)
    assert {group.is_loaded for group in groups("cpu")} == {True, False}


def test_never_more_managed_memory_than_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index=0: (4 * scenarios.GIB, 80 * scenarios.GIB))
    assert scenarios.why_no_room(scenarios.GIB) is None
    assert "more than a quarter" in str(scenarios.why_no_room(scenarios.GIB + 1))
    with pytest.raises(MemoryError, match="more than a quarter"):
        scenarios.managed_buffer(scenarios.GIB + 4)


@pytest.mark.parametrize(
    ("measured", "predicted", "allowed", "verdict", "difference"),
    [(100, 104, 0.05, "pass", 0.04), (100, 106, 0.05, "fail", 0.06), (100, 94, 0.05, "fail", -0.06), (0, 0, 0.05, "pass", None), (0, 1, 0.05, "fail", None)],
)  # fmt: skip
def test_a_measured_number_is_judged_by_the_predicted_one(
    measured: float, predicted: float, allowed: float, verdict: str, difference: float | None
) -> None:
    line = report.compared("a", "b", measured, predicted, "bytes", allowed)
    assert line.verdict == verdict
    assert line.difference == (None if difference is None else pytest.approx(difference))


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [(None, "bytes", "n/a"), (3 * 2**30, "bytes", "3.00 GiB"), (2**20, "bytes", "1.0 MiB"), (0.123, "share", "12.3 %"), (1234.5, "tokens/s", "1,234 tokens/s"), (7, "count", "7"), ("moved", "", "moved")],
)  # fmt: skip
def test_values_are_shown_with_their_unit(value: Any, unit: str, words: str) -> None:
    assert report.shown(value, unit) == words


def test_kernels_are_counted_by_kind_once() -> None:
    from tests.gpu.offline.speed import kinds_of

    times = {
        "aten::mm": 50.0,
        "void cutlass::gemm": 40.0,
        "kDequantizeBlockwise": 10.0,
        "flash_fwd": 5.0,
        "odd": 1.0,
    }
    assert kinds_of(times) == {
        "matrix products": 40.0,
        "4-bit weights unpacked": 10.0,
        "attention": 5.0,
        "other": 1.0,
    }


def test_unsloth_is_a_peer_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stand-in: the same rows, rank and layers, its own model, and the trainer adds no second adapter."""
    from tests.gpu.offline import rivals, speed

    asked: dict[str, Any] = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**options: Any) -> tuple[str, None]:
            asked.update(options)
            return "base", None

        @staticmethod
        def get_peft_model(model: str, **options: Any) -> str:
            asked.update(options)
            return f"{model} with adapters"

    module = types.ModuleType("unsloth")
    module.FastLanguageModel = FastLanguageModel  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("unsloth", None)
    rig = types.SimpleNamespace(is_cuda=True)
    assert "not installed" in speed.why_absent("unsloth", rig)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "unsloth", module)
    assert speed.why_absent("unsloth", rig) == ""  # type: ignore[arg-type]
    trained: list[Any] = []
    monkeypatch.setattr(rivals, "by_trl", lambda *given: trained.append(given))
    load = rivals.Load(tmp_path, [([1, 2], [1, 2])], 1, 1, "cuda", 64)
    rivals.unsloth(load)
    assert trained == [(load, "base with adapters", None)]
    assert (asked["model_name"], asked["max_seq_length"], asked["load_in_4bit"]) == (str(tmp_path), 64, True)
    assert (asked["r"], asked["lora_alpha"], len(asked["target_modules"])) == (rivals.RANK, rivals.ALPHA, 7)
