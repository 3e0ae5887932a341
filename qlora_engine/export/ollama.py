"""A Modelfile for Ollama, made from the run's own chat template.

Reference: https://github.com/ollama/ollama/blob/main/docs/modelfile.md. Ollama speaks Go templates, not Jinja. The Jinja
template is rendered with marks in place of texts, cut into what stands around each role, and said again in Go; what the
two would then render differently is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.templates import Template, render
from qlora_engine.errors import EngineError
from qlora_engine.export.gguf import Plan

SYSTEM, USER, ANSWER, AGAIN, LAST = (
    "\u27e6s\u27e7",
    "\u27e6u\u27e7",
    "\u27e6a\u27e7",
    "\u27e6v\u27e7",
    "\u27e6b\u27e7",
)
Messages = list[dict[str, str]]
DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class Pieces:
    """What a template writes around each role's text, as (before, after).

    `opening` stands before everything, `unasked` before a conversation that has no system prompt, `prompt` where the
    model's answer begins. `folded` is what stands between a system prompt and the question that it is put in front of,
    None where the system prompt has a turn of its own.
    """

    opening: str
    unasked: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    prompt: str
    folded: str | None = None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What Ollama would make of a conversation that ends with a question."""
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        has_system = messages[0]["role"] == "system"
        text = self.opening + ("" if has_system else self.unasked)
        for place, message in enumerate(messages):
            role, content = message["role"], message["content"]
            if role == "system" and self.folded is not None:
                continue
            if role == "user" and place == 1 and has_system and self.folded is not None:
                content = messages[0]["content"] + self.folded + content
            before, after = around[role]
            text += before + content + after
        return text + self.prompt

    def go(self) -> str:
        """The same as a Go template."""
        unasked = f"{{{{ if not .System }}}}{_go(self.unasked)}{{{{ end }}}}" if self.unasked else ""
        inside = "{{ .Content }}"
        asked = inside
        if self.folded is not None:
            asked = f"{{{{ if and $.System (eq $i 1) }}}}{{{{ $.System }}}}{_go(self.folded)}{{{{ end }}}}{inside}"
            system = ""
        else:
            system = _go(self.system[0]) + inside + _go(self.system[1])
        return (
            f"{_go(self.opening)}{unasked}"
            "{{ range $i, $_ := .Messages }}"
            f'{{{{ if eq .Role "system" }}}}{system}'
            f'{{{{ else if eq .Role "user" }}}}{_go(self.user[0])}{asked}{_go(self.user[1])}'
            f'{{{{ else if eq .Role "assistant" }}}}{_go(self.assistant[0])}{inside}{_go(self.assistant[1])}{{{{ end }}}}'
            f"{{{{ end }}}}{_go(self.prompt)}"
        )


