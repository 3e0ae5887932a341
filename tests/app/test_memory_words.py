"""What the Memory page says: verdicts, parts, peaks, advice, and where its numbers are from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtWidgets import QApplication

from app import theme
from app.presenters.memory import MemoryState, memory_state
from app.presenters.memory_sizes import Subject, divisors_of, fitting, length_stops, nearest, sizes
from app.presenters.memory_words import (
    Capacity,
    RehearsalStatus,
    ago_text,
    mark_of,
    past_error,
    taken_besides,
)
from app.presenters.words import GIB, bytes_text
from app.widgets.bar_painting import ink_on
from qlora_engine.config import all_knobs, validate, with_value
from qlora_engine.memory import estimate as closed_form
from qlora_engine.memory import explain, gpus
from qlora_engine.models import known
from qlora_engine.runs.summary import RunSummary
from tests.app.memory_cases import compared, counted, subject_of

PAPER = {
    "lora.rank": 64, "lora.targets": "all-linear", "training.optimizer": "paged_adamw_32bit",
    "training.gradient_checkpointing": True, "training.micro_batch": 1, "training.effective_batch": 16,
}  # fmt: skip


def capacity_of(gpu: str) -> Capacity:
    found = gpus.find(gpu)
    return Capacity(found.name, found.total_bytes, found.usable_bytes)


def state_of(subject: Subject, gpu: str, **more: Any) -> MemoryState:
    capacity = capacity_of(gpu)
    found = fitting(subject, capacity.usable_bytes)
    is_double = subject.config.quantization.double_quant
    return memory_state(
        compared(subject), capacity, is_double=is_double, gpu=gpu, subject=subject, fitting=found, **more
    )


@pytest.mark.parametrize(
    ("model", "gpu", "start", "tone"),
    [
        ("llama-65b", "RTX A6000", "On RTX A6000 it fits with ", "warning"),
        ("llama-33b", "RTX 4090", "On RTX 4090 it fits only while 2.0\u00a0GiB of optimizer state are paged out", "warning"),
        ("llama-65b", "RTX 4060 Ti 16GB", "On RTX 4060 Ti 16GB it does not fit: the weights alone need ", "bad"),
    ],
)  # fmt: skip
def test_the_papers_claims_are_told_in_words(model: str, gpu: str, start: str, tone: str) -> None:
    edits = {path.replace(".", "__"): value for path, value in PAPER.items()}
    state = state_of(subject_of(model, **edits), gpu)
    assert state.verdict.startswith(start), state.verdict
    assert state.verdict_tone == tone


def test_every_kind_of_verdict_has_words_and_a_tone() -> None:
    subject = subject_of("llama-7b", rows=4, training__optimizer="paged_adamw_32bit", lora__rank=256)
    found = compared(subject)
    side = found.estimate.double_quant
    pageable = side.parts["optimizer_pageable"]
    for usable, words, tone in (
        (side.device_high, "it fits with ", "good"),
        (side.device_likely + 1, "it fits with ", "warning"),
        (side.device_likely - pageable // 2, "fits only while ", "warning"),
        (side.device_likely - pageable - 1, "fits only if the low end holds"
            if side.device_low <= side.device_likely - pageable - 1 else "does not fit", None),
        (6 * GIB, "does not fit: ", "bad"),
    ):  # fmt: skip
        state = memory_state(found, Capacity("a GPU", 2 * usable, usable), is_double=True, gpu=None)
        assert words in state.verdict
        assert tone is None or state.verdict_tone == tone
        low, likely, high = (
            f"{b / GIB:.2f}\u00a0GiB" for b in (side.device_low, side.device_likely, side.device_high)
        )
        assert f"about {likely}: at least {low}, at most {high}" in state.verdict_more


def test_without_a_model_or_a_capacity_there_is_still_a_sentence() -> None:
    assert (
        memory_state(None, None, is_double=True, gpu=None).verdict
        == "Choose a model to see what a run will need."
    )
    state = memory_state(compared(subject_of("llama-7b")), None, is_double=True, gpu=None)
    assert re.fullmatch(r"Needs about \d\.\d\d\u00a0GiB\.", state.verdict)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_parts_and_the_reserve_add_up_to_the_total_of_each_bar(device: str) -> None:
    found = compared(subject_of("llama-3-8b", seq_len=2048, device=device))
    state = memory_state(found, None, is_double=True, gpu=None)
    for bar in state.bars:
        assert sum(part.bytes_ for part in bar.segments) == found.bar(bar.name).device_likely
        assert all(part.text.endswith(("iB", " B")) for part in bar.segments)


def test_three_totals_are_never_mixed_and_the_cpu_has_one() -> None:
    found = compared(subject_of("llama-7b"))
    side = found.estimate.double_quant
    state = memory_state(found, None, is_double=True, gpu=None)
    assert [t.title for t in state.totals] == ["Tensors at the peak", "Reserved", "On the device"]
    for total, count in zip(
        state.totals, (side.peak_bytes, side.reserved_bytes, side.device_likely), strict=True
    ):
        assert total.bytes_text == f"{count / GIB:.2f}\u00a0GiB"
    on_cpu = memory_state(compared(subject_of("llama-7b", device="cpu")), None, is_double=True, gpu=None)
    assert [t.title for t in on_cpu.totals] == ["Tensors at the peak"]


def test_weights_that_are_dequantized_besides_are_told_before_the_run() -> None:
    """They come on top, and the run's own prediction has them."""
    found = compared(subject_of("llama-3.2-1b", device="cpu"))
    kept = bytes_text(found.estimate.kept_weights_bytes)
    state = memory_state(found, Capacity("this computer", 64 * GIB, 60 * GIB), is_double=True, gpu=None)
    assert (
        f"Where it is free, {kept} of dequantized weights are kept too, and given up first."
        in state.verdict_more
    )
    bar, tight = found.bar("double_quant"), int(found.bar("double_quant").device_likely * 1.01)
    besides = found.estimate.besides_bytes
    assert besides == found.estimate.kept_weights_bytes > 0
    assert taken_besides(bar, Capacity("this computer", 64 * GIB, 60 * GIB), besides) == besides
    assert taken_besides(bar, Capacity("tight", tight, tight), besides) == 0
    assert taken_besides(bar, None, besides) == 0
    mixture = compared(subject_of("mixtral-8x7b"))
    more = f"In bf16 and where it is free, {bytes_text(mixture.estimate.grouped_experts_bytes)} more let all experts"
    assert more in memory_state(mixture, None, is_double=True, gpu=None).verdict_more
    none = compared(subject_of("llama-7b", device="cpu"))
    assert not none.estimate.kept_weights_bytes
    assert "dequantized" not in memory_state(none, None, is_double=True, gpu=None).verdict_more


