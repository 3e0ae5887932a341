"""Where the answers stand in a rendered row: from the end of the prompt that a chat would see to their end token.

One render tells whose every character is. Where an answer begins inside the template's own text is learned once for
each such text, from the prompt the template makes for it, and looked up for every other row. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from qlora_engine.data.conversation import Message, RowProblem
from qlora_engine.data.layout import (
    THINK_CLOSERS,
    Layout,
    Rendered,
    Source,
    common_prefix,
    gap_after,
    gap_before,
    marker_places,
)
from qlora_engine.data.policy import Policy
from qlora_engine.data.sandbox import TemplateRefused
from qlora_engine.data.skeleton import TRIMMED, Shapes
from qlora_engine.data.traced import Traced, joined
from qlora_engine.data.wording import NO_CALLS

Span = tuple[int, int]
Prompt = Callable[[int], Rendered]
"""The prompt in front of message number ..., as a chat would render it."""
Again = Callable[[Sequence[Message], bool], Rendered]
"""The row with other messages; with True, up to where an answer to them begins."""
PLACEHOLDER = "\uf8ff"


class MaskProblem(RowProblem):
    """The answers of a row cannot be found, or not told from the rest."""


@dataclass(frozen=True)
class Found:
    """A row ready to be tokenized: its text (every character with its origin, `parts` says whose), what is trained, what
    to say of it, and where ends were put in that the template does not write."""

    text: Traced
    spans: list[Span]
    notes: tuple[str, ...] = ()
    parts: Sequence[tuple[int, str]] = ()
    inserted: tuple[Span, ...] = ()


@dataclass
class Memory:
    """What was learned of a template's own texts; kept between rows. `renders` counts the traced ones, `plain_renders`
    the others."""

    begins: dict[tuple[str, bool], int] = field(default_factory=dict)
    closers: dict[tuple[str, bool], int] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)
    plain_renders: int = 0
    renders: int = 0
    rows: int = 0


@dataclass
class _Work:
    rendered: Rendered
    messages: Sequence[Message]
    source: Source
    layout: Layout
    policy: Policy
    prompt: Prompt
    again: Again
    memory: Memory
    is_prompt: bool = False
    notes: dict[str, None] = field(default_factory=dict)
    inserts: list[tuple[int, str]] = field(default_factory=list)


def find(
    rendered: Rendered, messages: Sequence[Message], source: Source, layout: Layout, policy: Policy,
    prompt: Prompt, again: Again, memory: Memory,
) -> Found:  # fmt: skip
    """The trained spans of a rendered conversation, each with its end.

    Raises:
        MaskProblem: an answer is left out, changed or mixed with other text.
    """
    work = _Work(rendered, messages, source, layout, policy, prompt, again, memory)
    spans: list[Span | None] = []
    kept_out: list[Span | None] = []
    for number, message in enumerate(messages):
        if not message.is_answer:
            _look_at_id(work, number)
            continue
        _require_whole(work, number)
        span = _span(work, number)
        (spans if policy.trains(message) else kept_out).append(span)
    text, moved = _with_ends(rendered.text, work.inserts)
    moved_spans = [(moved(span[0]), moved(span[1], is_end=True)) for span in spans if span is not None]
    if policy.train_on == "everything":
        moved_spans = _without(
            len(text), [(moved(s), moved(e, is_end=True)) for s, e in filter(None, kept_out)]
        )
    inserted = tuple((moved(at), moved(at) + len(end)) for at, end in sorted(work.inserts))
    return Found(text, moved_spans, tuple(work.notes), rendered.parts, inserted)


def _require_whole(work: _Work, number: int) -> None:
    """Nothing of an answer may be lost or changed but white space around it.

    Raises:
        MaskProblem: it is.
    """
    message, found = work.messages[number], work.rendered
    said = found.text_of(number, "text")
    if said != message.text:
        if said.strip() != message.text.strip():
            if not said.strip():
                raise MaskProblem("the chat template leaves the text of an answer out")
            raise MaskProblem("the chat template changes an answer's text, so that it cannot be found")
        work.notes[TRIMMED] = None
    if message.calls:
        _require_calls(work, number)
    if message.reasoning and found.text_of(number, "reasoning").strip() != message.reasoning.strip():
        is_last = not any(m.is_answer for m in work.messages[number + 1 :])
        which = "the last answer" if is_last else "earlier answers"
        work.notes[f"the chat template leaves the reasoning of {which} out"] = None


def _require_calls(work: _Work, number: int) -> None:
    message, extent = work.messages[number], work.rendered.extent(number)
    said = "" if extent is None else str.__getitem__(work.rendered.text, slice(*extent))
    for call in message.calls:
        values = call.arguments.values() if not isinstance(call.arguments, str) else ()
        words = [call.name, *(v for v in values if isinstance(v, str) and v.isalnum())]
        if any(word not in said for word in words):
            raise MaskProblem(f"the chat template leaves a call of {call.name} out")
    if work.layout.shape.calls == NO_CALLS:
        refusal = work.layout.shape.refusal
        why = f"refuses calls of tools ({refusal})" if refusal else "knows no calls of tools"
        work.notes[f"the chat template {why}; they are written as JSON in <tool_call>"] = None


def _look_at_id(work: _Work, number: int) -> None:
    """Whether a result is named as its call is: some templates make ids of their own for calls alone."""
    identity = work.rendered.text_of(number, "id")
    calls = [n for n in range(number) if work.messages[n].calls]
    extent = work.rendered.extent(calls[-1]) if calls and identity else None
    gap = gap_before(work.rendered, calls[-1]) if extent is not None else None
    if extent is None or gap is None:
        return
    if identity not in str.__getitem__(work.rendered.text, slice(gap[0], extent[1])):
        work.notes["the chat template writes the data's id beside a result, and not beside its call"] = None


def _span(work: _Work, number: int) -> Span | None:
    """Where an answer begins and ends; None for one without a character that is only read."""
    message = work.messages[number]
    if work.rendered.extent(number) is None:
        return _empty_span(work, number) if work.policy.trains(message) else None
    gap, after = gap_before(work.rendered, number), gap_after(work.rendered, number)
    assert gap is not None
    assert after is not None
    start = gap[0] + _begin(work, number, gap)
    end = _end(work, number, after)
    start = _after_thoughts(work, number, start, end)
    _require_alone(work, number, start, end)
    return start, end


def _begin(work: _Work, number: int, gap: tuple[int, int, Any]) -> int:
    """How many characters of the template's own text in front of an answer belong to the prompt."""
    own = str.__getitem__(work.rendered.text, slice(gap[0], gap[1]))
    key = (own, gap[2] is None)
    if key not in work.memory.begins:
        work.memory.begins[key] = _learn_begin(work, number, gap, own)
    return work.memory.begins[key]


