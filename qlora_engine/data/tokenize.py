"""Turns conversations into tokens with a mask of what is trained. Torch-free; needs a fast tokenizer.

A row that cannot be trained rightly comes out as a RowProblem with its number, never as the whole text (CORRECTNESS
17), and never stops the others. Padding is masked by length, not by token id (CORRECTNESS 14).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from qlora_engine.data import byte_masks
from qlora_engine.data.answers import MaskProblem, Span
from qlora_engine.data.conversation import Conversation, RowProblem
from qlora_engine.data.markers import encode_apart, is_taken
from qlora_engine.data.policy import Policy
from qlora_engine.data.skeleton import Filled
from qlora_engine.data.templates import Template, filled, laid_out
from qlora_engine.data.traced import Traced

__all__ = [
    "BATCH_ROWS",
    "Encoded",
    "MaskProblem",
    "Policy",
    "Span",
    "TokenRow",
    "cut",
    "encode",
    "tokenize",
    "trained_mask",
]
BATCH_ROWS = 256


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One training row. `trained[i]` says whether token i is predicted in the loss; same length as `input_ids`.

    `lengths` are those of the rows packed into it; a row of its own has one. `cut_tokens` were left out by the
    sequence length, `is_answer_cut` says whether trained ones were among them. `notes` say what the template did to
    the row that a person should know, in words that are counted.
    """

    input_ids: list[int]
    trained: list[bool]
    source_row: int
    lengths: tuple[int, ...] = ()
    cut_tokens: int = 0
    is_answer_cut: bool = False
    text: str = field(default="", repr=False)
    notes: tuple[str, ...] = ()

    @property
    def trained_count(self) -> int:
        """Tokens that count in the loss: the first of a row has nothing before it to be predicted from."""
        return sum(self.trained[1:])


@dataclass(frozen=True, eq=False)
class Encoded:
    """A whole row as arrays: `ids` (tokens,) int32, `trained` (tokens,) bool; the rest as in `TokenRow`."""

    number: int
    ids: Any
    trained: Any
    text: str
    notes: tuple[str, ...] = ()

    @property
    def trained_count(self) -> int:
        """As `TokenRow.trained_count`."""
        return int(self.trained[1:].sum())

    def row(self) -> TokenRow:
        ids = self.ids.tolist()
        return TokenRow(
            ids, self.trained.tolist(), self.number, (len(ids),), text=self.text, notes=self.notes
        )

    @classmethod
    def of(cls, row: TokenRow) -> Encoded:
        import numpy as np

        ids, trained = np.array(row.input_ids, np.int32), np.array(row.trained, bool)
        return cls(row.source_row, ids, trained, row.text, row.notes)


@dataclass(frozen=True)
class _Ready:
    """A row's text with what is trained of it."""

    text: str
    spans: list[Span]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Work:
    """With what rows are tokenized."""

    tokenizer: Any
    template: Template
    policy: Policy
    marker_ids: frozenset[int]


def tokenize(
    conversations: Sequence[Conversation], tokenizer: Any, template: Template, policy: Policy
) -> Iterator[TokenRow | RowProblem]:
    """Whole rows, not yet cut, in order; a row that cannot be trained comes out as its problem, with its number."""
    for found in encode(conversations, tokenizer, template, policy):
        yield found.row() if isinstance(found, Encoded) else found


def encode(
    conversations: Sequence[Conversation], tokenizer: Any, template: Template, policy: Policy
) -> Iterator[Encoded | RowProblem]:
    """The same as arrays."""
    waiting = iter(conversations)
    work = _Work(tokenizer, template, policy, _ids_of(template.source.markers, tokenizer))
    while group := list(islice(waiting, BATCH_ROWS)):
        yield from _encode_group(group, work)


def _ids_of(markers: Sequence[str], tokenizer: Any) -> frozenset[int]:
    """The tokens that markers are, without copying a vocabulary of a hundred thousand for every block of rows."""
    ids = tokenizer.convert_tokens_to_ids(list(markers)) if markers else []
    known = [i for i in ids if isinstance(i, int)]
    names = tokenizer.convert_ids_to_tokens(known)
    wanted = set(markers)
    return frozenset(i for i, name in zip(known, names, strict=True) if name in wanted)


