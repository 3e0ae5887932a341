"""The quick way of rows (shapes filled in, masks by bytes) gives what the slow one gives, for every kind of tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qlora_engine.data import byte_masks, skeleton, tokenize, working
from qlora_engine.data.conversation import Conversation, Message, RowProblem
from qlora_engine.data.plain_tokenizer import PlainTokenizer
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import choose, memory_of
from tests.support.mechanisms import MECHANISMS
from tests.support.template_tokenizer import tokenizer_for

PLAIN = "one marker closes every turn"
TRIMMED = "contents are trimmed"
THINKING = "an empty thought before an answer without one"
WORDS = st.text(st.sampled_from("aB1 \n\té日🙂\u0301\u212b<|>▁"), max_size=10)
TURNS = st.lists(st.tuples(WORDS, WORDS, st.sampled_from([None, "", "hm\n"])), min_size=1, max_size=3)


def spaced(*steps: Any, splitter: Any = None) -> PreTrainedTokenizerFast:
    """A tokenizer of the kind that writes spaces as `▁` and falls back to bytes."""
    words = [
        "<unk>",
        *(f"<0x{n:02X}>" for n in range(256)),
        "▁",
        "a",
        "B",
        "1",
        "é",
        "as",
        "▁a",
        "\n",
        "▁▁",
        "t",
        "is",
    ]
    merges = [("▁", "a"), ("▁", "▁"), ("i", "s"), ("a", "s")]
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys([*words, "i", "s"]))}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = Tokenizer(model)
    if steps:
        backend.normalizer = normalizers.Sequence(list(steps))
    if splitter is not None:
        backend.pre_tokenizer = splitter
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(
        [AddedToken(m, normalized=False, special=True) for m in ("<|open|>", "<|close|>", "<s>", "</s>")]
    )
    backend.add_tokens([AddedToken(m, normalized=False) for m in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@cache
def tokenizer_of(kind: str) -> Any:
    if kind == "spaces as marks":
        return spaced(normalizers.Replace(" ", "▁"))
    if kind == "a space before every piece":
        return spaced(normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"))
    if kind in SCHEMES:
        scheme, is_split = SCHEMES[kind]
        return spaced(splitter=pre_tokenizers.Metaspace("▁", scheme, is_split))
    found = tokenizer_for(MECHANISMS[THINKING])
    if kind == "normalized first":
        found.backend_tokenizer.normalizer = normalizers.NFC()
    if kind == "digits apart":
        found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return found


SCHEMES = {
    "a space before the first word": ("first", False),
    "a space before every word": ("always", False),
    "no space before": ("never", False),
    "split at spaces": ("first", True),
}
KINDS = (
    "bytes", "normalized first", "digits apart", "spaces as marks", "a space before every piece", *SCHEMES,
)  # fmt: skip


@cache
def work_of(kind: str, name: str) -> tokenize._Work:
    tokenizer = tokenizer_of(kind)
    tokenizer.chat_template = MECHANISMS[name]
    template = choose(tokenizer, "auto")
    plain = PlainTokenizer.of(tokenizer)
    return tokenize._Work(plain, template, Policy(), tokenize._ids_of(template.source.markers, tokenizer))


def told(row: Any) -> Any:
    if isinstance(row, RowProblem):
        return row.reason
    return row.ids.tolist(), row.trained.tolist(), row.text, sorted(row.notes), row.number


@given(
    st.sampled_from(KINDS),
    st.sampled_from([PLAIN, TRIMMED, THINKING]),
    st.lists(TURNS, min_size=1, max_size=4),
)
@example("bytes", TRIMMED, [[("", " ", None)]])
@settings(max_examples=250, deadline=None)
def test_both_ways_agree(kind: str, name: str, talks: list[Any]) -> None:
    rows = [
        Conversation(n, tuple(m for asked, said, thought in talk for m in (
            Message("user", asked), Message("assistant", said, thought))))
        for n, talk in enumerate(talks)
    ]  # fmt: skip
    work = work_of(kind, name)
    quick = tokenize._encode_group(rows, work)
    slow = list(tokenize._by_offsets(rows, work))
    assert [told(row) for row in quick] == [told(row) for row in slow]


@given(st.sampled_from(KINDS), st.lists(WORDS, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_both_ways_agree_on_plain_texts(kind: str, texts: list[str]) -> None:
    rows = [Conversation(n, text=text) for n, text in enumerate(texts)]
    work = work_of(kind, PLAIN)
    quick = tokenize._encode_group(rows, work)
    slow = list(tokenize._by_offsets(rows, work))
    assert [told(row) for row in quick] == [told(row) for row in slow]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_a_block_are_those_that_are_looked_at(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short ones, made together, and long ones, which become several rows."""
    work = work_of(kind, PLAIN)
    plan = working.Plan((), work.tokenizer, work.template, work.policy, None, 30, 4, ())
    texts = ["as a", "", "a <|open|> as. " * 9, "\u212b \u65e5 a", " as\n\nB 1. a" * 20, "a as. " * 60]
    conversations = [Conversation(n, text=text) for n, text in enumerate(texts, 1)]
    together = [row.row() for row, _, _ in working._of_texts(plan, conversations)]
    one_by_one = [row for conversation in conversations for row in working.as_processed(plan, conversation)]
    placed: list[int] = []
    alone = working.text_rows
    monkeypatch.setattr(working, "text_rows", lambda plan, one: placed.append(one.number) or alone(plan, one))
    list(working._of_texts(plan, conversations))
    assert len(together) > len(texts)
    assert placed == [3, 5, 6], "one by one, with the places of their tokens, only what is long"
    assert [(r.input_ids, r.trained, r.text, r.source_row) for r in together] == [
        (r.input_ids, r.trained, r.text, r.source_row) for r in one_by_one
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_rows_go_the_quick_way(kind: str) -> None:
    work = work_of(kind, PLAIN)
    lengths = byte_masks.byte_lengths(work.tokenizer)
    assert lengths is not None
    filled = skeleton.Filled("<|open|>a as<|close|>", 21, [(8, 21)], [(8, 12)])
    (found,) = byte_masks.masked([filled], work.tokenizer, lengths, work.marker_ids)
    assert found is not None
    assert found.trained.any()
    other = skeleton.Filled("\u212b", 3, [(0, 3)], [])
    is_changed = kind == "normalized first"
    assert (byte_masks.masked([other], work.tokenizer, lengths, frozenset())[0] is None) == is_changed


def test_a_marker_made_of_the_rows_own_text_is_seen() -> None:
    work = work_of("bytes", PLAIN)
    lengths = byte_masks.byte_lengths(work.tokenizer)
    assert lengths is not None
    text = "<|open|>a<|close|>"
    rows = [skeleton.Filled(text, len(text), [], [slot]) for slot in ((8, 9), (8, 10), (0, 3), (9, 18))]
    found = byte_masks.masked(rows, work.tokenizer, lengths, work.marker_ids)
    assert [row is None for row in found] == [False, True, True, True]


def test_rows_of_one_shape_are_traced_once() -> None:
    work = work_of("bytes", "the last turn has no end")
    rows = [Conversation(n, (Message("user", f"u{n}"), Message("assistant", f" a{n}"))) for n in range(50)]
    before = memory_of(work.template, work.policy).renders
    found = tokenize._encode_group(rows, work)
    assert memory_of(work.template, work.policy).renders <= before + 2
    assert all(
        row.trained[-1] and row.text.endswith("<|close|>") for row in found if not isinstance(row, RowProblem)
    )


def test_a_row_that_the_template_treats_otherwise_is_not_filled_in() -> None:
    """Two rows of one shape, of which the template drops a part of the second."""
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = (
        "{% for m in messages %}<|open|>{{ m.role }}\n{{ m.content.split('|||')[-1] }}<|close|>{% endfor %}"
    )
    template = choose(tokenizer, "auto")
    rows = [
        Conversation(n, (Message("user", text), Message("assistant", "yes")))
        for n, text in enumerate(("plain", "left out|||kept", "plain too"))
    ]
    texts = [
        row.text
        for row in tokenize.encode(rows, tokenizer, template, Policy())
        if not isinstance(row, RowProblem)
    ]
    assert [text.split("\n")[1].split("<")[0] for text in texts] == ["plain", "kept", "plain too"]
    learned = memory_of(template, Policy())
    assert learned.plain_renders == 3


def test_without_transformers_the_tokens_are_the_same() -> None:
    tokenizer = tokenizer_of("bytes")
    plain = PlainTokenizer.of(tokenizer)
    assert plain.get_vocab() == tokenizer.get_vocab()
    text = "<|open|>a é</think>"
    wanted = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert plain(text)["input_ids"] == wanted["input_ids"]
    assert plain([text])["offset_mapping"] == [wanted["offset_mapping"]]
    assert set(plain.added_tokens_decoder) == set(tokenizer.added_tokens_decoder)
    assert np.isin(
        plain.convert_tokens_to_ids(["<|open|>"]), tokenizer.convert_tokens_to_ids(["<|open|>"])
    ).all()
