"""Classes without a formula of their own: their rehearsal is a real step, and the line through it serves other sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_engine.architectures import trial
from qlora_engine.memory import generic
from qlora_engine.memory.estimate import estimate
from qlora_engine.memory.rehearsal import Question, rehearse
from qlora_engine.models import spec
from tests.engine.memory.measure import measured_step
from tests.engine.memory.settings import config


@pytest.mark.parametrize("kind", ["bloom"])
def test_an_unknown_class_is_estimated_from_its_own_rehearsal(kind: str, tmp_path: Path, home: Path) -> None:
    folder = trial.make(kind, tmp_path / kind)
    facts = spec.facts_of_folder(folder)
    settings = config(1, training__micro_batch=1)
    assert facts.source == "class"
    assert not generic.is_measured(facts, settings, "cpu")
    rough = estimate(facts, settings, seq_len=384, micro_batch=1, device="cpu").double_quant
    found = rehearse(Question(facts, settings, 384, 1, "cpu")).double_quant
    assert found.peak_bytes == pytest.approx(measured_step(folder, settings, 384, 1).peak_bytes, rel=0.01)
    assert generic.is_measured(facts, settings, "cpu")
    closed = estimate(facts, settings, seq_len=384, micro_batch=1, device="cpu").double_quant
    assert closed.peak_bytes == pytest.approx(found.peak_bytes, rel=0.02)
    assert abs(closed.peak_bytes - found.peak_bytes) <= abs(rough.peak_bytes - found.peak_bytes)


def test_experts_in_4_bits_are_rehearsed_one_by_one(tmp_path: Path, home: Path) -> None:
    """All in one product would be up to a fifth away; with adapters the more, the higher their rank."""
    folder = trial.make("granitemoe", tmp_path / "base")
    facts = spec.facts_of_folder(folder)
    settings = config(1, training__micro_batch=1, lora__experts=True, lora__rank=32)
    found = rehearse(Question(facts, settings, 384, 1, "cpu")).double_quant.peak_bytes
    assert found == pytest.approx(measured_step(folder, settings, 384, 1).peak_bytes, rel=0.01)
    closed = estimate(facts, settings, seq_len=384, micro_batch=1, device="cpu").double_quant.peak_bytes
    assert closed == pytest.approx(found, rel=0.02)


def test_the_curve_goes_through_its_points_and_never_below_nothing() -> None:
    points = (generic.Point(100, 1000, 50), generic.Point(300, 3000, 70))
    assert generic.scaled(points, 100) == (1000, 50)
    assert generic.scaled(points, 200) == (2000, 60)
    assert generic.scaled(points, 0) == (0, 40)
    bent = tuple(generic.Point(n, n * n, 5) for n in (1, 2, 4))
    assert generic.scaled(bent, 3) == (9, 5)


def test_a_class_without_attention_or_heads_is_estimated(home: Path) -> None:
    facts = spec.facts_from_config(
        {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 320}, "m"
    )
    short, long = (
        estimate(facts, config(1), seq_len=n, micro_batch=1).double_quant.peak_bytes for n in (128, 1024)
    )
    assert short < long
