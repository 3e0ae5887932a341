"""The language of numbers: each kind in English and in German, what Qt says of every language that can be chosen, and typing."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PySide6.QtCore import QLocale
from PySide6.QtWidgets import QApplication

from app.presenters import numerals, words
from app.presenters.experiment import result_rows, separator, typed_values
from app.presenters.memory import _part_line as part_line
from app.presenters.numerals import ENGLISH, Style
from app.presenters.typed import parsed, shown
from app.services.number_style import LANGUAGES, SYSTEM, style_of
from app.widgets.drawing import NumberField
from qlora_engine.config import TrainingConfig, all_knobs
from qlora_engine.errors import EngineError
from qlora_engine.memory import explain
from qlora_engine.models import known
from qlora_engine.runs.margin import Margin
from qlora_engine.runs.sweep import Planned, Result

GERMAN = style_of("de_DE")
NAMES = [name for name, _ in LANGUAGES if name != SYSTEM]


@pytest.fixture(autouse=True)
def english_again() -> Iterator[None]:
    yield
    numerals.use(ENGLISH)


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """14:05:09 on 23 November 2026, where that is the local time."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield float(calendar.timegm((2026, 11, 23, 14, 5, 9)))
    monkeypatch.undo()
    time.tzset()


KINDS = {
    "count": (lambda: words.count_text(1_234_567), "1,234,567", "1.234.567"),
    "decimal": (lambda: words.number_text(3.16829), "3.168", "3,168"),
    "large decimal": (lambda: words.number_text(22719.4), "22,719", "22.719"),
    "tiny": (lambda: words.number_text(1e-7), "1.000e-07", "1,000e-07"),
    "signed": (lambda: numerals.signed(1234.5, 1), "+1,234.5", "+1.234,5"),
    "short": (lambda: numerals.short(0.05), "0.05", "0,05"),
    "percent": (lambda: words.percent_text(0.1234, 1), "12.3\u00a0%", "12,3\u00a0%"),
    "change": (lambda: numerals.change(-0.974, 1), "-97.4\u00a0%", "-97,4\u00a0%"),
    "bytes": (lambda: words.bytes_text(18.24 * 1024**3), "18.24\u00a0GiB", "18,24\u00a0GiB"),
    "gib": (lambda: words.gib_text(2048.5 * 1024**3), "2,048.50\u00a0GiB", "2.048,50\u00a0GiB"),
    "parameters": (lambda: words.parameters_text(6_740_000_000), "6.74\u00a0B", "6,74\u00a0B"),
    "short duration": (lambda: words.duration_text(0.5), "0.50\u00a0s", "0,50\u00a0s"),
    "duration": (lambda: words.duration_text(1e8), "1,157\u00a0d 9\u00a0h", "1.157\u00a0d 9\u00a0h"),
    "rate": (lambda: words.rate_text(1234.5), "1,234\u00a0tokens/s", "1.234\u00a0tokens/s"),
    "progress": (lambda: words.of_text(1200, 20_000), "1,200 of 20,000", "1.200 of 20.000"),
    "plural": (lambda: words.plural(1200, "row"), "1,200 rows", "1.200 rows"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_in_english_and_in_german(kind: str) -> None:
    write, english, german = KINDS[kind]
    assert write() == english
    numerals.use(GERMAN)
    assert write() == german


def test_dates_and_times(utc: float) -> None:
    assert (words.date_text(utc), numerals.clock(utc)) == ("2026-11-23 14:05", "14:05")
    numerals.use(GERMAN)
    assert (words.date_text(utc), numerals.clock(utc)) == ("23.11.2026 14:05", "14:05")
    numerals.use(style_of("da_DK"))
    assert numerals.clock(utc) == "14.05"
    assert numerals.time_of_day("22:00") == "22.00"
    assert numerals.plain_time("22.00") == numerals.plain_time("22:00") == "22:00"


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_written_as_qt_s_tables_have_them(name: str) -> None:
    locale = QLocale(name)
    numerals.use(style_of(name))
    for value in (0, 7, 999, 1000, 9999, 10_000, 123_456, 1_234_567, 123_456_789, -5, -12_345):
        assert numerals.count(value) == locale.toString(value)
    for number in (0.0, 0.5, 1234.5, -12345.678):
        assert numerals.decimal(number, 2) == locale.toString(number, "f", 2)


def test_other_digits_and_unknown_languages_are_english() -> None:
    assert style_of("ar_EG") == style_of("no such") == style_of("C") == ENGLISH
    assert style_of("en") == ENGLISH
    assert style_of("en_GB").date == ENGLISH.date, "two English dates could be taken for each other"


def test_the_system_decides_where_nothing_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QLocale, "system", lambda: QLocale("fr_FR"))
    assert style_of(SYSTEM) == style_of("fr_FR")


@given(
    st.sampled_from(NAMES),
    st.one_of(
        st.integers(-(10**12), 10**12), st.floats(-1e12, 1e12, allow_nan=False).map(lambda x: round(x, 3))
    ),
)
def test_what_is_shown_can_be_typed(name: str, value: float) -> None:
    numerals.use(style_of(name))
    text = numerals.count(value) if isinstance(value, int) else numerals.decimal(value, 3)
    assert float(numerals.plain(text)) == value
    assert float(numerals.plain(numerals.in_style(repr(value)))) == value
    numerals.use(ENGLISH)


@pytest.mark.parametrize(
    ("style", "typed", "value"),
    [
        (GERMAN, "0,0002", 0.0002), (GERMAN, "0.0002", 0.0002), (GERMAN, "2,5e-4", 2.5e-4), (GERMAN, "1,5", 1.5),
        (ENGLISH, "0.0002", 0.0002), (ENGLISH, "2e-4", 2e-4), (ENGLISH, "0,0002", "0,0002"), (ENGLISH, "1,5", "1,5"),
        (GERMAN, "1,2,3", "1,2,3"), (GERMAN, "viel", "viel"),
    ],
)  # fmt: skip
def test_a_typed_number_is_read_in_its_language_or_named(style: Style, typed: str, value: object) -> None:
    numerals.use(style)
    assert parsed(all_knobs()["training.learning_rate"], typed) == value


@pytest.mark.parametrize(
    ("style", "typed", "value"),
    [(GERMAN, "1.024", 1024), (GERMAN, "1024", 1024), (GERMAN, "1\u202f024", 1024), (ENGLISH, "1,024", 1024), (ENGLISH, "1,02", "1,02"),
     (GERMAN, "10,24", "10,24"), (style_of("hi_IN"), "12,34,567", 1_234_567)],
)  # fmt: skip
def test_a_typed_count(style: Style, typed: str, value: object) -> None:
    numerals.use(style)
    assert parsed(all_knobs()["data.seq_len"], typed) == value


@pytest.mark.parametrize("name", NAMES)
def test_every_option_reads_what_it_shows(name: str) -> None:
    numerals.use(style_of(name))
    for path, knob in all_knobs().items():
        if knob.choices is None and bool not in knob.accepted_types:
            assert parsed(knob, shown(knob.default)) == knob.default, path
    assert shown(0.05) == "0.05".replace(".", numerals.style().decimal)


def test_lists_have_semicolons_where_numbers_have_commas() -> None:
    rate, rank = all_knobs()["training.learning_rate"], all_knobs()["lora.rank"]
    assert (separator(rate), separator(rank)) == ("commas", "commas")
    assert typed_values(rate, "0.0001, 0.0002") == (0.0001, 0.0002)
    numerals.use(GERMAN)
    assert (separator(rate), separator(rank)) == ("semicolons", "commas")
    assert typed_values(rate, "0,0001; 0,0002") == typed_values(rate, "0,0001, 0,0002") == (0.0001, 0.0002)
    assert typed_values(rank, "8, 16,32,") == (8, 16, 32)
    with pytest.raises(EngineError):
        typed_values(rate, "0,0001,0,0002")


def test_figures_that_the_engine_computed_are_written_here() -> None:
    """Those of a memory part's formula, a cell's value and its margin."""
    numerals.use(GERMAN)
    facts = next(one for one in known.known_models() if one.name == "llama-3.1-8b").facts()
    bar = explain.compare(facts, TrainingConfig(), seq_len=2048, micro_batch=1).bars[0]
    numbers = {
        name: part_line(bar.part(name), bar, bar).numbers for name in ("quantized_weights", "activations")
    }
    assert "quantized parameters 6.979.321.856" in numbers["quantized_weights"]
    assert "2.048" in numbers["activations"]
    planned = Planned("", "", ("training.learning_rate", "data.seq_len"), (0, 1), ((1e-4, 1024),), ())
    cell = Result((1e-4, 1024), (2.5, 2.25), 2.375, Margin(2, -0.125, 0.03, "better"), ("finished",) * 2)
    assert result_rows(planned, [cell]) == [
        ("0,0001", "1.024", "2 of 2 finished", "2,375", "0,1250 lower \u00b1 0,0300 over 2 seeds")
    ]


def test_a_field_with_a_range_takes_and_shows_the_language_s_form(qapp: QApplication) -> None:
    numerals.use(GERMAN)
    field = NumberField("Temperature", 0.7, 0.01, 5.0, "Higher is freer")
    assert field.text() == "0,7"
    assert "From 0,01 to 5" in field.toolTip()
    for typed, value, shown_again in (("1,25", 1.25, "1,25"), ("0.5", 0.5, "0,5"), ("viel", 0.5, "0,5")):
        field.setText(typed)
        field.editingFinished.emit()
        assert (field.value(), field.text()) == (value, shown_again)
    count = NumberField("Longest answer", 128, 1, 32_768, "Tokens at most")
    count.setText("2.048")
    assert count.value() == 2048
    assert "From 1 to 32.768" in count.toolTip()


def test_the_example_shows_a_style_that_is_not_in_use() -> None:
    assert numerals.example(GERMAN) == "1.234.567   1.234,5   -0,25   23.11.2026 14:05"
    assert numerals.style() == ENGLISH