def _encode_group(group: Sequence[Conversation], work: _Work) -> list[Encoded | RowProblem]:
    """By the bytes of tokens where they tell, by offsets for the other rows."""
    lengths = byte_masks.byte_lengths(work.tokenizer)
    found: dict[int, Encoded | RowProblem] = {}
    texts: dict[int, Filled] = {}
    for place, conversation in enumerate(group if lengths is not None else ()):
        row = _filled_or_problem(conversation, work)
        if isinstance(row, Filled):
            texts[place] = row
        else:
            found[place] = row
    if texts and lengths is not None:
        masks = byte_masks.masked(list(texts.values()), work.tokenizer, lengths, work.marker_ids)
        for (place, text), mask in zip(texts.items(), masks, strict=True):
            if mask is not None:
                found[place] = Encoded(group[place].number, mask.ids, mask.trained, text.text, text.notes)
    left = [place for place in range(len(group)) if place not in found]
    found.update(zip(left, _by_offsets([group[place] for place in left], work), strict=True))
    return [found[place] for place in range(len(group))]


def _filled_or_problem(conversation: Conversation, work: _Work) -> Filled | RowProblem:
    if conversation.text is not None:
        text = with_ends(conversation.text, work.tokenizer)
        size = len(text.encode("utf-8", "surrogatepass"))
        return Filled(text, size, [(0, size)], [])
    try:
        return filled(conversation, work.template, work.policy)
    except RowProblem as problem:
        return RowProblem(problem.reason, conversation.number)


def _by_offsets(group: Sequence[Conversation], work: _Work) -> Iterator[Encoded | RowProblem]:
    ready = [_ready_or_problem(c, work) for c in group]
    texts = [str.__str__(r.text) for r in ready if isinstance(r, _Ready)]
    encoded: Iterator[tuple[Any, Any]] = iter(())
    if texts:
        found = work.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        encoded = iter(zip(found["input_ids"], found["offset_mapping"], strict=True))
    for conversation, row in zip(group, ready, strict=True):
        yield row if isinstance(row, RowProblem) else _row(conversation.number, row, *next(encoded), work)


def _row(
    number: int, row: _Ready, ids: list[int], offsets: list[Span], work: _Work
) -> Encoded | RowProblem:  # fmt: skip
    if isinstance(row.text, Traced) and is_taken(ids, offsets, row.text, work.marker_ids):
        try:
            ids, offsets = encode_apart(work.tokenizer, row.text, work.template.source.markers)
        except RowProblem as problem:
            return RowProblem(problem.reason, number)
    trained = trained_mask(offsets, widened(offsets, row.spans, row.text))
    return Encoded.of(TokenRow(ids, trained, number, text=str.__str__(row.text), notes=row.notes))


def _ready_or_problem(conversation: Conversation, work: _Work) -> _Ready | RowProblem:
    """The template writes BOS itself; a plain text gets BOS and EOS here (CORRECTNESS 15 and 16)."""
    if conversation.text is not None:
        text = with_ends(conversation.text, work.tokenizer)
        return _Ready(text, [(0, len(text))])
    try:
        found = laid_out(conversation, work.template, work.policy)
    except RowProblem as problem:
        return RowProblem(problem.reason, conversation.number)
    return _Ready(found.text, found.spans, found.notes)


def widened(offsets: Sequence[Span], spans: Sequence[Span], text: str) -> Sequence[Span]:
    """Spans that begin at a token: one that has nothing but white space before its answer (` Yes`) is the answer's."""
    starts = [start for start, _ in offsets]
    found = []
    for start, end in spans:
        token = bisect_right(starts, start) - 1
        begins = starts[token] if 0 <= token < len(starts) else start
        is_crossing = begins < start < offsets[token][1] if begins != start else False
        is_blank = is_crossing and not str.__getitem__(text, slice(begins, start)).strip()
        found.append((begins if is_blank else start, end))
    return found


def trained_mask(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For each token (character offsets) whether it begins inside a span and is not empty.

    A token that begins before an answer and reaches into it belongs to the prompt.
    """
    starts = [start for start, _ in offsets]
    mask = [False] * len(offsets)
    for begin, end in spans:
        first, last = bisect_left(starts, begin), bisect_left(starts, end)
        mask[first:last] = [e > s for s, e in offsets[first:last]]
    return mask


def cut(row: TokenRow, seq_len: int) -> TokenRow:
    """The row's first `seq_len` tokens; what was lost is counted (CORRECTNESS 19)."""
    lost = len(row.input_ids) - seq_len
    if lost <= 0:
        return row
    return TokenRow(
        input_ids=row.input_ids[:seq_len],
        trained=row.trained[:seq_len],
        source_row=row.source_row,
        lengths=(seq_len,),
        cut_tokens=lost,
        is_answer_cut=any(row.trained[seq_len:]),
        text=row.text,
        notes=row.notes,
    )


def with_ends(text: str, tokenizer: Any) -> str:
    begin = tokenizer.bos_token if tokenizer.bos_token and getattr(tokenizer, "add_bos_token", False) else ""
    end = tokenizer.eos_token or ""
    if begin and text.startswith(begin):
        begin = ""
    return f"{begin}{text}{'' if end and text.endswith(end) else end}"
