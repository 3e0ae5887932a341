"""Tokens looked up piece by piece are those that the tokenizer gives, for every usual way of cutting a text, and for no other."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from qlora_engine.data import pretokens, words
from tests.support.tiny import SENTENCES

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
POSSESSIVE = (
    r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+"
)
BY_CASE = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WITH_GAPS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s+"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
LETTERS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = st.text(st.sampled_from("aBs'1½٣ \n\r\té\u0301\u212b—日🙂\x1c\x85\u2003<|>_"), max_size=24)


def split(*patterns: str, behavior: str = "isolated", invert: bool = False) -> Any:
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior, invert) for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, LETTERS])


CUTS = {
    "gpt2": BYTES,
    "qwen": split(QWEN),
    "llama3": split(LLAMA3),
    "by case": split(BY_CASE),
    "deepseek": split(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f]+", WITH_GAPS),
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    "numbers": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), BYTES]),
}
OTHERS = {
    "words without their gaps": split(r"\w+"),
    "a flag that is not known": split(r"(?m:^a)|\s+|\S+"),
    "looking back": split(r"(?<=a)b|\s+|\S"),
    "a class in a class": split(r"[a[b]]|\s+"),
    "a repeated count": split(r"\p{N}{1,3}+|\s+|\S"),
    "a class of letters without case": split(r"(?i:[a-z])|\s+|\S"),
    "gaps instead of matches": split(QWEN, invert=True),
    "joined to what is before": split(QWEN, behavior="merged_with_previous"),
    "a space before everything": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "no cut at all": LETTERS,
    "marks for spaces": pre_tokenizers.Metaspace(),
}


class Held:
    """A tokenizer as the engine holds it."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend


@cache
def backend_json() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = BYTES
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        SENTENCES * 4, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return str(backend.to_str())


def held(cut: Any, *tokens: AddedToken, normalizer: Any = None) -> Held:
    backend = Tokenizer.from_str(backend_json())
    backend.pre_tokenizer = cut
    backend.add_tokens([AddedToken("<|a|>", normalized=False), AddedToken("<|a|>>", normalized=False)])
    backend.add_tokens(list(tokens))
    if normalizer is not None:
        backend.normalizer = normalizer
    return Held(backend)


def quick(found: Held) -> words.Words | None:
    return words._words(words.TokenizerKey(found), found.backend_tokenizer.get_vocab_size())


def expected(found: Held, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in found.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def given_ids(found: Held, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in words.encoded(texts, found)]


@cache
def known(name: str) -> Held:
    return held(CUTS[name], normalizer=normalizers.NFC() if name == "qwen" else None)


@pytest.mark.parametrize("name", CUTS)
def test_usual_cuts_are_quick(name: str) -> None:
    found = quick(known(name))

    assert found is not None
    assert found._bytes("a few words, <|a|>> and more") is not None


@pytest.mark.parametrize("name", CUTS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(WORDS, min_size=1, max_size=6))
def test_the_same_tokens(name: str, texts: list[str]) -> None:
    found = known(name)

    assert given_ids(found, texts) == expected(found, texts)


@pytest.mark.parametrize("name", CUTS)
def test_every_character_is_taken_alike(name: str) -> None:
    """Each in front of, behind and between letters, digits, stops and spaces, in a text of its own and among others."""
    found = known(name)
    texts = [f"a{c}1{c}{c} {c}.{c}\n{c}B" for c in map(chr, pretokens._settled(pretokens.WIDE))]
    rng = random.Random(4)
    texts += ["".join(rng.choices("".join(texts), k=60)) for _ in range(1000)]

    assert given_ids(found, texts) == expected(found, texts)


@pytest.mark.parametrize("name", OTHERS)
@settings(max_examples=20, deadline=None)
@given(texts=st.lists(WORDS, min_size=1, max_size=4))
def test_other_cuts_are_the_tokenizers_own(name: str, texts: list[str]) -> None:
    found = other(name)

    assert quick(found) is None
    assert given_ids(found, texts) == expected(found, texts)


@cache
def other(name: str) -> Held:
    return held(OTHERS[name])


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("<b>", lstrip=True, normalized=False),
        AddedToken("<b>", rstrip=True, normalized=False),
        AddedToken("bb", single_word=True, normalized=False),
        AddedToken("<b>", normalized=True),
    ],
)
def test_markers_of_their_own_mind(token: AddedToken) -> None:
    found = held(BYTES, token)
    texts = ["a <b> b", "abb bb <b><|a|> "]

    assert quick(found) is None
    assert given_ids(found, texts) == expected(found, texts)


def test_texts_that_would_be_changed_first() -> None:
    found = held(BYTES, normalizer=normalizers.Lowercase())

    assert quick(found) is None
    assert given_ids(found, ["An A"]) == expected(found, ["An A"])


def test_a_token_that_came_later() -> None:
    found = held(BYTES)
    before = given_ids(found, ["x<later>y"])
    found.backend_tokenizer.add_tokens([AddedToken("<later>", normalized=False)])

    assert given_ids(found, ["x<later>y"]) == expected(found, ["x<later>y"]) != before


def test_a_first_text_that_differs_ends_it() -> None:
    """Whatever the patterns say: what the tokenizer does with the data decides."""
    found = held(BYTES)
    known_words = quick(found)
    assert known_words is not None
    known_words._table[" zebra"] = known_words._table[" horse"]

    assert given_ids(found, ["a zebra", "a horse"]) == expected(found, ["a zebra", "a horse"])
    assert not known_words.is_right


def test_a_later_text_that_differs_ends_it() -> None:
    found = held(BYTES)
    given_ids(found, ["a horse"] * words.TRIES)
    known_words = quick(found)
    assert known_words is not None
    known_words._table[" zebra"] = known_words._table[" horse"]

    assert given_ids(found, ["a zebra", "a horse", "a zebra"]) == expected(
        found, ["a zebra", "a horse", "a zebra"]
    )
    assert not known_words.is_right


def test_pieces_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_PIECES", 10)
    found = held(BYTES)
    texts = [" ".join(f"w{n}x{'y' * n}" for n in range(200))]

    assert given_ids(found, texts) == expected(found, texts)
    table = quick(found)._table  # type: ignore[union-attr]
    assert len(table) == 10
    assert max(map(len, table)) <= words.LONGEST_PIECE


@pytest.mark.parametrize("characters", [pretokens.ASCII, pretokens.WIDE])
def test_possessive_repeats(characters: range) -> None:
    cut = pre_tokenizers.Split(Regex(POSSESSIVE), "isolated")
    found = held(pre_tokenizers.Sequence([cut, LETTERS]))
    rng = random.Random(2)
    pool = [chr(c) for c in pretokens._settled(characters)]
    texts = ["".join(rng.choices([*rng.sample(pool, 5), *"a1' \n.s"], k=30)) for _ in range(500)]

    assert quick(found) is not None
    assert given_ids(found, texts) == expected(found, texts)
