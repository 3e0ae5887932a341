"""The chat template that other programs get: the run's policy is set inside it, and ends that it leaves out are written in.

A template may leave out the token that generation stops at. Training puts it behind each such answer, so the exported
template does too: a few lines in front of it put the end behind the content of those messages. They are kept only when
rendering probes shows that every conversation then comes out as training has it. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_engine.data import answers, layout
from qlora_engine.data.conversation import Message, ToolCall
from qlora_engine.data.layout import Layout, Rendered, Source
from qlora_engine.data.policy import Policy
from qlora_engine.data.probing import ASK, ASK_MORE, CALLING, RESULT, SAY, SAY_MORE, TOOL
from qlora_engine.data.sandbox import TemplateEndless, TemplateRefused
from qlora_engine.data.wording import NO_CALLS

TEXT, CALLS = "text", "calls"
KEPT_PARTS = ("said", "said.rstrip()", "said.rstrip('\\n')")
"""What of a content an end is put behind: a template that trims its contents would trim nothing behind which an end stands."""
Needs = Mapping[tuple[str, str], str]
"""(TEXT or CALLS, the next turn's role, empty behind the last) -> the end that the template does not write there."""

_TOO = replace(CALLING, text="atwo", calls=(ToolCall("fnone", {"keyone": "valone"}, "c2"),))
_TOO_RESULT = replace(RESULT, call_id="c2")
_THINKING = replace(SAY, reasoning="rone")
TALKS: tuple[tuple[Message, ...], ...] = (
    (ASK, SAY),
    (ASK, SAY, ASK_MORE),
    (Message("system", "sone"), ASK, SAY, ASK_MORE, SAY_MORE, ASK),
    (ASK, SAY, SAY_MORE),
    (ASK, SAY, SAY_MORE, ASK_MORE),
    (ASK, SAY, Message("system", "sone"), ASK_MORE, SAY_MORE),
    (ASK, Message("assistant", " \n aone\n\natwo \n"), ASK_MORE, Message("assistant", "atwo \n\n"), ASK),
    (ASK, Message("assistant", ""), ASK_MORE, SAY_MORE, ASK),
    (ASK, Message("assistant", " \n"), ASK_MORE, SAY_MORE),
    (ASK, _THINKING, ASK_MORE),
    (ASK, _THINKING, ASK_MORE, _THINKING),
    (ASK, CALLING),
    (ASK, CALLING, RESULT),
    (ASK, CALLING, RESULT, SAY, ASK_MORE),
    (ASK, CALLING, RESULT, _TOO, _TOO_RESULT, SAY),
    (ASK, CALLING, ASK_MORE, SAY, ASK),
)
"""What is tried: a conversation that ends with an answer is rendered whole, any other as the prompt of the next."""


@dataclass(frozen=True)
class Exported:
    """The template as Jinja. `lacking` is a sentence on the answers whose end it still leaves out; None when there are none."""

    jinja: str
    lacking: str | None


def exported(source: Source, known: Layout, policy: Policy) -> Exported:
    """The template for other programs."""
    needs = _needs(source, known, policy)
    for kinds in ((TEXT, CALLS), (TEXT,)):
        written = {key: end for key, end in needs.items() if key[0] in kinds}
        left = {key: end for key, end in needs.items() if key not in written}
        talks = [talk for talk in TALKS if not (left and _tools(talk))]
        for kept in KEPT_PARTS if written else ():
            jinja = _composed(source.jinja, known, _prelude(written, kept, known, policy))
            if _is_as_trained(jinja, talks, source, known, policy):
                return Exported(jinja, _lacking(left))
    return Exported(_composed(source.jinja, known, ""), _lacking(needs))


def as_trained(
    source: Source, known: Layout, policy: Policy, messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (), *, is_prompt: bool,
) -> str:  # fmt: skip
    """A conversation with the ends that training puts in; with `is_prompt`, up to where trained answers begin.

    Raises:
        TemplateRefused, TemplateEndless: the template did not render it.
    """
    rendered = layout.render(source, known.shape, messages, tools, is_prompt=is_prompt)
    missing = _missing(source, known, policy, rendered, messages, tools, is_prompt=is_prompt)
    text = str.__str__(answers.with_ends(rendered.text, missing))
    return answers.with_prompt(text, known) if is_prompt else text


def _tools(talk: Sequence[Message]) -> list[Mapping[str, Any]]:
    return [TOOL] if any(m.calls for m in talk) else []


def _missing(
    source: Source, known: Layout, policy: Policy, rendered: Rendered, messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]], *, is_prompt: bool,
) -> dict[int, tuple[int, str]]:  # fmt: skip
    def prompt(number: int) -> Rendered:
        return layout.render(source, known.shape, messages[:number], tools, is_prompt=True)

    def again(others: Sequence[Message], asks: bool) -> Rendered:
        return layout.render(source, known.shape, others, tools, is_prompt=asks)

    return answers.missing_ends(rendered, messages, source, known, policy, prompt, again, is_prompt=is_prompt)


