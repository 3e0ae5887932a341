"""Markers in text: a token that stands for structure comes from the template alone, never from a row. Torch-free.

Where a row's own text spells a marker, the row is tokenized by a second tokenizer in which every marker has a spelling
from a private range of Unicode; the template's markers are respelled, the row's are left as the text they are.
"""

from __future__ import annotations

import json  # writing alone
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from qlora_engine import parsing
from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.traced import TEMPLATE, Traced

PRIVATE = 0xF0000
TAG = re.compile(r"</?([a-zA-Z_][\w:.-]{0,40})>|<\|.+\|>|<｜.+｜>")
HTML = frozenset(
    [
        "a",
        "b",
        "i",
        "p",
        "u",
        "s",
        "q",
        "br",
        "hr",
        "em",
        "td",
        "th",
        "tr",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "li",
        "ol",
        "ul",
        "dl",
        "dt",
        "dd",
        "div",
        "img",
        "pre",
        "sub",
        "sup",
        "svg",
        "col",
        "del",
        "ins",
        "kbd",
        "map",
        "nav",
        "big",
        "bdo",
        "var",
        "wbr",
        "abbr",
        "area",
        "base",
        "body",
        "code",
        "form",
        "head",
        "html",
        "link",
        "main",
        "mark",
        "meta",
        "ruby",
        "samp",
        "span",
        "table",
        "tbody",
        "tfoot",
        "thead",
        "title",
        "aside",
        "audio",
        "embed",
        "input",
        "label",
        "meter",
        "param",
        "small",
        "style",
        "tt",
        "time",
        "track",
        "video",
        "blockquote",
        "caption",
        "center",
        "colgroup",
        "strong",
        "strike",
        "section",
        "summary",
        "textarea",
        "article",
        "button",
        "canvas",
        "details",
        "fieldset",
        "figure",
        "footer",
        "header",
        "iframe",
        "legend",
    ]
)
Offsets = Sequence[tuple[int, int]]


def markers_of(tokenizer: Any, jinja: str) -> tuple[str, ...]:
    """The tokenizer's special tokens, and those added ones that the template writes (`<think>`, `<tool_call>`)."""
    special = {str(token) for token in tokenizer.all_special_tokens}
    found = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content.strip()
        and (
            token.special
            or token.content in special
            or token.content in jinja
            or _is_structure(token.content)
        )
    ]
    return tuple(dict.fromkeys([*found, *(t for t in special if t.strip())]))


def _is_structure(token: str) -> bool:
    """Whether an added token is written like a marker, and is no HTML tag, of which some vocabularies have a few."""
    found = TAG.fullmatch(token)
    return found is not None and (found[1] or "").lower() not in HTML


def is_taken(ids: Sequence[int], offsets: Offsets, text: Traced, marker_ids: frozenset[int]) -> bool:
    """Whether a marker was made of characters of the row."""
    places = [offsets[i] for i, token in enumerate(ids) if token in marker_ids]
    return any(_touches_row(text, start, end) for start, end in places)


def encode_apart(
    tokenizer: Any, text: Traced, markers: tuple[str, ...]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens and offsets of a text in which some markers are only quoted.

    Raises:
        RowProblem: this tokenizer cannot write them as text.
    """
    if any(PRIVATE <= ord(c) < PRIVATE + len(markers) for c in text):
        raise RowProblem("its text has private characters beside a marker of the chat template")
    respelled = _respelled(TokenizerKey(tokenizer), markers)
    encoded = respelled.encode(_with_private(text, markers), add_special_tokens=False)
    ids, offsets = list(encoded.ids), list(encoded.offsets)
    vocabulary = tokenizer.get_vocab()
    taken = is_taken(ids, offsets, text, frozenset(vocabulary[m] for m in markers if m in vocabulary))
    if taken:
        raise RowProblem("its text spells a marker that this tokenizer cannot write as text")
    return ids, offsets


def _touches_row(text: Traced, start: int, end: int) -> bool:
    return any(origin != TEMPLATE for _, origin in text.part(start, end).runs)


def _with_private(text: Traced, markers: tuple[str, ...]) -> str:
    """The same length, so that offsets hold: the template's markers in their private spelling."""
    from qlora_engine.data.layout import marker_places

    plain, pieces, place = str.__str__(text), [], 0
    for size, origin in text.runs:
        own = plain[place : place + size]
        if origin == TEMPLATE:
            for start, end in reversed(marker_places(own, markers)):
                own = own[:start] + _private(markers.index(own[start:end]), end - start) + own[end:]
        pieces.append(own)
        place += size
    return "".join(pieces)


def _private(number: int, length: int) -> str:
    return chr(PRIVATE + number) * length


class TokenizerKey:
    """A tokenizer as a key: itself, by identity."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __hash__(self) -> int:
        return id(self.tokenizer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenizerKey) and other.tokenizer is self.tokenizer


@lru_cache(maxsize=4)
def _respelled(key: TokenizerKey, markers: tuple[str, ...]) -> Any:
    """The tokenizer with every marker in its private spelling; the same ids."""
    from tokenizers import Tokenizer

    stored = parsing.from_json(key.tokenizer.backend_tokenizer.to_str())
    spelling = {marker: _private(i, len(marker)) for i, marker in enumerate(markers)}
    for token in stored["added_tokens"]:
        token["content"] = spelling.get(token["content"], token["content"])
    model = stored["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {spelling.get(word, word): number for word, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[spelling.get(word, word), score] for word, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = spelling.get(model["unk_token"], model["unk_token"])
    stored["truncation"] = stored["padding"] = stored["post_processor"] = None
    return Tokenizer.from_str(json.dumps(stored))
