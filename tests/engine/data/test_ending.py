"""An end that training puts behind answers is there in use, too: in the prompt of a chat's later turns and in the template
that other programs get."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers import AutoTokenizer

from qlora_engine.data import answers, ending
from qlora_engine.data.conversation import Conversation, Message
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import Template, choose, laid_out, render
from qlora_engine.data.wording import Shape
from tests.support.mechanisms import MECHANISMS
from tests.support.template_check import CALL, RESULT
from tests.support.template_tokenizer import EOS, TOOL, tokenizer_for

ASK, ASK_MORE = Message("user", "qone"), Message("user", "qtwo")
SAY, SAY_MORE = Message("assistant", "aone"), Message("assistant", "atwo")
NO_END = "no turn has an end"
TRIMMED = "no turn has an end, and contents are trimmed"
INSIDE = "results stand inside the answer's turn"
WRITTEN = json.dumps({"name": "weatherfn", "arguments": {"town": "Ghentword"}})
WEATHER = WRITTEN


def ready(name: str, policy: Policy | None = None) -> tuple[Any, Template]:
    tokenizer = tokenizer_for(MECHANISMS[name])
    return tokenizer, choose(tokenizer, "auto", policy)


def trained(template: Template, *messages: Message, tools: tuple[Any, ...] = ()) -> tuple[str, list[str]]:
    """The text of a row, and what of it is trained."""
    found = laid_out(Conversation(1, messages, tools), template, template.policy)
    text = str.__str__(found.text)
    return text, [text[a:b] for a, b in found.spans]


@pytest.mark.parametrize("reasoning", ["train", "context", "remove"])
@pytest.mark.parametrize("name", sorted(MECHANISMS))
def test_the_prompt_of_a_second_turn_is_what_stood_before_the_second_answer(
    name: str, reasoning: str
) -> None:
    """Of every mechanism under every policy, with thoughts and without."""
    tokenizer, template = ready(name, Policy(reasoning=reasoning))
    for first, second in (
        (SAY, SAY_MORE),
        (replace(SAY, reasoning="rone"), replace(SAY_MORE, reasoning="rtwo")),
    ):
        row = laid_out(Conversation(1, (ASK, first, ASK_MORE, second)), template, template.policy)
        prompt = render(tokenizer, template, [ASK, first, ASK_MORE], is_prompt=True)
        opens_a_thought = (
            name == "the prompt opens a thought" and reasoning != "remove" and not second.reasoning
        )
        if not opens_a_thought:  # which an answer without one never had before it
            assert str.startswith(row.text, prompt)
        assert row.spans[0][1] <= len(prompt)
        assert len(prompt) <= row.spans[1][0] or opens_a_thought


@pytest.mark.parametrize("name", [NO_END, TRIMMED])
def test_a_later_turn_of_a_chat_has_the_end_of_the_earlier_answer(name: str) -> None:
    tokenizer, template = ready(name)
    chat = [
        {"role": "user", "content": "qone"},
        {"role": "assistant", "content": "aone"},
        {"role": "user", "content": "qtwo"},
    ]
    prompt = render(tokenizer, template, chat, is_prompt=True)
    assert prompt == f"User: qone\n\nAssistant: aone{EOS}\n\nUser: qtwo\n\nAssistant:"
    text, spans = trained(template, ASK, SAY, ASK_MORE, SAY_MORE)
    assert spans[0] == f" aone{EOS}"
    assert text.startswith(prompt)


def test_an_end_stands_behind_what_closes_a_call_not_inside_it() -> None:
    """Where results go on in the answer's own turn, and where the template knows no calls, which are written as JSON."""
    for name, wanted in (
        (INSIDE, f"<call>[{WEATHER}]</call><|done|>"),
        (TRIMMED, f" <tool_call>\n{WRITTEN}\n</tool_call>{EOS}"),
        ("no turn has an end, and calls follow the text", f" <call>{WEATHER}</call>{EOS}"),
    ):
        _, template = ready(name)
        text, spans = trained(template, ASK, CALL, RESULT, SAY, tools=(TOOL,))
        assert spans[0] == wanted, name
        assert text.count(wanted) == 1