def modelfile(plan: Plan, gguf_name: str, end_ids: Sequence[int]) -> str:
    """The Modelfile: the file, the template, where an answer ends (`end_ids`), and how much context is kept.

    Raises:
        EngineError: a template that cannot be said in Ollama's language.
    """
    pieces = pieces_of(plan.tokenizer, plan.template, plan.words.adds_bos)
    template = pieces.go()
    if '"""' in template:
        raise _refusal("it holds three quotation marks in a row")
    positions = int(plan.fields["{arch}.context_length"])
    stops = plan.tokenizer.convert_ids_to_tokens(list(dict.fromkeys([*plan.end_ids, *end_ids])))
    return "\n".join([
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{template}"""',
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
        f"PARAMETER num_ctx {min(positions, DEFAULT_CONTEXT)}",
        "",
    ])  # fmt: skip


def pieces_of(tokenizer: Any, template: Template, adds_bos: bool) -> Pieces:
    """Cut a template into what it writes around each role. Where Ollama adds the first token, it is left out.

    Raises:
        EngineError: it cannot be cut so that every conversation comes out the same.
    """

    def shown(messages: Messages, *, is_prompt: bool = False) -> str:
        return render(tokenizer, template, messages, is_prompt=is_prompt)

    try:
        pieces = _cut(shown, template.folds_system)
    except ValueError as error:
        raise _refusal("it does not write the texts one after the other") from error
    for conversation in _conversations():
        if pieces.render(conversation) != shown(conversation, is_prompt=True):
            raise _refusal("it depends on more than the role of each message")
    bos = str(tokenizer.bos_token or "")
    if not (adds_bos and bos):
        return pieces
    return _without_bos(pieces, bos)


def lacking(tokenizer: Any, template: Template, adds_bos: bool) -> str | None:
    """A sentence where two answers in a row are written otherwise than training had them; None where they are not."""
    pieces = pieces_of(tokenizer, template, adds_bos)
    turns = [*_turns("One?", "First answer."), {"role": "assistant", "content": "More."}, *_turns("Two?")]
    bos = str(tokenizer.bos_token or "") if adds_bos else ""
    try:
        wanted = render(tokenizer, template, turns, is_prompt=True)
    except RowProblem:
        return None
    if pieces.render(turns) == wanted.removeprefix(bos):
        return None
    return "The Modelfile writes two answers in a row otherwise than training had them: keep to one answer for each question"


def _cut(shown: Any, folds: bool) -> Pieces:
    turns = _turns(USER, ANSWER, AGAIN, LAST)
    before, between, middle, _, end = _around(shown(turns), USER, ANSWER, AGAIN, LAST)
    after_answer = end
    user_before = _cut_off(middle, after_answer, "")
    (opening, after_user) = _around(shown(turns[:1]), USER)
    prompted = shown(turns[:1], is_prompt=True)
    prompt = _cut_off(_around(prompted, USER)[1], after_user, "")
    assistant_before = _cut_off(between, after_user, "")
    head = _cut_off(before, "", user_before)
    assert opening == before
    asked = [{"role": "system", "content": SYSTEM}, *turns[:1]]
    system_before, system_between, _ = _around(shown(asked), SYSTEM, USER)
    user, assistant = (user_before, after_user), (assistant_before, after_answer)
    if folds:
        return Pieces(head, "", ("", ""), user, assistant, prompt, folded=system_between)
    common = _common_start(head, system_before)
    return Pieces(
        common, head[len(common) :], (system_before[len(common) :], _cut_off(system_between, "", user_before)),
        user, assistant, prompt,
    )  # fmt: skip


def _turns(*texts: str) -> Messages:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def _conversations() -> list[Messages]:
    system = {"role": "system", "content": "Be brief."}
    short, long = _turns("One?"), _turns("One?", "First answer.", "Two {{x}}?", "Second\nanswer.", "Three?")
    return [short, long, [system, *short], [system, *long]]


def _around(text: str, *marks: str) -> list[str]:
    """The text before, between and after the marks.

    Raises:
        ValueError: they do not stand in it once each and in this order.
    """
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise ValueError(mark)
        part, text = text.split(mark)
        parts.append(part)
    return [*parts, text]


def _cut_off(text: str, start: str, end: str) -> str:
    if not text.startswith(start) or not text.endswith(end) or len(text) < len(start) + len(end):
        raise ValueError(text)
    return text[len(start) : len(text) - len(end)]


def _common_start(one: str, other: str) -> str:
    """What both begin with, but no part of a special token's text."""
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length] if length == len(one) else ""


def _without_bos(pieces: Pieces, bos: str) -> Pieces:
    parts = {
        "opening": pieces.opening, "unasked": pieces.unasked, "system": pieces.system, "user": pieces.user,
        "assistant": pieces.assistant, "prompt": pieces.prompt, "folded": pieces.folded,
    }  # fmt: skip
    if pieces.opening.startswith(bos):
        parts["opening"] = pieces.opening.removeprefix(bos)
    else:
        parts["unasked"] = pieces.unasked.removeprefix(bos)
        parts["system"] = (pieces.system[0].removeprefix(bos), pieces.system[1])
    return Pieces(**parts)  # type: ignore[arg-type]


def _go(text: str) -> str:
    """Text that Go writes as it is: the opening of an action is quoted."""
    return text.replace("{{", '{{ "{{" }}')


def _refusal(why: str) -> EngineError:
    return EngineError(
        "export.ollama_template",
        f"this chat template cannot be written for Ollama: {why}",
        "export it as GGUF, whose template llama.cpp reads as it is",
    )
