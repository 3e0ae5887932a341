"""The engine's sentences as the window says them: the place in the window instead of a command, figures kept with their units."""

from __future__ import annotations

import re

from app.presenters.numerals import NO_BREAK

COMMAND = re.compile(r"(with )?`((?:qlora|hf|pip|make|ollama)\b[^`]*)`")
"""Names in a message may have ticks of their own; those stay."""
WAYS = (
    (r"qlora resume .*--accept ", "the button \u201cGo on all the same\u201d"),
    (r"qlora resume\b", "the button \u201cResume\u201d"),
    (r"qlora runs duplicate\b", "\u201cDuplicate as a draft\u201d in its menu"),
    (r"qlora runs delete\b", "\u201cRemove for good\u201d"),
    (r"qlora runs$", "the list at the left"),
    (r"qlora queue list", "the window \u201cQueue\u201d"),
    (r"qlora data\b", "the tab \u201cData\u201d"),
    (r"qlora models\b", "the tab \u201cModel\u201d"),
    (r"hf auth login", "the token in the settings"),
)
"""What a command is in the window, the first that fits; any other is typed in a terminal here, too."""
PLACES = ("the list", "the tab", "the window")
"""One looks in them, where one looks with a command."""
FIGURE = re.compile(r"(?<![\w.])([-+]?\d[\d.,]*) (GiB|MiB|KiB|B|%|s|min|h|d|tokens/s|GB/s|W)(?![\w/])")


def in_window(text: str) -> str:
    """One or several sentences of an `EngineError`, a notice or a verdict, for a label."""
    return FIGURE.sub(rf"\1{NO_BREAK}\2", COMMAND.sub(_way, text))


def _way(found: re.Match[str]) -> str:
    lead, command = found[1] or "", found[2]
    place = next((place for pattern, place in WAYS if re.match(pattern, command)), None)
    if place is None:
        return f"{lead}\u201c{command}\u201d in a terminal"
    return f"{'in ' if lead and place.startswith(PLACES) else lead}{place}"
