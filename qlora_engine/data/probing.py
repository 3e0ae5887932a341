"""Finds out how a chat template lays out a conversation: what it reads, where answers begin, what ends them. Torch-free.

Found by rendering a few probes once per template and vocabulary; nothing is known by name. The ends found here are
those that training teaches and that generation stops on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from qlora_engine.data import sandbox
from qlora_engine.data.conversation import Message, ToolCall
from qlora_engine.data.layout import (
    THINK_CLOSERS,
    Ends,
    Layout,
    Rendered,
    Source,
    common_prefix,
    gap_after,
    gap_before,
    marker_places,
    render,
)
from qlora_engine.data.sandbox import TemplateRefused
from qlora_engine.data.wording import NO_CALLS, TOOLS, Shape

SWITCHES = ("enable_thinking", "thinking", "think")
REASONING_FORMS = ("reasoning_content", "reasoning", "thinking", "parts", "inline")
CALL_FORMS = ("object", "text", "flat", "parameters")
THOUGHT = re.compile("think|thought|reason", re.IGNORECASE)
ASK = Message("user", "qone")
SAY = Message("assistant", "aone")
ASK_MORE = Message("user", "qtwo")
SAY_MORE = Message("assistant", "atwo")
CALL = ToolCall("fnone", {"keyone": "valone"}, "c1")
CALLING = Message("assistant", "", calls=(CALL,))
RESULT = Message("tool", "resone", call_id="c1", name="fnone")
TOOL = {
    "type": "function",
    "function": {
        "name": "fnone", "description": "desone",
        "parameters": {
            "type": "object", "properties": {"keyone": {"type": "string", "description": "kone"}}, "required": ["keyone"],
        },
    },
}  # fmt: skip


def find_layout(source: Source, reasoning: str, shape: Shape | None = None) -> Layout:
    """Render the probes. `reasoning` is the run's policy.

    Raises:
        TemplateRefused: not even a question and an answer can be rendered.
        TemplateEndless: the template was ended.
    """
    shape = _with_system(source, _with_list(source, shape or Shape()))
    render(source, shape, [ASK, SAY])
    shape = _with_reasoning(source, shape, reasoning)
    shape = _with_calls(source, shape)
    ends = _find_ends(source, shape)
    answer = SAY if reasoning == "remove" else replace(SAY, reasoning="rone")
    cut, added = prompt_edit(source, shape, answer)
    return Layout(shape, ends, _header(source, shape), cut, added)


def _header(source: Source, shape: Shape) -> str:
    """What the template adds when an answer is asked for."""
    plain, prompt = _tried(source, shape, [ASK]), _tried(source, shape, [ASK], is_prompt=True)
    if plain is None or prompt is None:
        return ""
    before, asked = str.__str__(plain.text), str.__str__(prompt.text)
    return asked[len(before) :] if asked.startswith(before) else ""


def _tried(
    source: Source, shape: Shape, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (),
    *, is_prompt: bool = False,
) -> Rendered | None:  # fmt: skip
    try:
        return render(source, shape, messages, tools, is_prompt=is_prompt)
    except TemplateRefused:
        return None


def _with_list(source: Source, shape: Shape) -> Shape:
    wanting = replace(shape, has_tool_list=True)
    is_wanted = _tried(source, shape, [ASK, SAY]) is None and _tried(source, wanting, [ASK, SAY]) is not None
    return wanting if is_wanted else shape


def _with_system(source: Source, shape: Shape) -> Shape:
    found = None if shape.folds_system else _tried(source, shape, [Message("system", "sone"), ASK, SAY])
    shape = replace(shape, folds_system=found is None or not found.has(0))
    if "developer" in source.jinja and not shape.folds_system:
        own = replace(shape, has_developer=True)
        found = _tried(source, own, [Message("developer", "sone"), ASK, SAY])
        return own if found is not None and found.has(0) else shape
    return shape


def _with_reasoning(source: Source, shape: Shape, reasoning: str) -> Shape:
    """The form of reasoning that comes out, with the template's switch where it needs one."""
    known = [name for name in SWITCHES if name in sandbox.variables_of(source.jinja)]
    if reasoning == "remove":
        return replace(shape, reasoning=None, switches=tuple((name, False) for name in known))
    thinking = Message("assistant", "aone", "rone")
    for switches in ((), tuple((name, True) for name in known)):
        for form in REASONING_FORMS:
            tried = replace(shape, reasoning=form, switches=switches)
            found = _tried(source, tried, [ASK, thinking])
            if found is not None and found.has(1, "reasoning") and found.has(1, "text"):
                return tried
        if not known:
            break
    return replace(shape, reasoning=None)


