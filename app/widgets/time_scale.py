"""Round steps of scales, and times as a clock has them."""

from __future__ import annotations

import math

from app.presenters import numerals


def nice_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(rough, 1e-12)))
    return next(power * each for each in (1, 2, 5, 10) if power * each >= rough * 0.999)


def nice_seconds(rough: float) -> float:
    """The next step that a clock knows."""
    known = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
    return next((float(each) for each in known if each >= rough), 86400.0 * math.ceil(rough / 86400))


def time_text(seconds: float) -> str:
    """`0:30`, `12:40`, `1:05:00`; before zero with a minus sign."""
    whole = abs(round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    text = numerals.of_clock(hours, minutes, rest) if hours else numerals.of_clock(minutes, rest)
    return f"\u2212{text}" if seconds < -0.5 else text