def test_an_empty_answer_has_an_end_only_where_it_is_trained() -> None:
    talk = (ASK, Message("assistant", ""), ASK_MORE)
    for empty, wanted in (("context", "Assistant: \n\n"), ("train", f"Assistant: {EOS}\n\n")):
        for name in (NO_END, TRIMMED):
            tokenizer, template = ready(name, Policy(empty_answers=empty))
            prompt = render(tokenizer, template, talk, is_prompt=True)
            assert prompt == f"User: qone\n\n{wanted}User: qtwo\n\nAssistant:"
            assert trained(template, *talk, SAY_MORE)[0].startswith(prompt)


def test_a_row_that_training_leaves_out_is_still_asked_in_a_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing names an end, or where one would stand is not found: the prompt is then the template's own."""
    tokenizer, template = ready(NO_END)
    ends = replace(template.layout.ends, said=(), after_text=None, after_call=None)
    bare = replace(template, layout=replace(template.layout, ends=ends))
    assert EOS not in render(tokenizer, bare, [ASK, SAY, ASK_MORE], is_prompt=True)

    def lost(*args: Any) -> None:
        raise answers.MaskProblem("lost")

    monkeypatch.setattr(answers, "_end", lost)
    assert EOS not in render(tokenizer, template, [ASK, SAY, ASK_MORE], is_prompt=True)


# The template that other programs get


def plain(message: Message, shape: Shape) -> dict[str, Any]:
    """A message as programs give it to a template of this shape."""
    found: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.reasoning and shape.reasoning == "inline":
        found["content"] = f"<think>\n{message.reasoning}\n</think>\n\n{message.text}"
    elif message.reasoning and shape.reasoning:
        found[shape.reasoning] = message.reasoning
    if message.calls:
        found["tool_calls"] = [
            {"type": "function", "id": c.id, "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.calls
        ]
    if message.role == "tool":
        found |= {"name": message.name, "tool_call_id": message.call_id}
    return found


TALKS = {
    "a question": (ASK,),
    "an answer": (ASK, SAY),
    "two turns": (ASK, SAY, ASK_MORE, SAY_MORE),
    "a question after two turns": (Message("system", "sone"), ASK, SAY, ASK_MORE, SAY_MORE, ASK),
    "two answers": (ASK, SAY, SAY_MORE, ASK_MORE),
    "white space": (
        ASK,
        Message("assistant", "\n aone\n\nend \n"),
        ASK_MORE,
        Message("assistant", "atwo  "),
        ASK,
    ),
    "an empty answer": (ASK, Message("assistant", ""), ASK_MORE, SAY_MORE, ASK),
    "white space alone": (ASK, Message("assistant", " \n"), ASK_MORE, SAY_MORE, ASK),
    "thoughts": (ASK, replace(SAY, reasoning="rone"), ASK_MORE),
    "a call": (ASK, CALL, RESULT),
    "a call and its answer": (ASK, CALL, RESULT, SAY, ASK_MORE),
    "quoted ends": (ASK, Message("assistant", "say <|close|> and {{ m }} {% x %}"), ASK_MORE),
}


@pytest.mark.parametrize("empty", ["context", "train"])
@pytest.mark.parametrize("name", sorted(MECHANISMS))
def test_plain_transformers_renders_with_the_exported_folder_what_training_had(
    name: str, empty: str, tmp_path: Path
) -> None:
    tokenizer, template = ready(name, Policy(empty_answers=empty))
    exported = copy.deepcopy(tokenizer)
    exported.chat_template = template.exported
    exported.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    shape, compared = template.layout.shape, 0
    for what, talk in TALKS.items():
        has_calls = any(m.calls for m in talk)
        if has_calls and (template.lacking or shape.calls != "object"):
            continue
        asks, tools = not talk[-1].is_answer, [TOOL] if has_calls else None
        given = [plain(m, shape) for m in talk]
        try:
            tokenizer.apply_chat_template(given, tools=tools, tokenize=False)
        except jinja2.TemplateError:  # the template's own refusal
            continue
        wanted = render(tokenizer, template, talk, is_prompt=asks, tools=tools or ())
        text = other.apply_chat_template(given, tools=tools, tokenize=False, add_generation_prompt=asks)
        assert text == wanted, what
        compared += 1
    assert compared >= 4


def test_templates_that_write_every_end_are_exported_as_they_are() -> None:
    for name in (
        "one marker closes every turn",
        "calls end with a marker of their own",
        "the last turn ends otherwise",
    ):
        _, template = ready(name)
        assert template.exported == MECHANISMS[name]
        assert template.lacking is None


def test_what_else_a_message_has_is_kept_and_a_content_may_be_parts_or_nothing() -> None:
    jinja = (
        "{% for m in messages %}{{ m.role }}{{ m.mood }}: {% if m.content is string %}{{ m.content }}{% elif m.content %}"
        "{% for part in m.content %}{{ part.text or part.type }}{{ part.tone }}{% endfor %}{% endif %}{{ '\\n' }}{% endfor %}"
    )
    tokenizer = tokenizer_for(jinja)
    template = choose(tokenizer, "auto")
    tokenizer.chat_template = template.exported
    parts = [{"type": "image"}, {"type": "text", "text": "a", "tone": "+"}]
    talk = [
        {"role": "assistant", "content": "b", "mood": "!"}, {"role": "assistant", "content": parts},
        {"role": "assistant", "content": parts[::-1]}, {"role": "assistant", "content": None},
        {"role": "assistant", "content": []}, {"role": "assistant"}, {"role": "user", "content": parts},
    ]  # fmt: skip
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    assert text.split("\n")[:-1] == [
        f"assistant!: b{EOS}", f"assistant: imagea{EOS}+", "assistant: a+image", *["assistant: "] * 3, "user: imagea+"
    ]  # fmt: skip
    assert parts == [{"type": "image"}, {"type": "text", "text": "a", "tone": "+"}]


def test_an_answer_can_be_gone_on_with() -> None:
    tokenizer, template = ready(TRIMMED)
    tokenizer.chat_template = template.exported
    talk = [plain(m, template.layout.shape) for m in (ASK, SAY, ASK_MORE, SAY_MORE)]
    text = tokenizer.apply_chat_template(talk, tokenize=False, continue_final_message=True)
    assert text == f"User: qone\n\nAssistant: aone{EOS}\n\nUser: qtwo\n\nAssistant: atwo"


def test_an_end_that_cannot_be_written_in_is_told() -> None:
    """Calls are written behind the content, so an end behind that would stand before them."""
    _, calls = ready("no turn has an end, and calls follow the text")
    assert calls.lacking is not None
    assert f"Training put {EOS} behind answers that call a tool" in calls.lacking
    assert calls.exported != calls.jinja, "other answers have theirs"
    _, inside = ready(INSIDE)
    assert inside.lacking is not None
    assert "<|done|>" in inside.lacking
    jinja = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}.\n{% endfor %}"
    tokenizer = tokenizer_for(jinja)
    odd = choose(tokenizer, "auto")
    assert odd.exported.endswith(jinja)


