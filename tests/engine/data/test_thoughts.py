"""What a chat keeps of an answer is what training had: its thought told from what it says, however a template writes both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_engine.config import DataSettings
from qlora_engine.data.conversation import Conversation, Message
from qlora_engine.data.templates import Template, chosen, laid_out, render
from qlora_engine.data.thoughts import told_apart
from tests.support.mechanisms import MECHANISMS
from tests.support.template_tokenizer import EOS, tokenizer_for

ASK, ASK_MORE = Message("user", "qone"), Message("user", "qtwo")
SAY, SAY_MORE = Message("assistant", "aone"), Message("assistant", "atwo")
OPENING = "the prompt opens a thought"
MORE = {
    "a word before every answer": "{% for m in messages %}<|open|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final"
    "{% endif %}<|text|>{{ m.content }}<|stop|>{% endfor %}{% if add_generation_prompt %}<|open|>assistant{% endif %}",
    "an answer is closed twice": "{% for m in messages %}<|open|>{{ m.role }}<|text|>{{ m.content }}<|close|>text<|stop|>"
    "{% endfor %}{% if add_generation_prompt %}<|open|>assistant<|text|>{% endif %}",
    "thoughts never shown, and prompts that open one": "{% for m in messages %}{% set c = m.content %}"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}<|open|>{{ m.role }}\n{{ c }}<|stop|>{% endfor %}"
    "{% if add_generation_prompt %}<|open|>assistant\n<think>\n{% endif %}",
    "prompts that close the thought": "{% for m in messages %}<|open|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n"
    "{{ m.reasoning_content }}\n</think>{% endif %}{{ m.content }}<|stop|>{% endfor %}"
    "{% if add_generation_prompt %}<|open|>assistant\n<think>\n</think>{% endif %}",
    "a thought closed without being opened": "{% for m in messages %}<|open|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}{% endif %}</think>{% endif %}{{ m.content }}<|stop|>"
    "{% endfor %}{% if add_generation_prompt %}<|open|>assistant\n{% endif %}",
}
ALL = MECHANISMS | MORE


def said_by_model(tokenizer: Any, template: Template, answer: Message) -> str:
    """What a chat keeps of an answer that a model gave just as it was trained."""
    one = laid_out(Conversation(1, (ASK, answer)), template, template.policy)
    prompt = render(tokenizer, template, [ASK], is_prompt=True)
    marked = str.__str__(one.text)[len(prompt) : one.spans[0][1]]
    shown = marked
    for end in template.end_tokens:  # as generation leaves it out
        shown = shown.removesuffix(end)
    ids = tokenizer(shown, add_special_tokens=False)["input_ids"]
    return told_apart(tokenizer, template, tokenizer.decode(ids, skip_special_tokens=True).strip(), marked)


@pytest.mark.parametrize("reasoning", ["train", "context", "remove"])
@pytest.mark.parametrize("name", sorted(ALL))
def test_a_chat_goes_on_with_what_the_model_said_as_training_had_it(name: str, reasoning: str) -> None:
    """Under every policy, with thoughts and without."""
    tokenizer = tokenizer_for(ALL[name])
    template = chosen(tokenizer, DataSettings(reasoning=reasoning))
    for thoughts in (("rone", "rtwo"), (None, None)):
        if thoughts[0] is None and template.opens_thoughts:
            continue  # answers without a thought were never trained behind such a prompt; the doctor says so
        first, second = replace(SAY, reasoning=thoughts[0]), replace(SAY_MORE, reasoning=thoughts[1])
        row = laid_out(Conversation(1, (ASK, first, ASK_MORE, second)), template, template.policy)
        said = said_by_model(tokenizer, template, first)
        assert said.endswith("aone")
        chat = [
            {"role": "user", "content": "qone"},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "qtwo"},
        ]
        prompt = render(tokenizer, template, chat, is_prompt=True)
        assert str.startswith(row.text, prompt), (said, prompt)
        assert row.spans[0][1] <= len(prompt) <= row.spans[1][0]


def test_a_template_that_shows_no_thought_is_asked_without_one() -> None:
    for name, reasoning, wanted in (
        ("thoughts never shown, and prompts that open one", "train", "<|open|>assistant\n"),
        ("prompts that close the thought", "train", "<|open|>assistant\n<think>\n"),
        ("prompts that close the thought", "remove", "<|open|>assistant\n"),
    ):
        tokenizer = tokenizer_for(ALL[name])
        template = chosen(tokenizer, DataSettings(reasoning=reasoning))
        assert render(tokenizer, template, [ASK], is_prompt=True) == f"<|open|>user\nqone<|stop|>{wanted}"
        tokenizer.chat_template = template.exported
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": "qone"}], tokenize=False, add_generation_prompt=True
        )
        assert asked.endswith(wanted)


@pytest.mark.parametrize("marked", ["rone, and then", "<think>\nrone", "aone"])
def test_an_answer_without_a_whole_thought_stays_as_it_is(marked: str) -> None:
    for name in (OPENING, "one marker closes every turn", "thoughts under another key"):
        tokenizer = tokenizer_for(ALL[name])
        assert told_apart(tokenizer, chosen(tokenizer, DataSettings()), "shown", marked) == "shown"


def test_an_answer_that_was_nothing_but_a_removed_thought_is_an_empty_one() -> None:
    """Which training only reads, so that it has no end either."""
    tokenizer = tokenizer_for(ALL["no turn has an end"])
    for reasoning, wanted in (("remove", "Assistant: \n\n"), ("train", f"</think>{EOS}")):
        template = chosen(tokenizer, DataSettings(reasoning=reasoning))
        talk = (ASK, Message("assistant", "", reasoning="rone"), ASK_MORE, SAY_MORE)
        prompt = render(tokenizer, template, talk[:3], is_prompt=True)
        assert wanted in prompt
        assert str.startswith(laid_out(Conversation(1, talk), template, template.policy).text, prompt)
