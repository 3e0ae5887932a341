"""What commands print: one JSON document, or words and tables with units."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")

NOT_AVAILABLE = "n/a"
OWN_STYLE = re.compile(r"\x1b\[[0-9;]*m")
"""Colours, which this program writes itself."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys instead of showing: escapes, bells, carriage returns, changes of direction."""

stream: TextIO | None = None
"""Where results go while a job in this process has `sys.stdout` pointed at stderr; None: `sys.stdout`."""


def print_json(document: Any) -> None:
    """One document on stdout; NaN becomes null because JSON has none."""
    _write(_json(document, indent=1))


def print_line(document: Mapping[str, Any]) -> None:
    """One document on one line, flushed, for streams."""
    _write(_json(document))


def _json(document: Any, indent: int | None = None) -> str:
    text = json.dumps(_plain(document), ensure_ascii=False, allow_nan=False, indent=indent)
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str = "") -> None:
    """One line of the result."""
    _write(text)


def visible(text: str) -> str:
    """`text` with every character that a terminal would obey in a form that is only seen: ESC becomes `\\x1b`.

    Everything that this program writes to a terminal goes through here, whoever wrote it. Colours stay where there is
    colour; `quoted` is for texts of others, which have none.
    """
    if CONTROL.search(text) is None:
        return text
    if not has_colour():
        return quoted(text)
    pieces, at = [], 0
    for style in OWN_STYLE.finditer(text):
        pieces += [quoted(text[at : style.start()]), style[0]]
        at = style.end()
    return "".join([*pieces, quoted(text[at:])])


def quoted(text: str) -> str:
    """A text of a dataset or a model with all its control characters made visible."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def has_colour() -> bool:
    """True on a terminal that does not object (NO_COLOR)."""
    return (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR")


def write_piece(text: str) -> None:
    """A piece of a line, shown at once."""
    out = stream or sys.stdout
    out.write(visible(text))
    out.flush()


def _write(line: str) -> None:
    write_piece(line + "\n")


def program() -> str:
    """What a person types to start this program again: `qlora`, or its path where the shell does not find it."""
    started = Path(sys.argv[0])
    found = shutil.which("qlora")
    if started.stem != "qlora" or (found and Path(found).resolve() == started.resolve()):
        return "qlora"
    with contextlib.suppress(ValueError):
        return str(started.resolve().relative_to(Path.cwd()))
    return str(started)


def note(text: str) -> None:
    """A word beside the result: stderr."""
    print(visible(text), file=sys.stderr, flush=True)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their longest cell."""
    cells = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """Name and value, one pair a line, aligned."""
    pairs = list(pairs)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        say(f"{name.ljust(width)}  {value}")


def size(amount: float | None) -> str:
    """Bytes as GiB, MiB or KiB."""
    if amount is None:
        return NOT_AVAILABLE
    for unit, scale in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if abs(amount) >= scale:
            return f"{amount / scale:.2f} {unit}"
    return f"{amount:.0f} B"


def count(number: int | None) -> str:
    """Parameters and the like: 1.24 B, 134.5 M, 12,345."""
    if number is None:
        return NOT_AVAILABLE
    if number >= 1_000_000_000:
        return f"{number / 1e9:.2f} B"
    if number >= 1_000_000:
        return f"{number / 1e6:.1f} M"
    return f"{number:,}"


def number(value: float | None, digits: int = 4) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.{digits}g}"


def loss(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.4f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOT_AVAILABLE
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def moment(unix: float | None) -> str:
    return NOT_AVAILABLE if unix is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