@pytest.mark.parametrize("optimizer", all_knobs()["training.optimizer"].choices or {})
def test_what_the_numbers_are_for_is_told_in_the_words_of_the_settings(optimizer: str) -> None:
    found = compared(subject_of("llama-3.2-1b", training__optimizer=optimizer))
    basis = memory_state(found, None, is_double=True, gpu=None).basis
    assert (all_knobs()["training.optimizer"].choices or {})[optimizer] in basis
    assert "_" not in basis


def test_llama_3_8b_shows_the_three_costs_that_others_hide() -> None:
    state = state_of(subject_of("llama-3-8b"), "RTX 4090")
    upcast, logits, constants = state.costs
    assert upcast.bytes_text == "1.96\u00a0GiB"  # 2.1 GB
    assert "stay in 16 bits" in upcast.text
    assert logits.bytes_text == "250\u00a0MiB"  # 512 tokens x 128,256 words x 4 bytes
    assert "raise the peak by" in logits.text
    assert constants.bytes_text == "416\u00a0MiB"  # 6.98 billion weights / 64 x 4 bytes
    assert "106\u00a0MiB" in constants.text
    full = state_of(subject_of("llama-3-8b", training__loss="full"), "RTX 4090").costs[1]
    assert "Chunks would lower the peak by" in full.text
    on_cpu = memory_state(
        compared(subject_of("llama-3-8b", device="cpu")), None, is_double=True, gpu=None,
        subject=subject_of("llama-3-8b", device="cpu"),
    )  # fmt: skip
    assert len(on_cpu.costs) == 2


def test_each_part_tells_its_formula_its_source_and_what_changes_it() -> None:
    state = state_of(subject_of("llama-7b"), "RTX 4090")
    assert len(state.parts) == 11
    for part in state.parts:
        assert part.formula
        assert part.source
        assert part.changed_by or part.name == "allocator_rounding"
    assert next(p for p in state.parts if p.name == "adapters").numbers.startswith(
        "trained parameters 39,976,960"
    )


def test_on_the_cpu_every_way_without_4_bits_counts_fp32() -> None:
    for device, element in (("cpu", 4), ("cuda", 2)):
        state = memory_state(compared(subject_of("llama-7b", device=device)), None, is_double=True, gpu=None)
        sides = compared(subject_of("llama-7b", device=device)).estimate.sides
        for name in ("lora_16bit", "full_16bit"):
            assert sides[name].numbers["unquantized_weights"]["bytes each"] == element
        captions = [bar.caption for bar in state.bars if bar.is_faint]
        assert all(("fp32" in caption) == (device == "cpu") for caption in captions)
        assert all(("16-bit" in caption) == (device == "cuda") for caption in captions)