def _learn_begin(work: _Work, number: int, gap: tuple[int, int, Any], own: str) -> int:
    prompt = work.prompt(number)
    said = str.__str__(prompt.text)
    if str.startswith(work.rendered.text, said) and gap[0] <= len(said):
        return max(min(len(said), gap[1]) - gap[0], _behind_header(work, own))
    last = [(end, part) for _, end, part in prompt.pieces() if part is not None][-1:]
    if last and last[0][1] != gap[2]:
        raise MaskProblem("the chat template writes the prompt of an answer in another order")
    tail = said[last[0][0] if last else 0 :]
    return max(common_prefix(tail, own, work.source.markers), _behind_header(work, own))


def _behind_header(work: _Work, own: str) -> int:
    """The place behind what the template writes for a prompt alone; it does not, after an answer, in every template."""
    header = work.layout.header
    found = own.rfind(header) if header.strip() else -1
    return found + len(header) if found >= 0 else 0


def _after_thoughts(work: _Work, number: int, start: int, end: int) -> int:
    """Where the trained part begins when reasoning is not trained: behind it, and behind an empty block of it."""
    if work.policy.reasoning == "train":
        return start
    others = [
        (a, b) for a, b, part in work.rendered.pieces()
        if part is not None and part[0] == number and part[1] != "reasoning" and a >= start
    ]  # fmt: skip
    first = others[0][0] if others else end
    own = str.__getitem__(work.rendered.text, slice(start, first))
    thoughts = [b for a, b, part in work.rendered.pieces() if part == (number, "reasoning") and b <= first]
    if others and work.messages[number].text.strip():
        is_behind = bool(thoughts) or THINK_CLOSERS.search(own) is not None
        return first if is_behind else start
    closers = list(THINK_CLOSERS.finditer(own))
    if not closers:
        return max([start, *thoughts])
    behind = own[closers[-1].end() :]
    return start + closers[-1].end() + len(behind) - len(behind.lstrip())


