"""What a chat template writes, whose every character is, and what is known of a template. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

from qlora_engine.data import sandbox
from qlora_engine.data.conversation import Message
from qlora_engine.data.traced import TEMPLATE, Traced, opaque
from qlora_engine.data.wording import Origins, Shape, Untraced, worded

Part = tuple[int, str]
TAG = re.compile(
    r"<\|[^|<>\s'{}]{1,60}\|>|<｜[^｜<>'{}]{1,60}｜>|</?[a-zA-Z_][\w:.-]{0,40}>|\[/?[A-Z_]{2,40}\]"
)
THINK_CLOSERS = re.compile(
    r"</think(?:ing)?>|\[/THINK\]|</seed:think>|<\|end_of_thought\|>|</thought>|<channel\|>"
)


@dataclass(frozen=True)
class Source:
    """A template as it is rendered: its text, the tokenizer's special texts it may write, and every marker: a text
    that is one token and stands for structure."""

    jinja: str
    name: str
    specials: tuple[tuple[str, str], ...]
    markers: tuple[str, ...]
    known_ends: tuple[str, ...] = ()
    seconds: float = sandbox.SECONDS


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation; `parts[origin]` is (message, field)."""

    text: Traced
    parts: Sequence[Part]

    @cached_property
    def listed(self) -> list[tuple[int, int, Part | None]]:
        """(start, end, whose) in order; None is the template's own text. The name of a called tool counts where it
        stands first: templates repeat it beside the result."""
        found: list[tuple[int, int, Part | None]] = []
        place, seen = 0, set[int]()
        for size, origin in self.text.runs:
            part = None if origin == TEMPLATE or origin in seen else self.parts[origin]
            if part is not None and part[1] in ("call name", "id"):
                seen.add(origin)
            found.append((place, place + size, part))
            place += size
        return found

    def pieces(self) -> Iterator[tuple[int, int, Part | None]]:
        return iter(self.listed)

    def has(self, message: int, *fields: str) -> bool:
        return any(
            part is not None and part[0] == message and (not fields or part[1] in fields)
            for _, _, part in self.pieces()
        )

    def extent(self, message: int) -> tuple[int, int] | None:
        """From the first to the last character of a message; None when nothing of it is there."""
        found = [
            (start, end) for start, end, part in self.pieces() if part is not None and part[0] == message
        ]
        return (found[0][0], found[-1][1]) if found else None

    def text_of(self, message: int, name: str) -> str:
        """All characters of one part."""
        return "".join(
            str.__getitem__(self.text, slice(start, end))
            for start, end, part in self.pieces()
            if part == (message, name)
        )


@dataclass(frozen=True)
class Ends:
    """What ends an answer. `said` ends a text, `called` a turn of calls; `is_next_role`: the next role's marker does,
    so that a last answer needs `after_text` or `after_call` written behind it; so does one without any end."""

    said: tuple[str, ...]
    called: tuple[str, ...]
    after_text: str | None
    after_call: str | None
    is_next_role: bool
    is_added: bool
    stops: tuple[str, ...]
    inner_stop: str | None = None


@dataclass(frozen=True)
class Layout:
    """Everything known of a template. In use, `prompt_cut` characters fall off the generation prompt and
    `prompt_added` is put behind it, so that it is what stood before the trained answers. `header` is what the template
    writes for the prompt of an answer alone."""

    shape: Shape
    ends: Ends
    header: str = ""
    prompt_cut: int = 0
    prompt_added: str = ""


def render(
    source: Source, shape: Shape, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (),
    *, is_prompt: bool = False,
) -> Rendered:  # fmt: skip
    """One render.

    Raises:
        TemplateRefused: the template raised.
        TemplateEndless: it was ended.
    """
    origins = Origins(quoted(source)[1])
    values = _values(source, shape, *worded(messages, tools, shape, origins), is_prompt=is_prompt)
    text = sandbox.run(source.jinja, source.name, values, source.seconds)
    return Rendered(origins.shown(text), origins.parts)


