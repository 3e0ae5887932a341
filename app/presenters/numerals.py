"""How figures are written and read: separators, date and clock of the language chosen in the settings. Without Qt.

Every number that a person sees in the window goes through here; `words` adds the units. Units, signs and percent keep the form
of SI (`85 %`), and digits are 0 to 9 in every language. Files and what the engine says are not of the window: they have a point.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

SPACES = " \u00a0\u2009\u202f"
"""What languages group digits with, besides points, commas and apostrophes."""
APOSTROPHES = "'\u2019"
MINUS = "\u2212"
NO_BREAK = "\u00a0"


@dataclass(frozen=True)
class Style:
    """How a language writes numbers. `sizes`: digits of the last group and of those before it (3 and 2 in India); `least`: how
    many digits a number has at least that is grouped. `date` and `clock` as `time.strftime` takes
    them; `clock` is `%H`, one sign, `%M`."""

    decimal: str = "."
    group: str = ","
    sizes: tuple[int, int] = (3, 3)
    least: int = 4
    minus: str = "-"
    date: str = "%Y-%m-%d"
    clock: str = "%H:%M"


ENGLISH = Style()
_current = ENGLISH


def use(style: Style) -> None:
    """Write all numbers in `style` from now on; texts that were made before stay as they are."""
    global _current
    _current = style


def style() -> Style:
    """The one in use."""
    return _current


def count(value: int) -> str:
    """`22,680`."""
    return _grouped(str(value))


def decimal(value: float, places: int, *, is_grouped: bool = True) -> str:
    """`1,234.50`, with `places` digits after the separator."""
    plain = f"{value:.{places}f}"
    return _grouped(plain) if is_grouped else in_style(plain)


def signed(value: float, places: int) -> str:
    """`+12.5`, `-3.0`."""
    return _grouped(f"{value:+.{places}f}")


def short(value: float, digits: int = 6, *, is_grouped: bool = False) -> str:
    """`0.05`, `2`, `1e-05`: without zeros at the end, with `digits` significant digits at most."""
    plain = f"{value:.{digits}g}"
    return _grouped(plain) if is_grouped else in_style(plain)


def scientific(value: float, places: int) -> str:
    """`1.000e-07`."""
    return in_style(f"{value:.{places}e}")


def measured(figure: str, unit: str) -> str:
    """A figure and its unit, which no end of a line parts; the figure alone where there is no unit."""
    return f"{figure}{NO_BREAK}{unit}" if unit else figure


def percent(ratio: float, places: int = 0) -> str:
    """`85 %` for 0.85."""
    return measured(decimal(100 * ratio, places), "%")


def change(ratio: float, places: int = 0) -> str:
    """`-97 %` for -0.97: a change, with its sign."""
    return measured(signed(100 * ratio, places), "%")


def of_clock(*parts: int) -> str:
    """`0:05:09`: whole numbers as clocks have them, the first as it is and the others with two digits."""
    return ":".join(f"{part:02d}" if place else f"{part:d}" for place, part in enumerate(parts))


def two_digits(value: int) -> str:
    return f"{value:02d}"


def date(unix: float) -> str:
    """`2026-11-23 14:05`, local time."""
    return time.strftime(f"{_current.date} {_current.clock}", time.localtime(unix))


def clock(unix: float) -> str:
    """`14:05`, local time."""
    return time.strftime(_current.clock, time.localtime(unix))


def time_of_day(plain: str) -> str:
    """`22:00` as the language's clock has it."""
    return plain.replace(":", _current.clock[2])


def plain_time(text: str) -> str:
    """A typed time of the day with a colon."""
    return text.replace(_current.clock[2], ":")


def example(style: Style) -> str:
    """What numbers, a date and a time look like in `style`, whichever is in use."""
    written = [_grouped(plain, style) for plain in ("1234567", "1234.5", "-0.25")]
    at = time.struct_time((2026, 11, 23, 14, 5, 0, 0, 327, 0))
    return "   ".join((*written, time.strftime(f"{style.date} {style.clock}", at)))


def in_style(plain: str, style: Style | None = None) -> str:
    """A number as Python writes it, with the separator and the minus of the language, ungrouped."""
    style = style or _current
    lead = style.minus if plain.startswith("-") else ""
    return lead + plain.removeprefix("-" if lead else "").replace(".", style.decimal)


def plain(text: str) -> str:
    """A typed number as Python reads it. What is no number in this language stays as it is, so that `0.5` is read in all."""
    typed = text.strip().replace(MINUS, "-")
    groups = re.escape(_current.group + SPACES + APOSTROPHES)
    mark = re.escape(_current.decimal)
    if re.fullmatch(rf"[-+]?[1-9]\d{{0,2}}([{groups}]\d{{2,3}})*[{groups}]\d{{3}}({mark}\d*)?", typed):
        typed = re.sub(f"[{groups}]", "", typed)
    elif "." in typed:
        return typed
    return typed.replace(_current.decimal, ".")


def _grouped(plain: str, style: Style | None = None) -> str:
    """With separators between groups of digits; exponents and what is no number are left alone."""
    style = style or _current
    found = re.fullmatch(r"([-+]?)(\d+)(\.\d+)?", plain)
    if found is None:
        return in_style(plain, style)
    sign, whole, rest = found[1], found[2], found[3] or ""
    if len(whole) >= style.least:
        whole = style.group.join(_groups(whole, style.sizes))
    return sign.replace("-", style.minus) + whole + rest.replace(".", style.decimal)


def _groups(digits: str, sizes: tuple[int, int]) -> list[str]:
    last, before = sizes
    head, found = digits[:-last], [digits[-last:]]
    while head:
        head, group = head[:-before], head[-before:]
        found.insert(0, group)
    return found
