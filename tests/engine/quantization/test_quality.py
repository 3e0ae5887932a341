"""The quality job on tiny models: against the model that training loads, outliers, samples, stopping, keeping."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_engine import data
from qlora_engine.config import QuantizationSettings
from qlora_engine.control import Control
from qlora_engine.data.batches import collate
from qlora_engine.events import Noticed, PhaseChanged, Progressed, RunFailed, RunFinished, RunStopped
from qlora_engine.models import loading, spec
from qlora_engine.quantization import heldout, quality, store, weights
from qlora_engine.quantization.report import report_from
from qlora_engine.quantization.variants import MAIN, Options
from qlora_engine.training import loss as losses
from tests.engine.quantization.conftest import CPU, WHOLE, Configure, events_of, measured
from tests.support.tiny import make_tiny, make_tiny_seeing

FAMILIES = ("llama", "mistral", "qwen3", "gemma2", "phi3", "gpt_neox", "cohere", "qwen3_moe")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=5, **WHOLE)


def held_out_rows(config: object, path: Path) -> list[object]:
    prepared = data.prepare(config.data, loading.load_tokenizer(path), seed=config.training.seed)  # type: ignore[attr-defined]
    return list(prepared.held_out)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_model_that_training_loads(
    family: str, tmp_path: Path, configured: Configure
) -> None:
    """Loaded in 4 bits as training does it, scored with training's own loss."""
    path = make_tiny(family, tmp_path / family, **WHOLE)
    config = configured(path)
    report = measured(config, max_rows=4, block_sizes=[64])
    rows = held_out_rows(config, path)[:4]
    assert report.held_out is not None
    for quant_type, nested in (("nf4", True), ("fp4", False)):
        settings = QuantizationSettings(quant_type=quant_type, double_quant=nested, experts="16bit")
        loaded = loading.load_quantized(path, settings, CPU)
        live = [losses.token_losses(loaded.model, collate([row], 0)) for row in rows]
        key = f"{quant_type}-64{'-dq' if nested else ''}"
        found = report.held_out.scores[key]
        assert found.row_losses == pytest.approx([total for total, _ in live], rel=1e-5)
        assert report.held_out.row_tokens == tuple(count for _, count in live)
        built = loaded.report
        bits = 8 * (built.packed_bytes + built.constants_bytes) / built.quantized_parameters
        assert report.weights.totals[key].bits == pytest.approx(bits)
        assert report.weights.parameters == built.quantized_parameters


def test_what_is_compared_with_is_the_model_as_stored(llama: Path, configured: Configure) -> None:
    from transformers import AutoModelForCausalLM

    config = configured(llama)
    report = measured(config, max_rows=5, block_sizes=[64])
    plain = AutoModelForCausalLM.from_pretrained(str(llama), dtype=torch.float32)
    quantized = loading.load_quantized(llama, QuantizationSettings(), CPU).model
    total, divergence, same, tokens = 0.0, 0.0, 0, 0
    for row in held_out_rows(config, llama)[:5]:
        ids = torch.tensor([row.input_ids])
        places = [i for i, is_trained in enumerate(row.trained) if is_trained and i]
        with torch.no_grad():
            before, after = (
                m(input_ids=ids).logits[0].double().log_softmax(-1)[[i - 1 for i in places]] for m in (plain, quantized)
            )  # fmt: skip
        total -= float(before.gather(-1, ids[0][places].unsqueeze(-1)).sum())
        divergence += float((before.exp() * (before - after)).sum())
        same += int((before.argmax(-1) == after.argmax(-1)).sum())
        tokens += len(places)
    held_out = report.held_out
    assert held_out is not None
    assert held_out.tokens == tokens
    assert held_out.reference.loss == pytest.approx(total / tokens, rel=1e-5)
    score = held_out.scores["nf4-64-dq"]
    assert score.kl == pytest.approx(divergence / tokens, rel=1e-3)
    assert score.agreement == pytest.approx(same / tokens)
    assert score.extra == pytest.approx(score.loss - held_out.reference.loss, rel=1e-6)
    assert set(held_out.scores) == {variant.key for variant in MAIN}


