"""A generated answer as a message: its thought, its text and its calls told apart, by how the model's own template writes them.

A chat keeps such messages, so that its next turn is rendered as training had it. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_engine.data import ending, layout
from qlora_engine.data.call_forms import ID, NAME, Form, Placed
from qlora_engine.data.call_reading import ONE, TOOLS, form_of
from qlora_engine.data.conversation import Message, ToolCall
from qlora_engine.data.formats.turns import answer
from qlora_engine.data.layout import common_prefix
from qlora_engine.data.probing import ASK
from qlora_engine.data.sandbox import TemplateEndless, TemplateRefused
from qlora_engine.data.templates import Template
from qlora_engine.data.thoughts import plain_text, told_apart

THOUGHT, TEXT = "reasoning", "text"
IDENTITY = r"[\w.:-]{1,64}"
WRITTEN = re.compile(f"{ONE.name}|{ID.pattern}")
NEXT_TO_CALLS = (
    Message("assistant", "aone", "rone", (ONE,)),
    Message("assistant", "", "rone", (ONE,)),
    Message("assistant", "aone", None, (ONE,)),
    Message("assistant", "", None, (ONE,)),
)
"""What an answer that calls may say besides, the most first."""


@dataclass(frozen=True)
class Probe:
    """A rendered answer that calls: what a model would say of it, (start, end, field) of its thought and its text in that,
    where its call begins, what closes its calls before a text that follows them, and patterns of a call's id."""

    said: str
    parts: tuple[tuple[int, int, str], ...]
    start: int
    closes: str
    id_before: re.Pattern[str] | None = None
    id_behind: re.Pattern[str] | None = None


def as_message(
    tokenizer: Any, template: Template, text: str, marked: str, tools: Sequence[Mapping[str, Any]] = ()
) -> Message:
    """What a model said, as its later turns are told it. `text` is the answer without special tokens, `marked` with them;
    calls are looked for where it was given `tools`."""
    form = form_of(tokenizer, template) if tools else None
    placed = [] if form is None else list(form.placed(marked))
    if form is None or not placed:
        return answer(told_apart(tokenizer, template, text, marked))
    probes = list(_probes(template, form))
    calls = _with_ids(placed, marked, probes)
    return replace(_said(tokenizer, template, marked, placed, probes), calls=calls)


def _said(
    tokenizer: Any, template: Template, marked: str, placed: Sequence[Placed], probes: Sequence[Probe]
) -> Message:
    """Thought and text: what stands before the calls, or behind them."""
    for is_exact in (True, False):
        for probe in probes:
            found = _matched(probe, marked, placed[0][0], is_exact=is_exact)
            if found is not None:
                thought, text = (plain_text(tokenizer, found.get(part, "")) for part in (THOUGHT, TEXT))
                return Message("assistant", text, thought or None)
    before = marked[: placed[0][0]].rstrip()
    for opener in (probe.said[p[1] : probe.start].strip() for probe in probes for p in probe.parts[-1:]):
        before = before.removesuffix(opener)
    return answer(told_apart(tokenizer, template, plain_text(tokenizer, before), before))


def _matched(probe: Probe, marked: str, start: int, *, is_exact: bool) -> dict[str, str] | None:
    """The parts of an answer that is laid out as the probe; None where it is not."""
    before = [part for part in probe.parts if part[1] <= probe.start]
    behind = [part for part in probe.parts if part[0] >= probe.start]
    found = re.fullmatch(
        _pattern(probe.said[: probe.start], before, is_exact=is_exact), marked[:start], re.DOTALL
    )
    if found is None or not behind:
        return None if found is None else found.groupdict()
    place = marked.rfind(probe.closes)
    if not probe.closes or place < start:
        return None
    begin = behind[0][0]
    moved = [(first - begin, last - begin, name) for first, last, name in behind]
    tail = _pattern(probe.said[begin:], moved, is_exact=False)
    more = re.match(tail, marked[place + len(probe.closes) :].lstrip(), re.DOTALL)
    return None if more is None else found.groupdict() | more.groupdict()