def _with_calls(source: Source, shape: Shape) -> Shape:
    talk = [ASK, CALLING, RESULT, SAY_MORE]
    shape = replace(shape, has_tools=_has_tools(source, shape))
    for form in CALL_FORMS:
        for is_null in (False, True):
            for has_short in (False, True):
                tried = replace(shape, calls=form, is_content_null=is_null, has_short_ids=has_short)
                found = _tried(source, tried, talk, [TOOL]) or _tried(source, tried, talk[:2], [TOOL])
                if found is not None and _shows_call(found, form):
                    return replace(tried, has_results=_has_results(source, tried))
    written = replace(shape, calls=NO_CALLS, has_tools=False, refusal=_refusal(source, shape, talk[:2]))
    return replace(written, has_results=_has_results(source, written))


def _refusal(source: Source, shape: Shape, talk: Sequence[Message]) -> str:
    """What the template raises, in its words; empty where it renders."""
    try:
        render(source, shape, talk, [TOOL])
    except TemplateRefused as refused:
        return str(refused).rstrip(".")
    return ""


def _shows_call(found: Rendered, form: str) -> bool:
    extent = found.extent(1)
    if extent is None or not found.has(1, "calls", "id", "call name"):
        return False
    said = str.__getitem__(found.text, slice(*extent))
    before = str.__getitem__(found.text, slice(0, extent[1]))
    wanted = '{"keyone": "valone"}' if form == "text" else "valone"
    return wanted in said and "fnone" in before[before.rfind("qone") :] and "{'keyone'" not in found.text


def _has_results(source: Source, shape: Shape) -> bool:
    found = _tried(source, replace(shape, has_results=True), [ASK, CALLING, RESULT, SAY_MORE], [TOOL])
    return found is not None and found.has(2, "text") and found.has(3, "text")


def _has_tools(source: Source, shape: Shape) -> bool:
    found = _tried(source, replace(shape, has_tools=True), [ASK, SAY], [TOOL])
    return found is not None and found.has(TOOLS) and "desone" in found.text


def _find_ends(source: Source, shape: Shape) -> Ends:
    """Compare an answer in the middle with one at the end, as text and as calls."""
    said, after_text, is_next = _ends_of(source, shape, [ASK, SAY], [ASK_MORE, SAY_MORE], ())
    calls = _ends_of(source, shape, [ASK, CALLING], [RESULT, SAY_MORE], said, is_next=is_next)
    called, after_call = calls[0], calls[1]
    is_added = not said
    if is_added:
        end = dict(source.specials).get("eos_token")
        after_text = after_call = end
        said = (end,) if end else ()
    inside = _inside_answers(source, shape, said)
    eos = dict(source.specials).get("eos_token")
    stops = [end for end in dict.fromkeys((*said, *called)) if end not in inside]
    return Ends(
        said, called, after_text, after_call or after_text, is_next, is_added, tuple(stops),
        eos if inside and eos not in inside else None,
    )  # fmt: skip


def _ends_of(
    source: Source, shape: Shape, talk: Sequence[Message], more: Sequence[Message], known: tuple[str, ...],
    *, is_next: bool = False,
) -> tuple[tuple[str, ...], str | None, bool]:  # fmt: skip
    """(ends, what a last answer needs behind it, whether that is the next role's marker)."""
    tools = [TOOL] if talk[1].calls else []
    last, middle = _after(source, shape, talk, tools), _after(source, shape, [*talk, *more], tools)
    if middle is None and not tools:
        middle = _after(source, shape, [*talk, ASK_MORE], tools)
    found_last, found_middle = _markers_in(last, source), _markers_in(middle, source)
    for end in known:
        if end in found_last:
            return known, None, False
        if end in found_middle:
            return known, end if is_next else None, is_next
    if last is None or middle is None:
        found = found_last or found_middle
        return (
            ((found[-1] if last is not None else found[0],), None, False) if found else (known, None, False)
        )
    shared = _markers_in(last[: common_prefix(last, middle, source.markers)], source)
    ends = [end for end in shared if end in source.known_ends][:1]
    ends = ends or (shared[:1] if _is_always_asking(source, shape) else shared[-1:])
    if ends and tools and _is_closer(source, shape, talk, tools, ends[0]):
        ends, is_next = [], True
    if ends and not is_next:
        return tuple(ends), None, False
    if is_next or not found_last:
        beyond = found_middle[len(shared) :]
        return (tuple(beyond[:1]), beyond[0], True) if beyond else (known, None, False)
    return tuple(dict.fromkeys([found_last[-1], *found_middle[:1]])), None, False