def test_logits_that_are_made_in_another_way_are_taken_whole(
    llama: Path, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(llama)
    usual = measured(config, max_rows=3, block_sizes=[64])
    monkeypatch.setattr(losses, "is_chunkable", lambda model, batch: False)
    whole = measured(config, max_rows=3, block_sizes=[64], is_again=True)
    assert usual.held_out is not None
    assert whole.held_out is not None
    for key, score in usual.held_out.scores.items():
        assert whole.held_out.scores[key].loss == pytest.approx(score.loss, rel=1e-5)
        assert whole.held_out.scores[key].kl == pytest.approx(score.kl, rel=1e-3, abs=1e-6)


def test_weights_are_found_where_a_seeing_model_keeps_them(tmp_path: Path, configured: Configure) -> None:
    path = make_tiny_seeing("gemma3", tmp_path / "gemma3")
    places = weights.places_of(path, spec.facts_of_folder(path))
    assert {place.module for place in places} == {
        module.removesuffix(".weight")
        for module in loading.load_quantized(path, QuantizationSettings(), CPU).model.state_dict()
        if module.endswith("_proj.weight")
    }
    assert measured(configured(path), has_loss=False, block_sizes=[64]).weights.modules


@pytest.mark.parametrize("outlier", [0.2, 2.0], ids=["ten times", "a hundred times the others"])
def test_a_layer_with_outliers_is_found_as_the_worst(
    outlier: float, tmp_path: Path, configured: Configure
) -> None:
    """One in every block, so that the others are measured in steps that are far too large for them."""
    spoiled = tmp_path / "spoiled"
    make_tiny("llama", spoiled, num_hidden_layers=5, **WHOLE)
    file = spoiled / "model.safetensors"
    state = load_file(file)
    state["model.layers.3.mlp.down_proj.weight"][:, ::64] = outlier
    save_file(state, file, metadata={"format": "pt"})
    found = measured(configured(spoiled), has_loss=False, block_sizes=[64]).weights
    for variant in MAIN:
        assert found.worst(variant.key, 1)[0].module == "model.layers.3.mlp.down_proj"
    worst = found.worst("nf4-64-dq")
    errors = [module.typical_error("nf4-64-dq") for module in worst]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[1]
    assert worst[0].peak_ratio > 1.5 * worst[1].peak_ratio


def test_a_layer_of_zeros_loses_nothing(tmp_path: Path, configured: Configure) -> None:
    path = make_tiny("llama", tmp_path / "zeros", **WHOLE)
    state = load_file(path / "model.safetensors")
    state["model.layers.0.self_attn.o_proj.weight"].zero_()
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    report = measured(configured(path), has_loss=False)
    zeros = next(m for m in report.weights.modules if m.module == "model.layers.0.self_attn.o_proj")
    for measure in zeros.measures.values():
        assert (measure.relative_error, measure.snr_db, measure.largest_error) == (0.0, None, 0.0)
    assert zeros.peak_ratio == 0.0


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, configured: Configure) -> None:
    path = make_tiny("llama", tmp_path / "nan", **WHOLE)
    state = load_file(path / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    last = events_of(configured(path))[-1]
    assert isinstance(last, RunFailed)
    assert "model.layers.1.mlp.up_proj" in last.message


def test_totals_are_of_all_modules_together(llama: Path, configured: Configure) -> None:
    report = measured(configured(llama), has_loss=False)
    state = load_file(llama / "model.safetensors")
    for key, total in report.weights.totals.items():
        lost = energy = 0.0
        for module in report.weights.modules:
            own = float(state[f"{module.module}.weight"].double().square().sum())
            energy += own
            lost += own * module.measures[key].relative_error ** 2
        assert total.relative_error == pytest.approx((lost / energy) ** 0.5, rel=1e-4)
        assert total.largest_error == max(m.measures[key].largest_error for m in report.weights.modules)


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, (2,)), (2, (0, 4)), (3, (0, 2, 4)), (9, (0, 1, 2, 3, 4))]
)
def test_a_sample_of_layers_is_spread_and_named(
    limit: int, expected: tuple[int, ...], llama: Path, configured: Configure
) -> None:
    found = measured(configured(llama), has_loss=False, block_sizes=[64], max_layers=limit).weights
    assert found.measured_layers == expected
    assert found.layers == 5
    assert {module.layer for module in found.modules} == set(expected)
    assert not found.is_out_of_time


def test_when_the_time_is_up_what_was_measured_is_spread(llama: Path) -> None:
    ticks = iter(range(1000))
    places = weights.places_of(llama, spec.facts_of_folder(llama))
    job = weights.measure(
        places, Options(block_sizes=(64,)), CPU, Control(), seconds=2.5, clock=lambda: float(next(ticks))
    )
    found = drained(job)
    assert found.is_out_of_time
    assert found.measured_layers == (0, 2, 4)


def test_when_the_time_is_up_fewer_rows_are_read(
    llama: Path, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality._Question, "seconds_left", property(lambda self: 0.0))
    held_out = measured(configured(llama), block_sizes=[64]).held_out
    assert held_out is not None
    assert held_out.is_out_of_time
    assert held_out.rows == 1 < held_out.rows_available
    assert held_out.scores["nf4-64-dq"].extra_error is None


