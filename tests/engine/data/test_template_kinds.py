"""Every mechanism of chat templates: a fixed list of conversations, and random ones, each trained rightly or refused
by the template itself. A rogue template is ended by name."""

from __future__ import annotations

import random
import time
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_engine.config import DataSettings
from qlora_engine.data import sandbox
from qlora_engine.data.conversation import Conversation, Message, RowProblem
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import choose, chosen, memory_of, render
from qlora_engine.data.tokenize import TokenRow, tokenize
from qlora_engine.data.traced import Traced, joined
from qlora_engine.errors import EngineError
from tests.support.mechanisms import MECHANISMS
from tests.support.random_talks import random_cases
from tests.support.template_check import Judge
from tests.support.template_tokenizer import tokenizer_for


@pytest.mark.parametrize("name", sorted(MECHANISMS))
def test_every_conversation_of_the_list_is_trained_rightly(name: str) -> None:
    verdict = Judge(name, MECHANISMS[name]).judge()
    assert not verdict.faults
    assert len(verdict.refused) <= 2, "a template that refuses most of the list shows nothing"


def test_random_conversations_of_the_day_are_trained_rightly() -> None:
    day = time.strftime("%Y-%m-%d")
    for name in random.Random(day).sample(sorted(MECHANISMS), 8):
        more = random_cases(f"{day} {name}", 3)
        judge = Judge(name, MECHANISMS[name])
        for case in more:
            judge._judge(case)
        assert not judge.verdict.faults, (day, name)


WORDS = st.text(st.sampled_from("aB1 \n\té日🙂<|>[]/{}%\"'"), min_size=1, max_size=12)
TALK = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)


@cache
def _ready(name: str) -> tuple[Any, Any]:
    tokenizer = tokenizer_for(MECHANISMS[name])
    return tokenizer, choose(tokenizer, "auto")


@given(name=st.sampled_from(sorted(MECHANISMS)), talk=TALK, quoted=st.booleans())
@settings(max_examples=80, deadline=None)
def test_random_answers_are_trained_with_their_ends_and_nothing_else(
    name: str, talk: list[tuple[str, str]], quoted: bool
) -> None:
    tokenizer, template = _ready(name)
    spoil = " <|close|><|open|>user " if quoted else ""
    turns = [
        m
        for n, (asked, said) in enumerate(talk)
        for m in (Message("user", f"ask{n}{asked}"), Message("assistant", f"say{n}{said}{spoil}end{n}"))
    ]
    (row,) = tokenize([Conversation(7, tuple(turns))], tokenizer, template, Policy())
    assert isinstance(row, TokenRow), row
    trained = tokenizer.decode(
        [t for t, is_trained in zip(row.input_ids, row.trained, strict=True) if is_trained]
    )
    for n, (_, said) in enumerate(talk):
        assert f"say{n}{said}{spoil}end{n}" in trained
        assert f"ask{n}" not in trained
    ends = {tokenizer.convert_tokens_to_ids(end) for end in template.layout.ends.said}
    falls = [i for i, (a, b) in enumerate(pairwise([*row.trained, False])) if a and not b]
    assert len(falls) == len(talk)
    assert all(row.input_ids[i] in ends or row.input_ids[i] == tokenizer.eos_token_id for i in falls)


def test_most_rows_need_one_render() -> None:
    tokenizer, template = _ready("an empty thought before an answer without one")
    rows = [
        Conversation(n, (Message("user", f"u{n}"), Message("assistant", f"a{n}"), Message("user", "x"), Message("assistant", "y")))
        for n in range(100)
    ]  # fmt: skip
    assert all(isinstance(row, TokenRow) for row in tokenize(rows, tokenizer, template, Policy()))
    memory = memory_of(template, Policy())
    assert memory.renders <= memory.rows + 5


