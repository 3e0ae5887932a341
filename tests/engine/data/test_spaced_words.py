"""Words of a tokenizer that writes spaces as a sign, looked up one by one, are the tokens that it gives for the whole text."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from qlora_engine.data import byte_masks, spaced, words
from tests.engine.data.test_words import Held, expected, given_ids, quick

SIGN = spaced.SPACE
PREPEND, REPLACE = normalizers.Prepend(SIGN), normalizers.Replace(" ", SIGN)
FORMS: dict[str, tuple[Any, Any]] = {
    "llama 2": (normalizers.Sequence([PREPEND, REPLACE]), None),
    "the other way round": (normalizers.Sequence([REPLACE, PREPEND]), None),
    "gemma": (REPLACE, pre_tokenizers.Split(" ", "merged_with_previous")),
    **{
        f"{scheme}, {'split' if is_split else 'whole'}": (
            None,
            pre_tokenizers.Metaspace(SIGN, scheme, is_split),
        )
        for scheme in ("first", "always", "never")
        for is_split in (True, False)
    },
}
PARTS = st.sampled_from(
    [
        "a",
        "ab",
        "b",
        " ",
        "  ",
        "\n",
        "1",
        "\u00e9",
        "\u65e5",
        "\U0001f642",
        "<|a|>",
        "<|b|>",
        "<",
        SIGN,
        " ab",
    ]
)
TEXTS = st.lists(st.lists(PARTS, max_size=12).map("".join), min_size=1, max_size=5)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def backend_with(
    form: tuple[Any, Any],
    *,
    more: tuple[tuple[str, str], ...] = (),
    alphabet: list[str] = BYTES,
    **options: Any,
) -> Tokenizer:
    """Merges `ab`, a sign before it, signs with signs, and `more`."""
    merges = [("a", "b"), (SIGN, "ab"), (SIGN, SIGN), (SIGN, "a"), ("b", "a"), *more]
    letters = [*alphabet, "<unk>", SIGN, "a", "b", "1", "\u00e9"]
    vocabulary = {
        word: number for number, word in enumerate(dict.fromkeys([*letters, *(x + y for x, y in merges)]))
    }
    settings_ = {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True, **options}
    found = Tokenizer(models.BPE(vocabulary, merges, **settings_))
    normalizer, splitter = form
    if normalizer is not None:
        found.normalizer = normalizer
    if splitter is not None:
        found.pre_tokenizer = splitter
    found.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in ("<|a|>", "<|b|>")])
    return found


@cache
def held(form: str) -> Held:
    return Held(backend_with(FORMS[form]))


@pytest.mark.parametrize("form", FORMS)
def test_usual_forms_are_quick(form: str) -> None:
    found = quick(held(form))
    assert found is not None
    assert found._bytes("ab  ab<|a|>ab <|b|> b\nab") is not None
    assert found._bytes(f"a{SIGN}b") is None, "is it a space?"


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=80, deadline=None)
@given(texts=TEXTS)
def test_the_same_tokens(form: str, texts: list[str]) -> None:
    assert given_ids(held(form), texts) == expected(held(form), texts)
    known = quick(held(form))
    assert known is not None
    assert known.is_right


OTHERS: dict[str, Tokenizer] = {
    "a merge across words": backend_with(FORMS["llama 2"], more=(("b", SIGN),)),
    "no bytes to fall back to": backend_with(FORMS["llama 2"], alphabet=[]),
    "bytes that are not asked": backend_with(FORMS["llama 2"], byte_fallback=False),
    "whole words before merges": backend_with(FORMS["llama 2"], ignore_merges=True),
    "signs at the ends of words": backend_with(FORMS["llama 2"], end_of_word_suffix="</w>"),
    "dropout": backend_with(FORMS["llama 2"], dropout=0.5),
    "another normalizer": backend_with((normalizers.Sequence([normalizers.Lowercase(), REPLACE]), None)),
    "another sign": backend_with((normalizers.Replace(" ", "_"), None)),
    "another cut": backend_with((REPLACE, pre_tokenizers.Split("a", "isolated"))),
    "a sign of its own": backend_with((None, pre_tokenizers.Metaspace("_", "first", False))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_make_their_tokens_themselves(name: str) -> None:
    found, texts = Held(OTHERS[name]), ["ab ab", "b <|a|> b"]
    assert quick(found) is None
    if name != "dropout":
        assert given_ids(found, texts) == expected(found, texts)


def test_a_merge_across_words_matters_not_where_texts_are_split_at_them() -> None:
    found = Held(backend_with(FORMS["first, split"], more=(("b", SIGN),)))
    texts = ["ab ab  ab", " b <|a|>b ab"]
    assert quick(found) is not None
    assert given_ids(found, texts) == expected(found, texts)


def test_markers_that_are_normalized_come_after_the_space() -> None:
    backend = backend_with(FORMS["llama 2"])
    backend.add_tokens([AddedToken("<c>", normalized=True)])
    assert quick(Held(backend)) is None


@pytest.mark.parametrize("form", FORMS)
def test_the_bytes_of_tokens_add_up(form: str) -> None:
    """So that no offsets are asked for, which take several times as long."""
    import numpy as np

    class Tokens(Held):
        unk_token_id = 256

        def get_vocab(self) -> dict[str, int]:
            return dict(self.backend_tokenizer.get_vocab())

        @property
        def added_tokens_decoder(self) -> dict[int, AddedToken]:
            return dict(self.backend_tokenizer.get_added_tokens_decoder())

    tokenizer = Tokens(backend_with(FORMS[form]))
    lengths = byte_masks.byte_lengths(tokenizer)
    assert lengths is not None
    for text in (
        ("ab ab", " ab", "<|a|>ab b<|b|>\n\u65e5", "<|a|> ab")
        if "always" not in form
        else ("ab ab", " ab", "<|a|>b")
    ):
        (ids,) = words.encoded([text], tokenizer)
        ends = np.array([0, len(ids)])
        found = byte_masks._sizes(ids, ends, lengths, np.array([text.startswith(" ")]))
        assert found.sum() == len(text.encode()), text