def test_rows_of_the_training_part_serve_where_nothing_is_held_out(
    llama: Path, configured: Configure
) -> None:
    held_out = measured(
        configured(llama, data__held_out_fraction=0.0, data__packing=True), block_sizes=[64]
    ).held_out
    assert held_out is not None
    assert not held_out.is_held_out
    assert held_out.rows == held_out.rows_available == 30


def test_a_model_that_does_not_fit_is_measured_without_loss(
    llama: Path, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    events = events_of(configured(llama))
    assert any(isinstance(event, Noticed) and event.code == "quality.no_loss" for event in events)
    assert isinstance(events[-1], RunFinished)
    report = report_from(events[-1].result)
    assert report.held_out is None
    assert "GiB" in report.why_no_held_out


def test_experts_that_are_not_measured_are_told(tmp_path: Path, configured: Configure) -> None:
    path = make_tiny("qwen3_moe", tmp_path / "mixture", **WHOLE)
    report = measured(configured(path), has_loss=False, block_sizes=[64])
    assert "experts" in report.notices[0]
    assert report.weights.totals["nf4-64"].relative_error < 0.12


def test_rows_that_are_not_whole_blocks_are_measured_as_they_are_stored(
    tmp_path: Path, configured: Configure
) -> None:
    path = make_tiny("llama", tmp_path / "broken")  # 96 inputs in the second half of each block
    report = measured(configured(path), has_loss=False, block_sizes=[64])
    assert report.notices == ()
    assert report.weights.totals["nf4-64"].relative_error < 0.12


class Impatient(Control):
    """Asks to stop at the n-th look."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left = looks

    def check(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.request_stop()
        super().check()


@pytest.mark.parametrize("looks", [2, 30, 260, 330])
def test_it_can_be_stopped_at_any_moment_and_keeps_nothing(
    looks: int, llama: Path, configured: Configure, home: Path
) -> None:
    events = events_of(configured(llama), Impatient(looks), block_sizes=[64])
    assert isinstance(events[-1], RunStopped)
    assert not (home / "quality").exists()


def test_what_was_measured_is_shown_again_at_once(
    llama: Path, rows: Path, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(llama)
    options = Options(block_sizes=(64,), max_rows=3)
    assert store.kept(config, options) is None
    first = measured(config, **options.to_json())
    assert store.kept(config, options) == first
    monkeypatch.setattr(heldout, "Subject", None)  # measuring again would fail
    monkeypatch.setattr(weights, "measure", None)
    assert measured(config, **options.to_json()) == first
    assert store.kept(config, Options(block_sizes=(64,), max_rows=4)) is None
    assert store.kept(configured(llama, training__seed=1), options) is None
    assert store.kept(configured(llama, lora__rank=4), options) == first
    rows.write_text(rows.read_text() + "\n", encoding="utf-8")
    assert store.kept(config, options) is None


def test_other_weights_are_another_measurement(tmp_path: Path, configured: Configure) -> None:
    path = make_tiny("llama", tmp_path / "one", **WHOLE)
    options = Options(block_sizes=(64,), has_loss=False)
    first = measured(configured(path), **options.to_json())
    make_tiny("llama", path, seed=1, **WHOLE)
    assert store.kept(configured(path), options) is None
    assert measured(configured(path), **options.to_json()) != first


def test_progress_is_told_in_modules_and_rows(llama: Path, configured: Configure) -> None:
    events = events_of(configured(llama), block_sizes=[64], max_rows=3)
    phases = [event.phase for event in events if isinstance(event, PhaseChanged)]
    assert phases == ["preparing", "tokenizing", "measuring", "loading", "evaluating"]
    counted = [(e.done, e.total) for e in events if isinstance(e, Progressed) and e.phase == "measuring"]
    assert counted == [(n, 35) for n in range(1, 36)]
    read = [(e.done, e.total) for e in events if isinstance(e, Progressed) and e.phase == "evaluating"]
    assert read == [(n, 21) for n in range(1, 22)]


def test_the_report_is_json(llama: Path, configured: Configure) -> None:
    report = measured(configured(llama), block_sizes=[64], max_rows=2)
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert report_from(plain) == report
    assert plain["held_out"]["reference"]["perplexity"] == pytest.approx(
        report.held_out.reference.perplexity  # type: ignore[union-attr]
    )


def drained(job: Iterator[object]) -> weights.WeightErrors:
    """What a generator of events returns."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
