"""Verdicts, changes a button can apply, and the largest that fits; all without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.config import with_value
from qlora_engine.memory import advise, explain, gpus
from qlora_engine.memory.estimate import GIB, estimate
from tests.engine.memory.settings import config, estimated, facts

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("name", "gpu", "seq_len", "rows", "changes", "kind", "words"),
    [
        ("llama-7b", "RTX 4090", 512, 1, {}, "fits", "GiB to spare"),
        ("llama-65b", "RTX 4080 16GB", 512, 1, {}, "too_large", "the weights alone need"),
        ("llama-33b", "RTX 4090", 512, 1, {"lora__rank": 64, "training__optimizer": "paged_adamw_32bit"}, "fits_paged", "paged out"),
    ],
)  # fmt: skip
def test_the_verdict(
    name: str, gpu: str, seq_len: int, rows: int, changes: dict[str, Any], kind: str, words: str
) -> None:
    found = advise.verdict(estimated(name, seq_len, rows, **changes), gpus.find(gpu).usable_bytes)
    assert found.kind == kind, found.text
    assert words in found.text


def test_the_cheapest_change_is_named() -> None:
    """Half the rows change nothing in the result; that comes before a shorter sequence."""
    found = estimated("llama-7b", 1024, 8)
    halved = next(advice for advice in found.advice if advice.path == "training.micro_batch")
    judged = advise.verdict(found, halved.device_likely)
    assert judged.kind == "too_large"
    assert judged.advice[0] == halved
    assert f"the cheapest change: micro-batch 8 -> 4 saves {advise.size(halved.saves_bytes)}" in judged.text


def test_only_the_low_end() -> None:
    found = estimated("llama-7b", 2048, training__optimizer="adamw_torch_fused")
    between = (found.double_quant.device_low + found.double_quant.device_likely) // 2
    judged = advise.verdict(found, between)
    assert judged.kind == "fits_low"
    assert "low end" in judged.text


def test_advice_saves_what_it_says() -> None:
    settings = config(4, training__micro_batch=4, training__loss="full")
    one = facts("llama-3.1-8b")
    now = estimate(one, settings, seq_len=1024, micro_batch=4)
    assert now.advice
    for advice in now.advice:
        changed = with_value(settings, advice.path, advice.value)
        length = advice.value if advice.path == "data.seq_len" else 1024
        rows = advice.value if advice.path == "training.micro_batch" else 4
        then = estimate(one, changed, seq_len=length, micro_batch=rows)
        assert now.double_quant.peak_bytes - then.double_quant.peak_bytes == advice.saves_bytes > 0
        assert then.double_quant.device_likely == advice.device_likely


def test_a_plan_makes_it_fit() -> None:
    settings = config(8, training__micro_batch=8, training__gradient_checkpointing=False)
    one, usable = facts("llama-3.1-8b"), gpus.find("RTX 3060 12GB").usable_bytes
    steps = advise.plan(one, settings, seq_len=2048, micro_batch=8, usable_bytes=usable)
    assert steps
    length, rows = 2048, 8
    for step in steps:
        settings = with_value(settings, step.path, step.value)
        length = step.value if step.path == "data.seq_len" else length
        rows = step.value if step.path == "training.micro_batch" else rows
    assert estimate(one, settings, seq_len=length, micro_batch=rows).double_quant.device_likely <= usable


def test_no_plan_makes_65b_fit_16_gb() -> None:
    usable = gpus.find("RTX 4080 16GB").usable_bytes
    assert advise.plan(facts("llama-65b"), config(), seq_len=512, micro_batch=1, usable_bytes=usable) is None


def test_the_largest_that_fits_fits_and_the_next_does_not() -> None:
    usable = gpus.find("RTX 4090").usable_bytes
    one = facts("llama-3.1-8b")
    found = advise.largest_that_fits(one, config(), seq_len=512, micro_batch=1, usable_bytes=usable)
    assert found.seq_len is not None
    assert found.micro_batch is not None
    assert found.rank is not None
    assert found.model is not None

    def likely(seq_len: int = 512, rows: int = 1, rank: int = 16) -> int:
        return estimate(
            one, config(rows, lora__rank=rank), seq_len=seq_len, micro_batch=rows
        ).double_quant.device_likely

    assert likely(seq_len=found.seq_len) <= usable < likely(seq_len=found.seq_len + 1)
    assert likely(rows=found.micro_batch) <= usable < likely(rows=found.micro_batch + 1)
    assert likely(rank=found.rank) <= usable < likely(rank=found.rank + 1)
    assert estimated(found.model).double_quant.device_likely <= usable


def test_nothing_fits_nothing() -> None:
    found = advise.largest_that_fits(
        facts("llama-65b"), config(), seq_len=512, micro_batch=1, usable_bytes=GIB // 4
    )
    assert (found.seq_len, found.micro_batch, found.rank, found.model) == (None, None, None, None)


def test_bars_tell_their_parts() -> None:
    gpu = gpus.find("RTX 4090")
    found = explain.compare(facts("llama-7b"), config(), seq_len=512, micro_batch=1, gpu=gpu)
    assert [bar.name for bar in found.bars] == ["double_quant", "single_quant", "lora_16bit", "full_16bit"]
    for bar in found.bars:
        assert all(part.title and part.formula and part.source for part in bar.parts)
        assert (
            sum(part.bytes_ for part in bar.parts)
            == bar.variant.peak_bytes + bar.variant.parts["device_context"]
        )
    constants = found.bar("double_quant").part("quantization_constants")
    assert constants.changed_by == ("quantization.double_quant",)
    assert found.bar("double_quant").device_likely < found.bar("single_quant").device_likely


def test_every_path_is_an_option() -> None:
    from qlora_engine.config import all_knobs

    paths = {path for text in explain.TEXTS.values() for path in text.changed_by}
    assert paths | set(advise.COST_ORDER) <= set(all_knobs())


def test_the_window_may_import_it_all() -> None:
    script = (
        "import sys; from qlora_engine.memory import advise, explain, estimate, gpus;"
        "print(*sorted({'torch', 'transformers', 'peft', 'bitsandbytes', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.split() == []
