"""Numbers as people read them: four significant digits at most, always with a unit, `n/a` for unknown."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from app.presenters import numerals
from qlora_engine.counting import agreeing
from qlora_engine.monitor.words import Figures

UNKNOWN = "n/a"
KIB, MIB, GIB = 1024, 1024**2, 1024**3
HYPHENED = ("held-out", "micro-batch", "end-of-turn", "on-disk")
"""Words of sentences that look like ids; `gpt-neo` and `seq_len` are ids."""
FIGURES = Figures(numerals.decimal, numerals.measured)
"""For the sentences that the engine makes for the window."""


def bytes_text(count: float | None) -> str:
    """`18.24 GiB`, `336 MiB`, `12.0 KiB`, `0 B`."""
    if count is None:
        return UNKNOWN
    size = abs(count)
    for name, unit, least in (("GiB", GIB, 1000 * MIB), ("MiB", MIB, 1000 * KIB), ("KiB", KIB, KIB)):
        if size >= least:
            whole = size / unit
            decimals = 2 if whole < 10 or (unit == GIB and whole < 100) else 1 if whole < 100 else 0
            return numerals.measured(numerals.decimal(count / unit, decimals), name)
    return numerals.measured(numerals.decimal(count, 0), "B")


def gib_text(count: float | None) -> str:
    """Always GiB with two digits: for figures that are compared with each other."""
    return UNKNOWN if count is None else gib_measured(count)


def gib_measured(count: float, decimals: int = 2) -> str:
    """In GiB, with as many digits as its place has room for."""
    return numerals.measured(gib_figure(count, decimals), "GiB")


def gib_figure(count: float, decimals: int = 2) -> str:
    """In GiB, without the unit: where it stands beside."""
    return numerals.decimal(count / GIB, decimals)


def duration_text(seconds: float | None) -> str:
    """`45 s`, `14 min`, `2 h 05 min`, `3 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if 0 < seconds < 1:
        return numerals.measured(numerals.decimal(seconds, 2), "s")
    if seconds < 90:
        return numerals.measured(numerals.decimal(seconds, 0), "s")
    minutes = round(seconds / 60)
    if minutes < 90:
        return numerals.measured(str(minutes), "min")
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return (
            f"{numerals.measured(str(hours), 'h')} {numerals.measured(numerals.two_digits(minutes), 'min')}"
        )
    return f"{numerals.measured(numerals.count(hours // 24), 'd')} {numerals.measured(str(hours % 24), 'h')}"


def clock_text(seconds: float) -> str:
    """`00:12:40`."""
    whole = max(0, int(seconds))
    return ":".join(map(numerals.two_digits, (whole // 3600, whole // 60 % 60, whole % 60)))


def number_text(value: float | None, digits: int = 4) -> str:
    """At most `digits` significant digits, without an exponent where it can be read without one."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 10 ** (digits + 2):
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return numerals.decimal(value, decimals)
    return numerals.scientific(value, digits - 1)


def count_text(value: int | None) -> str:
    """`22,680`."""
    return UNKNOWN if value is None else numerals.count(value)


def parameters_text(value: int | None) -> str:
    """`135 M`, `6.74 B`."""
    if value is None:
        return UNKNOWN
    if value >= 1e9:
        return numerals.measured(numerals.decimal(value / 1e9, 2 if value < 1e11 else 0), "B")
    if value >= 1e6:
        return numerals.measured(numerals.decimal(value / 1e6, 1 if value < 1e8 else 0), "M")
    return numerals.measured(numerals.decimal(value / 1e3, 0), "K")


def percent_text(ratio: float | None, places: int = 0) -> str:
    return UNKNOWN if ratio is None else numerals.percent(ratio, places)


def rate_text(tokens_per_second: float | None) -> str:
    """`812 tokens/s`."""
    return (
        UNKNOWN
        if tokens_per_second is None
        else numerals.measured(number_text(tokens_per_second, 3), "tokens/s")
    )


def ratio_text(done: int | None, total: int | None) -> str:
    """`120 / 4,000`, as `of_text` for a figure."""
    return count_text(done) if total is None else f"{count_text(done)} / {count_text(total)}"


def of_text(done: int | None, total: int | None) -> str:
    """`120 of 4,000`; without the end where that is unknown."""
    return count_text(done) if total is None else f"{count_text(done)} of {count_text(total)}"


def date_text(unix: float | None) -> str:
    """`2026-11-23 14:05`, local time."""
    return UNKNOWN if unix is None else numerals.date(unix)


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2 rows`."""
    return f"{numerals.count(count)} {one if count == 1 else many or one + 's'}"


def counted(count: int, noun: str, verb: str, *, of: int | None = None) -> str:
    """`1 row is`, `2 of 40 rows are`; `verb` is that of several."""
    named = plural(count if of is None else of, noun)
    return f"{named if of is None else f'{count_text(count)} of {named}'} {agreeing(count, verb)}"


def joined(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""


def capital(text: str) -> str:
    """As the beginning of a sentence, unless it begins with a name: those keep their case."""
    first = text.split(maxsplit=1)[0].rstrip(",.:;") if text.strip() else ""
    is_word = first in HYPHENED or re.fullmatch(r"[a-z]+('s)?", first)
    return text[:1].upper() + text[1:] if is_word else text