def _needs(source: Source, known: Layout, policy: Policy) -> Needs:
    """Where the template writes no end, found by rendering `TALKS`."""
    found: dict[tuple[str, str], str] = {}
    for talk in TALKS:
        is_prompt = not talk[-1].is_answer
        try:
            rendered = layout.render(source, known.shape, talk, _tools(talk), is_prompt=is_prompt)
            missing = _missing(source, known, policy, rendered, talk, _tools(talk), is_prompt=is_prompt)
        except (TemplateRefused, TemplateEndless):
            continue
        for number, (_, end) in missing.items():
            follower = talk[number + 1].role if number + 1 < len(talk) else ""
            has_calls = bool(talk[number].calls) and known.shape.calls != NO_CALLS
            found[CALLS if has_calls else TEXT, follower] = end
    return found


def _is_as_trained(
    jinja: str, talks: Sequence[Sequence[Message]], source: Source, known: Layout, policy: Policy
) -> bool:
    """Whether the wrapped template writes what training has, of every conversation that the plain one takes."""
    for talk in talks:
        is_prompt = not talk[-1].is_answer
        try:
            wanted = as_trained(source, known, policy, talk, _tools(talk), is_prompt=is_prompt)
        except (TemplateRefused, TemplateEndless):
            continue
        try:
            shown = layout.render(
                replace(source, jinja=jinja), known.shape, talk, _tools(talk), is_prompt=is_prompt
            )
        except (TemplateRefused, TemplateEndless):
            return False
        if str.__str__(shown.text) != wanted:
            return False
    return True


def _composed(jinja: str, known: Layout, prelude: str) -> str:
    """Switches and ends in front of the template, the edit of its prompt around it. What is in front ends with a line break
    that jinja drops, so that the template's first line stays what it was."""
    switches = "".join(
        f"{{%- set {name} = {str(value).lower()} %}}\n" for name, value in known.shape.switches
    )
    cut, added = known.prompt_cut, known.prompt_added
    if not (cut or added):
        return switches + prelude + jinja
    prompt = f"whole_text[:-{cut}]" if cut else "whole_text"
    return (
        f"{switches}{prelude}{{% set whole_text %}}\n{jinja.removesuffix(chr(10))}{{% endset %}}"
        f"{{{{ {prompt} ~ {json.dumps(added)} if add_generation_prompt else whole_text }}}}"
    )


def _prelude(needs: Needs, kept: str, known: Layout, policy: Policy) -> str:
    """Jinja that puts ends behind contents, which may be lists of parts; every other key of a message stays as it is."""
    calls = "false" if known.shape.calls == NO_CALLS else "m.tool_calls"
    is_wanted = "true" if policy.empty_answers == "train" else "said or calls"
    return (
        "{%- set ended = namespace(all=[]) -%}{%- for m in messages -%}"
        f"{{%- set calls = {calls} -%}}"
        "{%- set follower = '' if loop.last else messages[loop.index0 + 1].role -%}"
        f"{{%- set end = {_choice(needs, is_everywhere=known.ends.is_added)} if m.role == 'assistant' else '' -%}}"
        "{%- set said = (m.content | last).text if m.content and m.content is not string else m.content -%}"
        f"{{%- set said = {kept} if said is string else '' -%}}"
        f"{{%- if not end or not ({is_wanted}) -%}}{{%- set ended.all = ended.all + [m] -%}}"
        "{%- elif m.content is string or not m.content -%}"
        "{%- set ended.all = ended.all + [dict(m, content=said ~ end)] -%}"
        "{%- elif (m.content | last).text is string -%}{%- set part = dict(m.content | last, text=said ~ end) -%}"
        "{%- set ended.all = ended.all + [dict(m, content=m.content[:-1] + [part])] -%}"
        "{%- else -%}{%- set ended.all = ended.all + [m] -%}{%- endif -%}"
        "{%- endfor -%}{%- set messages = ended.all %}\n"
    )


def _choice(needs: Needs, *, is_everywhere: bool) -> str:
    """The end of a message, as a Jinja expression."""
    found = ""
    for kind, end in dict.fromkeys((kind, end) for (kind, _), end in needs.items()):
        roles = sorted(role for (k, role), e in needs.items() if (k, e) == (kind, end))
        asked = "calls" if kind == CALLS else "not calls"
        where = "" if is_everywhere else f" and follower in {json.dumps(roles)}"
        found += f"{json.dumps(end, ensure_ascii=False)} if {asked}{where} else "
    return f"({found}'')"


def _lacking(needs: Needs) -> str | None:
    if not needs:
        return None
    ends = " or ".join(dict.fromkeys(needs.values()))
    followers = {kind: {role for k, role in needs if k == kind} for kind, _ in needs}
    whose = []
    if TEXT in followers:
        is_odd = followers[TEXT] <= {"assistant", "system"}
        whose.append("answers that another answer or a system turn follows" if is_odd else "answers")
    if CALLS in followers:
        has_result = "tool" in followers[CALLS]
        whose.append("answers that call a tool" if has_result else "calls of tools that no result follows")
    return (
        f"Training put {ends} behind {' and '.join(whose)}. The exported chat template does not write it there: earlier "
        "turns of a conversation lack it in other programs"
    )