def _pattern(said: str, parts: Sequence[tuple[int, int, str]], *, is_exact: bool) -> str:
    """What is said, with any text in place of the parts."""
    pieces, place = [], 0
    for first, last, name in parts:
        pieces += [_literal(said[place:first], is_exact=is_exact), rf"(?P<{name}>.*?\S.*?)"]
        place = last
    return "".join([*pieces, _literal(said[place:], is_exact=is_exact)])


def _literal(text: str, *, is_exact: bool) -> str:
    """Other calls have another name, and ids of their own."""
    if is_exact:
        return WRITTEN.sub(lambda _: IDENTITY, re.escape(text))
    return r"\s*" + r"\s+".join(_literal(word, is_exact=True) for word in text.split()) + r"\s*"


def _with_ids(placed: Sequence[Placed], marked: str, probes: Sequence[Probe]) -> tuple[ToolCall, ...]:
    """The calls with the ids that the answer gives them in front of their beginning, or behind their names."""
    id_before, id_behind = next(((p.id_before, p.id_behind) for p in probes), (None, None))
    ends = [*(start for start, _ in placed[1:]), len(marked)]
    found = []
    for (start, call), end in zip(placed, ends, strict=True):
        match = id_before and id_before.search(marked[:start])
        match = match or (id_behind and id_behind.search(marked[start:end]))
        found.append(replace(call, id=match["id"]) if match else call)
    return tuple(found)


def _probes(template: Template, form: Form) -> Iterator[Probe]:
    """`NEXT_TO_CALLS` as this template writes them; those that it refuses or leaves a part of out are not there."""
    for message in NEXT_TO_CALLS:
        (kept,) = template.policy.kept((message,))
        found = _probe(template, form, kept)
        wanted = {name for name, text in ((THOUGHT, kept.reasoning), (TEXT, kept.text)) if text}
        if found is not None and wanted == {name for _, _, name in found.parts}:
            yield found


def _probe(template: Template, form: Form, message: Message) -> Probe | None:
    source, known = template.source, template.layout
    try:
        asked = ending.as_trained(source, known, template.policy, [ASK], TOOLS, is_prompt=True)
        shown = layout.render(source, known.shape, [ASK, message], TOOLS)
    except (TemplateRefused, TemplateEndless):
        return None
    whole = str.__str__(shown.text)
    begin = common_prefix(whole, asked, source.markers)
    said = whole[begin:]
    placed = next(form.placed(said), None)
    own = [
        (a - begin, b - begin, part[1])
        for a, b, part in shown.pieces()
        if part and part[0] == 1 and a >= begin
    ]
    if placed is None:
        return None
    parts = tuple(piece for piece in own if piece[2] in (THOUGHT, TEXT))
    return Probe(said, parts, placed[0], _closing(said, own), *_ids(said, own, placed[0]))


def _closing(said: str, own: Sequence[tuple[int, int, str]]) -> str:
    """What stands between the calls and a text that follows them."""
    calls = max((end for _, end, name in own if name not in (THOUGHT, TEXT)), default=0)
    said_behind = (start for start, _, name in own if name in (THOUGHT, TEXT) and start >= calls > 0)
    text = next(said_behind, None)
    return "" if text is None else said[calls:text].strip()


def _ids(said: str, own: Sequence[tuple[int, int, str]], start: int) -> Sequence[re.Pattern[str] | None]:
    """Patterns of an id in front of a call's beginning at `start`, and behind its name; None where none is written there."""
    places = {name: (a, b) for a, b, name in reversed(own)}
    identity, name = places.get("id"), places.get("call name")
    if identity is None:
        return None, None
    if identity[1] <= start:
        return re.compile(f"(?P<id>{IDENTITY}){re.escape(said[identity[1] : start])}\\Z"), None
    arguments = places.get("calls", (len(said), 0))[0]
    if name is None or not name[1] <= identity[0] < arguments:
        return None, None
    return None, re.compile(f"{NAME}{re.escape(said[name[1] : identity[0]])}(?P<id>{IDENTITY})")