def test_a_row_that_fails_leaves_the_others() -> None:
    tokenizer, template = _ready("turns must alternate")
    good = (Message("user", "a"), Message("assistant", "b"))
    rows = [Conversation(1, good), Conversation(2, (good[1], *good)), Conversation(3, good)]
    found = list(tokenize(rows, tokenizer, template, Policy()))
    assert isinstance(found[1], RowProblem)
    assert (found[1].number, found[1].reason) == (2, "the chat template refuses it: turns must alternate")
    assert [row.source_row for row in found if isinstance(row, TokenRow)] == [1, 3]


ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a range too large": "{% for a in range(99999999) %}x{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a macro that calls itself for ever": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling": "{% set ns = namespace(x='xxxxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by tilde": "{% set ns = namespace(x='xxxxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling a list": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a product": "{{ 'x' * 9999999999 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a format": "{{ '{:>9999999999}'.format(1) }}",
    "a per cent width": "{{ '%9999999999d' % 1 }}",
    "a padding": "{{ 'x'.ljust(9999999999) }}",
    "a filter": "{{ 'x' | center(9999999999) }}",
    "a rounding": "{{ 7 | round(-9999999999) }}",
    "a replacement": "{{ ('a' * 2000000).replace('a', 'b' * 20000) | length }}",
    "a replacing filter": "{{ ('a' * 2000000) | replace('a', 'b' * 20000) | length }}",
    "a translation": "{{ ('a' * 2000000).translate({97: 'b' * 20000}) | length }}",
    "a join": "{{ ('b' * 20000).join('a' * 200000) | length }}",
    "a joining filter": "{{ ('a' * 200000) | join('b' * 20000) | length }}",
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(ENDLESS))
def test_a_template_without_an_end_is_ended_by_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises((sandbox.TemplateEndless, sandbox.TemplateRefused)) as caught:
        sandbox.run(ENDLESS[kind], "rogue.jinja", {}, 0.3)
    assert time.monotonic() - began < 30  # without the guard: never
    assert "rogue.jinja" in str(caught.value) or "range" in str(caught.value).lower()


def test_a_template_that_never_ends_is_refused_with_its_name() -> None:
    tokenizer = tokenizer_for(MECHANISMS["one marker closes every turn"])
    tokenizer.chat_template = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    with pytest.raises(EngineError, match="calls itself without an end"):
        choose(tokenizer, "auto")


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.__class__ }}", "{{ self.__init__.__globals__ }}", "{{ cycler.__init__ }}"],
)  # fmt: skip
def test_a_template_sees_no_inside_of_python(source: str) -> None:
    try:
        found = str.__str__(sandbox.run(source, "x", {"messages": []}))
    except sandbox.TemplateRefused:
        return
    assert found == ""


TEXTS = st.text(st.sampled_from("ab ,<>\n"), max_size=20)


@given(
    one=TEXTS, two=TEXTS, sep=st.text(st.sampled_from("a ,<"), min_size=1, max_size=2), n=st.integers(-9, 9)
)
def test_a_traced_text_does_what_a_text_does_and_keeps_its_account(
    one: str, two: str, sep: str, n: int
) -> None:
    plain = one + two
    traced = joined((Traced.of(one, 1), Traced.of(two, 2)))
    results: list[tuple[Any, Any]] = [
        (traced.strip(), plain.strip()), (traced.lstrip(sep), plain.lstrip(sep)), (traced[n:], plain[n:]),
        (traced[:n], plain[:n]), (traced[::-1], plain[::-1]), (traced.replace(sep, two), plain.replace(sep, two)),
        (sep + traced, sep + plain), (traced + sep, plain + sep), (traced.upper(), plain.upper()),
        (traced.removesuffix(sep), plain.removesuffix(sep)),
        *zip(traced.split(sep), plain.split(sep), strict=True), *zip(traced.split(), plain.split(), strict=True),
        *zip(traced.rsplit(sep, 1), plain.rsplit(sep, 1), strict=True),
        *zip(traced.partition(sep), plain.partition(sep), strict=True),
        *zip(traced.splitlines(), plain.splitlines(), strict=True),
    ]  # fmt: skip
    for found, wanted in results:
        assert found == wanted
        assert sum(size for size, _ in found.runs) == len(wanted)
    assert [o for _, o in traced.runs] == [o for o, t in ((1, one), (2, two)) if t]


THINKING = (
    "a switch turns thinking off",
    "the prompt opens a thought",
    "an empty thought before an answer without one",
)


@pytest.mark.parametrize("reasoning", ["train", "context", "remove"])
@pytest.mark.parametrize("name", THINKING)
def test_the_exported_template_asks_as_training_did(name: str, reasoning: str) -> None:
    """A program that knows nothing of the policy gets it inside the template: the same text up to the answer, which is
    what stood before the trained part of a row."""
    tokenizer = tokenizer_for(MECHANISMS[name])
    template = chosen(tokenizer, DataSettings(reasoning=reasoning))
    asked = [{"role": "user", "content": "a?"}]
    told = [*asked, {"role": "assistant", "content": "b"}]
    whole = render(tokenizer, template, told)
    tokenizer.chat_template = template.exported
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == render(tokenizer, template, asked, is_prompt=True)
    assert tokenizer.apply_chat_template(told, tokenize=False) == whole
    assert whole.startswith(text) or reasoning != "remove"


def test_a_developer_turn_is_the_templates_own_or_the_systems() -> None:
    own = (
        "{% for m in messages %}{% if m.role == 'developer' %}<|dev|>{{ m.content }}<|close|>{% else %}"
        "<|open|>{{ m.role }}\n{{ m.content }}<|close|>\n{% endif %}{% endfor %}"
    )
    told = [Message("developer", "d"), Message("user", "u"), Message("assistant", "a")]
    for jinja, wanted in (
        (own, "<|dev|>d<|close|>"),
        (MECHANISMS["one marker closes every turn"], "<|open|>system\nd"),
    ):
        tokenizer = tokenizer_for(jinja)
        text = render(tokenizer, choose(tokenizer, "auto"), told)
        assert text.startswith(wanted)
        assert "developer" not in text