def _end(work: _Work, number: int, after: Span) -> int:
    """The place behind the end of an answer; an end that the template does not write is put there."""
    place, missing = _end_or_missing(work, number, after)
    if missing is None:
        return _with_stop(work, after, place)
    work.inserts.append((place, missing))
    ends = work.layout.ends
    if ends.is_added or after[1] < len(work.rendered.text):
        which = (
            "no answer; {} is put behind each"
            if ends.is_added
            else "some answers without {}; it is put behind them"
        )
        work.notes[f"the chat template ends {which.format(missing)}"] = None
    return place


def _end_or_missing(work: _Work, number: int, after: Span) -> tuple[int, str | None]:
    """(the place behind the end of an answer, None); (the place for it, the end) where the template writes none."""
    ends, message = work.layout.ends, work.messages[number]
    own = str.__getitem__(work.rendered.text, slice(*after))
    wanted = ends.called if message.calls and ends.called else ends.said
    for candidates in (wanted, (*ends.said, *ends.called)):
        places = [b for a, b in marker_places(own, work.source.markers) if own[a:b] in candidates]
        if places:
            return after[0] + places[0], None
    missing = (ends.after_call if message.calls else ends.after_text) or next(iter(wanted), None)
    if missing is None:
        raise MaskProblem("neither the chat template nor the tokenizer names a token that ends an answer")
    return after[0] + _closers(work, number, own, after), missing


def _with_stop(work: _Work, after: Span, end: int) -> int:
    """A last answer whose end also stands inside answers (before the text, behind the reasoning) needs one that does not."""
    ends = work.layout.ends
    is_last = after[1] == len(work.rendered.text)
    if ends.inner_stop is None or not is_last:
        return end
    rest = str.__getitem__(work.rendered.text, slice(after[0], after[1]))
    if any(rest[a:b] in ends.stops for a, b in marker_places(rest, work.source.markers)):
        return end
    work.inserts.append((end, ends.inner_stop))
    return end


def _closers(work: _Work, number: int, own: str, after: Span) -> int:
    """How much of the text behind an answer still belongs to it (what closes a call): what is there with no turn behind it."""
    if after[1] == len(work.rendered.text):
        return len(own.rstrip())
    key = (own, bool(work.messages[number].calls))
    if key not in work.memory.closers:
        alone = _behind_last(work, number)
        shared = common_prefix(own, alone, work.source.markers)
        work.memory.closers[key] = len(own[:shared].rstrip())
    return work.memory.closers[key]


def _behind_last(work: _Work, number: int) -> str:
    """The template's text behind an answer where the conversation ends with it; empty where it refuses that."""
    try:
        shown = work.again(work.messages[: number + 1], False)
    except (RowProblem, TemplateRefused):
        return ""
    gap = gap_after(shown, number)
    return "" if gap is None else str.__getitem__(shown.text, slice(*gap))