def render_plain(source: Source, shape: Shape, messages: Sequence[Message]) -> str:
    """The text alone, for rows that quote nothing which a template looks for, and have no tools; several times faster.

    Raises:
        TemplateRefused, TemplateEndless: as `render`.
    """
    values = _values(source, shape, *worded(messages, (), shape, Untraced()), is_prompt=False)
    return sandbox.run_plain(source.jinja, source.name, values, source.seconds)


def _values(
    source: Source, shape: Shape, messages: Sequence[Any], tools: Sequence[Any] | None, *, is_prompt: bool
) -> dict[str, Any]:
    return {
        **dict(source.specials), **dict(shape.switches), "messages": messages, "tools": tools, "documents": None,
        "add_generation_prompt": is_prompt, **_asked_for(source, tools),
    }  # fmt: skip


def _asked_for(source: Source, definitions: Sequence[Any] | None) -> dict[str, Any]:
    """What some templates read under names of their own."""
    wanted = sandbox.variables_of(source.jinja)
    found: dict[str, Any] = {}
    if "functions" in wanted:
        found["functions"] = opaque(json.dumps([t["function"] for t in definitions or []]), definitions)
    if "datetime" in wanted:
        found["datetime"] = datetime.now().strftime("%B %d %Y")  # noqa: DTZ005 - the person's own day
    return found


def quoted(source: Source) -> tuple[str, re.Pattern[str]]:
    """What a row may quote and a template would take for its own: markers, and what looks like one in its source; the
    first letters of them all, and the pattern."""
    return _quoted(source.jinja, source.markers)


@lru_cache(maxsize=64)
def _quoted(jinja: str, markers: tuple[str, ...]) -> tuple[str, re.Pattern[str]]:
    words = {*markers, *TAG.findall(jinja)}
    pattern = re.compile("|".join(re.escape(w) for w in sorted(words, key=len, reverse=True)) or "(?!)")
    return "".join(sorted({word[0] for word in words if word})), pattern


def marker_places(text: str, markers: Sequence[str]) -> list[tuple[int, int]]:
    """Where markers stand in a text of the template, the longest first where they overlap."""
    found: list[tuple[int, int]] = []
    place = 0
    pattern = _pattern(tuple(markers))
    while pattern is not None and (match := pattern.search(text, place)):
        found.append(match.span())
        place = match.end()
    return found


def gap_before(rendered: Rendered, message: int) -> tuple[int, int, Part | None] | None:
    """(start, end, whose text stands before it) of the template's own text in front of a message."""
    before: tuple[int, Part | None] = (0, None)
    for start, end, part in rendered.pieces():
        if part is not None and part[0] == message:
            return before[0], start, before[1]
        if part is not None:
            before = (end, part)
    return None


def gap_after(rendered: Rendered, message: int) -> tuple[int, int] | None:
    """(start, end) of the template's own text behind a message."""
    last: int | None = None
    for start, end, part in rendered.pieces():
        if part is not None and part[0] == message:
            last = end
        elif part is not None and last is not None:
            return last, start
    return None if last is None else (last, len(rendered.text))


def common_prefix(one: str, other: str, markers: Sequence[str]) -> int:
    """How far two texts of a template agree, never into a marker of either."""
    size = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    for text in (one, other):
        for start, end in marker_places(text, markers):
            if start < size < end:
                size = start
    return size


def _pattern(markers: tuple[str, ...]) -> re.Pattern[str] | None:
    if markers not in _PATTERNS:
        if len(_PATTERNS) > 64:
            _PATTERNS.clear()
        words = "|".join(re.escape(m) for m in sorted(markers, key=len, reverse=True))
        _PATTERNS[markers] = re.compile(words) if words else None
    return _PATTERNS[markers]


_PATTERNS: dict[tuple[str, ...], re.Pattern[str] | None] = {}