def test_a_prelude_that_changes_what_training_had_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The template looks at its contents, so that an end behind them changes more than it adds."""
    jinja = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.content[-1:] == 'e' %} (e){% endif %}\n{% endfor %}"
    tokenizer = tokenizer_for(jinja)
    template = choose(tokenizer, "auto")
    assert template.exported == jinja
    assert template.lacking is not None
    assert template.lacking.startswith(f"Training put {EOS} behind answers.")
    monkeypatch.setattr(ending, "_is_as_trained", lambda *args: True)
    assert choose(tokenizer, "auto").exported != jinja, "it is the comparison that keeps it out"


@pytest.mark.parametrize("start", ["\n", "  ", "\n  "])
def test_the_first_line_of_a_template_stays_what_it_was(start: str) -> None:
    """Jinja drops a line break behind a block, and white space in front of one that begins a line."""
    for jinja in (MECHANISMS[TRIMMED], MECHANISMS["the prompt opens a thought"]):
        tokenizer = tokenizer_for(start + jinja)
        template = choose(tokenizer, "auto", Policy(reasoning="remove"))
        talk = [plain(m, template.layout.shape) for m in (ASK, SAY, ASK_MORE)]
        wanted = render(tokenizer, template, talk, is_prompt=True)
        tokenizer.chat_template = template.exported
        assert template.lacking is None
        assert template.exported != start + jinja
        assert tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) == wanted


def test_the_next_role_ends_a_last_answer_only_when_it_comes() -> None:
    tokenizer, template = ready("the next role ends a turn")
    assert render(tokenizer, template, [ASK, SAY]) == "<|user|>\nqone<|assistant|>\naone"
    assert trained(template, ASK, SAY)[1] == ["aone<|user|>"], "as it is trained"
    assert template.lacking is None