def _empty_span(work: _Work, number: int) -> Span | None:
    """An empty answer has no character of its own: it stands where one of a single character would."""
    filled = [
        *work.messages[:number],
        replace(work.messages[number], text=PLACEHOLDER),
        *work.messages[number + 1 :],
    ]
    shown = work.again(filled, work.is_prompt)
    extent, gap = shown.extent(number), gap_before(shown, number)
    plain = str.__str__(shown.text)
    if extent is None or gap is None or plain.replace(PLACEHOLDER, "") != str.__str__(work.rendered.text):
        return _empty_behind_prompt(work, number)
    start = gap[0] + _begin(replace(work, rendered=shown, messages=filled), number, gap)
    after = gap_after(shown, number)
    assert after is not None
    moved = (after[0] - len(PLACEHOLDER), after[1] - len(PLACEHOLDER))
    return start, _end(work, number, moved)


def _empty_behind_prompt(work: _Work, number: int) -> Span | None:
    """An empty answer that the template writes in a way of its own: it begins where its prompt ends, if that is there."""
    said = str.__str__(work.prompt(number).text)
    if not str.startswith(work.rendered.text, said):
        work.notes["the chat template writes an empty answer unlike others, so that it is only read"] = None
        return None
    places = [a for a, _, part in work.rendered.pieces() if part is not None and a >= len(said)]
    return len(said), _end(work, number, (len(said), places[0] if places else len(work.rendered.text)))


def _require_alone(work: _Work, number: int, start: int, end: int) -> None:
    """Only an answer's own parts are inside its span, and all of them.

    Raises:
        MaskProblem: others are, or a part stands outside.
    """
    is_partial = work.policy.reasoning != "train"
    for a, b, part in work.rendered.pieces():
        if part is None:
            continue
        is_inside = a < end and b > start
        if is_inside and part[0] != number:
            raise MaskProblem("the chat template mixes an answer with other text")
        if part[0] == number and part[1] != "id" and not is_inside:
            if part[1] == "reasoning" and is_partial:
                continue
            raise MaskProblem("the chat template writes parts of an answer in other places")


def _with_ends(text: Traced, inserts: Sequence[tuple[int, str]]) -> tuple[Traced, Callable[..., int]]:
    """The text with missing ends put in, and where each of its old places is now."""
    pieces: list[str] = []
    place = 0
    for at, end in sorted(inserts):
        pieces += [text.part(place, at), end]
        place = at
    pieces.append(text.part(place, len(text)))

    def moved(old: int, *, is_end: bool = False) -> int:
        return old + sum(len(end) for at, end in inserts if at < old or (is_end and at == old))

    return (joined(pieces) if inserts else text), moved


def _without(size: int, holes: Sequence[Span]) -> list[Span]:
    found, place = [], 0
    for start, end in sorted(holes):
        found.append((place, start))
        place = end
    return [span for span in [*found, (place, size)] if span[0] < span[1]]


def missing_ends(
    rendered: Rendered, messages: Sequence[Message], source: Source, layout: Layout, policy: Policy,
    prompt: Prompt, again: Again, *, is_prompt: bool,
) -> dict[int, tuple[int, str]]:  # fmt: skip
    """Number of an answer -> (place, end) of each end that training puts in and the template does not write.

    A last answer's is left to the next turn where that brings it.
    """
    work = _Work(rendered, messages, source, layout, policy, prompt, again, Memory(), is_prompt)
    found: dict[int, tuple[int, str]] = {}
    for number, message in enumerate(messages):
        if not message.is_answer or (number == len(messages) - 1 and not layout.ends.is_added):
            continue
        work.inserts.clear()
        with suppress(MaskProblem):  # a row that training leaves out is rendered as it is
            after = gap_after(rendered, number)
            if after is not None:
                _end(work, number, after)
            elif policy.trains(message):
                _empty_span(work, number)
        if work.inserts:
            found[number] = work.inserts[0]
    return found


def with_ends(text: Traced, missing: Mapping[int, tuple[int, str]]) -> Traced:
    """A rendered conversation as training had it, with its `missing_ends`."""
    return _with_ends(text, list(missing.values()))[0]


def with_prompt(text: str, layout: Layout) -> str:
    """The generation prompt as trained answers had it before them."""
    kept = text[: len(text) - layout.prompt_cut] if layout.prompt_cut else text
    return kept + layout.prompt_added