def test_a_largest_that_is_set_says_what_keeps_it_from_more() -> None:
    subject = subject_of("smollm2-135m", training__effective_batch=4)
    assert subject.micro_batch == 1
    rows = state_of(subject, "RTX 4090").sizes[1]
    assert re.fullmatch(
        r"At most \d+ rows fit; the effective batch of 4 rows takes 4 at once", rows.fits_text
    )
    assert (rows.use_text, rows.use) == ("Use 4 rows", 4)
    set_ = state_of(replace(subject, micro_batch=4), "RTX 4090").sizes[1]
    assert set_.fits_text == rows.fits_text
    assert (set_.use_text, set_.use) == ("In use already", None)


def test_other_peaks_are_listed_and_one_that_does_not_fit_says_so() -> None:
    state = state_of(subject_of("llama-65b"), "RTX 4090")
    moments = {m.title: m for m in state.moments}
    assert next(iter(moments)) == "Training step"
    assert {
        "Loading the model",
        "Evaluating",
        "Generating a sample",
        "Saving a checkpoint",
        "Resuming",
    } < set(moments)
    assert moments["Loading the model"].note == "does not fit"
    assert moments["Host memory, loading"].note == ""
    fits = state_of(subject_of("llama-7b"), "H200")
    assert {m.tone for m in fits.moments} <= {"", "warning"}


@pytest.mark.parametrize("model", ["llama-7b", "mixtral-8x7b", "gemma-2-9b", "qwen3-8b", "smollm2-135m"])
@pytest.mark.parametrize("gpu", ["RTX 3070 8GB", "RTX 4090", "H200"])
def test_the_largest_of_each_fits_and_one_more_does_not(model: str, gpu: str) -> None:
    usable = gpus.find(gpu).usable_bytes
    subject = subject_of(model)
    found = fitting(subject, usable)

    def fits(seq_len: int = 512, rows: int = 1, rank: int = 16) -> bool:
        config = with_value(subject.config, "lora.rank", rank)
        config = with_value(config, "training.effective_batch", max(rows, config.training.effective_batch))
        need = closed_form.variant_of(subject.facts, config, seq_len=seq_len, micro_batch=rows).device_likely
        return need <= usable

    largest = found.largest
    assert largest.seq_len is None or fits(seq_len=largest.seq_len)
    assert largest.seq_len == subject.facts.max_positions or not fits(seq_len=(largest.seq_len or 7) + 1)
    assert largest.micro_batch is None or fits(rows=largest.micro_batch)
    assert not fits(rows=(largest.micro_batch or 0) + 1)
    assert largest.rank is None or fits(rank=largest.rank)
    assert largest.rank == 1024 or not fits(rank=(largest.rank or 0) + 1)
    assert found.rows is None or subject.config.training.effective_batch % found.rows == 0
    assert found.rows is None or fits(rows=found.rows)


@pytest.mark.parametrize(
    ("model", "gpu"),
    [
        ("llama-7b", "RTX 3070 8GB"),
        ("llama-3-8b", "RTX 3080 10GB"),
        ("llama-33b", "RTX 4090"),
        ("phi-4", "T4"),
    ],
)
def test_what_the_one_button_changes_makes_it_fit(model: str, gpu: str) -> None:
    subject = subject_of(
        model, seq_len=2048, rows=8, training__gradient_checkpointing=False, training__loss="full"
    )
    state = state_of(subject, gpu)
    assert state.verdict_tone == "bad"
    assert state.remedy is not None
    edits = dict(state.remedy.edits)
    config = subject.config
    for path, value in edits.items():
        config = with_value(config, path, value)
    changed = replace(
        subject, config=config, seq_len=edits.get("data.seq_len", 2048), micro_batch=edits.get("training.micro_batch", 8)
    )  # fmt: skip
    after = state_of(changed, gpu)
    assert " it fits with " in after.verdict
    assert after.remedy is None
    assert not validate(config)


def test_where_nothing_helps_there_is_no_button() -> None:
    state = state_of(subject_of("llama-65b"), "RTX 4060 Ti 16GB")
    assert state.remedy is None
    length, rows, rank, model = state.sizes
    assert (length.fits_text, rows.fits_text, rank.fits_text) == (
        "Not even 8 tokens fit", "Not even 1 row fits", "Not even rank 1 fits",
    )  # fmt: skip
    assert (length.use, rows.use, rank.use) == (None, None, None)
    assert known.find(str(model.use)) is not None


