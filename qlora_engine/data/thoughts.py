"""Tells the thoughts of a generated answer from what it says, by how the model's own template writes them. Torch-free.

A chat keeps answers as texts without special tokens, and a prompt may have opened the thought already. Put between `<think>`
marks, which every reader here knows, an answer is rendered in later turns as training had it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from qlora_engine.data import ending, layout
from qlora_engine.data.layout import Rendered
from qlora_engine.data.probing import ASK, SAY
from qlora_engine.data.sandbox import TemplateEndless, TemplateRefused
from qlora_engine.data.templates import Template
from qlora_engine.data.wording import THINK_CLOSE, THINK_OPEN


@dataclass(frozen=True)
class Marks:
    """What the template writes around the parts of an answer: `opens` before a thought (empty where the prompt has it),
    `closes` behind it, None where no thought is written; `head` before an answer without one, `tail` behind any."""

    opens: str
    closes: re.Pattern[str] | None
    head: str
    tail: str


def told_apart(tokenizer: Any, template: Template, text: str, marked: str) -> str:
    """What an answer says, with its thought between `<think>` marks before it. `marked` is the answer with its special
    tokens; where nothing of the template's is found in it, that is `text`."""
    marks, said = marks_of(template), _without_end(marked, template)
    if marks is None:
        return text
    behind = said.removeprefix(marks.opens)
    end = None
    if marks.closes is not None:
        end = marks.closes.search(behind) if said.startswith(marks.opens) else None
    if end is not None:
        thought, rest = behind[: end.start()], behind[end.end() :]
    elif (marks.head or marks.tail) and said.startswith(marks.head):
        thought, rest = "", said.removeprefix(marks.head)
    else:  # it is plain, or was cut off while it thought
        return text
    thought, rest = plain_text(tokenizer, thought), plain_text(tokenizer, rest.removesuffix(marks.tail))
    return f"{THINK_OPEN}{thought}{THINK_CLOSE}{rest}" if thought else rest


def _without_end(marked: str, template: Template) -> str:
    said = marked.strip()
    ends = [end for end in template.end_tokens if said.endswith(end)]
    return said.removesuffix(ends[0]).rstrip() if ends else said


def marks_of(template: Template) -> Marks | None:
    """How this model's answers are written; None where its template tells nothing of it."""
    try:
        asked = ending.as_trained(template.source, template.layout, template.policy, [ASK], is_prompt=True)
        said = layout.render(template.source, template.layout.shape, [ASK, SAY])
        thinking = layout.render(
            template.source, template.layout.shape, [ASK, replace(SAY, reasoning="rone")]
        )
    except (TemplateRefused, TemplateEndless):
        return None
    whole, place = str.__str__(said.text), said.extent(1)
    if place is None:
        return None
    head = whole[len(asked) : place[0]].strip() if whole.startswith(asked) and len(asked) <= place[0] else ""
    opens, closes = _around_thought(thinking, asked)
    return Marks(opens, closes, head, _without_end(whole[place[1] :], template))


def _around_thought(shown: Rendered, asked: str) -> tuple[str, re.Pattern[str] | None]:
    places = {part: (a, b) for a, b, part in shown.pieces() if part is not None}
    thought, said = places.get((1, "reasoning")), places.get((1, "text"))
    if thought is None or said is None or said[0] < thought[1]:
        return "", None
    whole = str.__str__(shown.text)
    behind = whole[thought[1] : said[0]].strip()
    if not behind or not whole.startswith(asked) or len(asked) > thought[0]:
        return "", None
    return whole[len(asked) : thought[0]].strip(), re.compile(re.escape(behind))


def plain_text(tokenizer: Any, text: str) -> str:
    """The text without special tokens."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