def _is_always_asking(source: Source, shape: Shape) -> bool:
    """Whether the template asks for an answer whatever it is told, also behind the last one."""
    plain, prompt = _tried(source, shape, [ASK, SAY]), _tried(source, shape, [ASK, SAY], is_prompt=True)
    before = None if plain is None else gap_before(plain, 1)
    if (
        plain is None
        or prompt is None
        or before is None
        or str.__str__(plain.text) != str.__str__(prompt.text)
    ):
        return False
    header = str.__getitem__(plain.text, slice(before[0], before[1])).rstrip()
    tail = _markers_in(header, source)[-1:]
    return bool(tail) and str.rstrip(plain.text).endswith(header[header.rfind(tail[0]) :])


def _is_closer(
    source: Source, shape: Shape, talk: Sequence[Message], tools: Sequence[Mapping[str, Any]], end: str
) -> bool:
    """Whether a marker closes what another one opened inside the answer (`</tool_call>`), and so ends no turn."""
    if end in source.known_ends:
        return False
    found, prompt = _tried(source, shape, talk, tools), _tried(source, shape, talk[:1], tools, is_prompt=True)
    extent = None if found is None else found.extent(1)
    if found is None or prompt is None or extent is None:
        return False
    start = common_prefix(str.__str__(found.text), str.__str__(prompt.text), source.markers)
    inside = str.__getitem__(found.text, slice(start, extent[1]))
    return any(other != end and _core(other) == _core(end) for other in _markers_in(inside, source))


def _core(marker: str) -> str:
    """What a marker is about: `toolcall` of `<|tool_call_begin|>` and of `</tool_call>`."""
    words = re.findall(r"[a-z0-9]+", marker.lower().replace("_", " "))
    return "".join(
        word.removesuffix("s") for word in words if word not in ("begin", "end", "start", "prefix", "suffix")
    )


def _after(
    source: Source, shape: Shape, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> str | None:
    """The template's text behind the first answer."""
    found = _tried(source, shape, messages, tools)
    gap = None if found is None else gap_after(found, 1)
    return None if found is None or gap is None else str.__getitem__(found.text, slice(*gap))


def _markers_in(text: str | None, source: Source) -> list[str]:
    return [] if text is None else [text[a:b] for a, b in marker_places(text, source.markers)]


def _inside_answers(source: Source, shape: Shape, ends: Sequence[str]) -> set[str]:
    """Ends that also stand inside an answer, between its reasoning and its text (gpt-oss)."""
    if shape.reasoning is None:
        return set()
    found = _tried(source, shape, [ASK, Message("assistant", "aone", "rone")])
    extent = None if found is None else found.extent(1)
    if found is None or extent is None:
        return set()
    places = [p for p in found.pieces() if p[2] is not None and p[2][0] == 1]
    between = [str.__getitem__(found.text, slice(a[1], b[0])) for a, b in pairwise(places)]
    return {end for end in ends for text in between if end in text}


def prompt_edit(source: Source, shape: Shape, answer: Message) -> tuple[int, str]:
    """(characters too many at the end of the generation prompt, what is missing there) against `answer` when trained."""
    prompt, whole = _tried(source, shape, [ASK], is_prompt=True), _tried(source, shape, [ASK, answer])
    gap = None if whole is None else gap_before(whole, 1)
    asked = None if prompt is None else prompt.extent(0)
    if prompt is None or whole is None or gap is None or asked is None:
        return 0, ""
    tail = str.__getitem__(prompt.text, slice(asked[1], None))
    header = str.__getitem__(whole.text, slice(gap[0], gap[1]))
    shared = common_prefix(tail, header, source.markers)
    rest = "" if answer.reasoning else header[shared:]  # a mark that opens a thought is learned with it
    if not THOUGHT.search(tail[shared:] + rest):
        return 0, ""
    return len(tail) - shared, rest if THINK_CLOSERS.search(rest) else ""