def test_the_micro_batch_offered_divides_the_effective_batch() -> None:
    length, rows, _rank, _model = state_of(
        subject_of("llama-7b", training__effective_batch=12), "RTX 4090"
    ).sizes
    assert rows.use == 12
    assert rows.stops == (1, 2, 3, 4, 6, 12)
    assert "12 rows" in rows.tip
    assert rows.fits_text.startswith("At most ")
    assert length.fits_text == "All 2,048 tokens of the model fit"


def test_stops_are_in_order_end_at_the_limit_and_are_found_again() -> None:
    for limit in (100, 512, 2048, 131_072, 40_960, 1_048_576):
        stops = length_stops(limit)
        assert list(stops) == sorted(set(stops))
        assert stops[-1] == limit
        assert all(stops[nearest(stops, n)] == n for n in stops)
    assert divisors_of(16) == (1, 2, 4, 8, 16)
    assert divisors_of(1) == (1,)


def test_before_the_search_has_ended_nothing_can_be_applied() -> None:
    found = sizes(subject_of("llama-7b"), None)
    assert [size.use for size in found] == [None] * 4
    assert sizes(None, None) == ()


def test_a_rehearsal_replaces_the_moving_parts_and_nothing_else() -> None:
    before = compared(subject_of("llama-7b"))
    after = explain.with_rehearsal(before, counted(before))
    for old, new in zip(before.bars, after.bars, strict=True):
        differing = {part.name for part in old.parts if new.part(part.name).bytes_ != part.bytes_}
        assert differing == ({"activations"} if old.name in explain.REHEARSED_SIDES else set())
    assert after.estimate.to_json()["double_quant"] == counted(before)["double_quant"]
    assert after.bar("double_quant").variant.moments == before.bar("double_quant").variant.moments


def test_the_mark_says_where_the_numbers_are_from() -> None:
    found = compared(subject_of("llama-7b"))
    bar = found.bar("double_quant")
    computed = mark_of(bar, RehearsalStatus())
    assert computed == "Computed by formula. The peak is in the backward pass of the last layer."
    assert "in a moment" in mark_of(bar, RehearsalStatus("waiting"))
    assert "50\u00a0% done" in mark_of(bar, RehearsalStatus("running", share=0.5))
    assert "when the running job is over" in mark_of(bar, RehearsalStatus("held"))
    assert "could not be rehearsed: it has code of its own." in mark_of(
        bar, RehearsalStatus("failed", problem="it has code of its own.")
    )
    after = explain.with_rehearsal(found, counted(found, 100 * 1024**2)).bar("double_quant")
    status = RehearsalStatus("done", seconds_ago=2.4, formula_bytes=bar.variant.peak_bytes)
    assert re.fullmatch(
        r"Rehearsed 2\u00a0s ago on the real model class, without its weights\. The peak is in the loss, at the operation mm\."
        r" The formula said 2\.\d\u00a0% less\.",
        mark_of(after, status),
    )
    assert ago_text(0.2) == "just now"
    assert ago_text(95) == "2\u00a0min ago"


def test_a_counted_part_names_the_rehearsal_as_its_source() -> None:
    found = compared(subject_of("llama-7b"))
    after = explain.with_rehearsal(found, counted(found))
    lines = {p.name: p.source for p in memory_state(after, None, is_double=True, gpu=None).parts}
    assert "rehearsed step" in lines["activations"]
    assert "rehearsed step" not in lines["quantized_weights"]


def summary(predicted: int | None, measured: int | None) -> RunSummary:
    return RunSummary(
        "one",
        Path("one"),
        "finished",
        "starter",
        "starter",
        1.0,
        2.0,
        1,
        1,
        3.0,
        2.0,
        predicted,
        measured,
        False,
    )


def test_the_error_of_past_runs_is_told() -> None:
    assert (
        past_error([]) == past_error([summary(100, None)]) == "No run on this computer has been measured yet."
    )
    one = past_error([summary(1000, 1014)])
    assert one == "On this computer: measured 1.4\u00a0% more than predicted in the newest run."
    many = past_error([summary(1000, 1014), summary(None, 5), summary(1000, 960), summary(1000, 1000)])
    assert "measured 1.4\u00a0% more" in many
    assert "0.0\u00a0% more in the middle of 3 runs, 4.0\u00a0% less at worst" in many


@pytest.mark.parametrize("mode", ["dark", "light"])
def test_the_label_on_a_part_is_readable_also_where_the_bar_is_faint(qapp: QApplication, mode: str) -> None:
    theme.apply(qapp, mode)
    try:
        for name in explain.TEXTS:
            for opacity in (1.0, 0.45):
                ink = ink_on(name, opacity).lightness()
                colour, panel = theme.part_colour(name), theme.tokens().panel
                under = opacity * colour.lightness() + (1 - opacity) * int(panel[1:3], 16)
                assert abs(ink - under) > 70, (name, opacity)
    finally:
        theme.apply(qapp, "dark")
