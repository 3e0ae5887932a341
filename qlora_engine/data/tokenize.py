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

from qlora_engine.data.answers import MaskProblem, Span
from qlora_engine.data.conversation import Conversation, RowProblem
from qlora_engine.data.markers import encode_apart, is_taken
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import Template, laid_out
from qlora_engine.data.traced import Traced

__all__ = ["BATCH_ROWS", "MaskProblem", "Policy", "Span", "TokenRow", "cut", "tokenize", "trained_mask"]
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


@dataclass(frozen=True)
class _Ready:
    """A row's text with what is trained of it."""

    text: str
    spans: list[Span]
    notes: tuple[str, ...] = ()


def tokenize(
    conversations: Sequence[Conversation], tokenizer: Any, template: Template, policy: Policy
) -> Iterator[TokenRow | RowProblem]:
    """Whole rows, not yet cut, in order; a row that cannot be trained comes out as its problem, with its number."""
    waiting = iter(conversations)
    marker_ids = _ids_of(template.source.markers, tokenizer)
    while group := list(islice(waiting, BATCH_ROWS)):
        yield from _tokenize_group(group, tokenizer, template, policy, marker_ids)


def _ids_of(markers: Sequence[str], tokenizer: Any) -> frozenset[int]:
    """The tokens that markers are, without copying a vocabulary of a hundred thousand for every block of rows."""
    ids = tokenizer.convert_tokens_to_ids(list(markers)) if markers else []
    known = [i for i in ids if isinstance(i, int)]
    names = tokenizer.convert_ids_to_tokens(known)
    wanted = set(markers)
    return frozenset(i for i, name in zip(known, names, strict=True) if name in wanted)


def _tokenize_group(
    group: Sequence[Conversation],
    tokenizer: Any,
    template: Template,
    policy: Policy,
    marker_ids: frozenset[int],
) -> Iterator[TokenRow | RowProblem]:
    ready = [_ready_or_problem(c, tokenizer, template, policy) for c in group]
    texts = [str.__str__(r.text) for r in ready if isinstance(r, _Ready)]
    encoded: Iterator[tuple[Any, Any]] = iter(())
    if texts:
        found = tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        encoded = iter(zip(found["input_ids"], found["offset_mapping"], strict=True))
    for conversation, row in zip(group, ready, strict=True):
        if isinstance(row, RowProblem):
            yield row
        else:
            yield _token_row(conversation.number, row, *next(encoded), tokenizer, template, marker_ids)


def _token_row(
    number: int, row: _Ready, ids: list[int], offsets: list[Span], tokenizer: Any, template: Template,
    marker_ids: frozenset[int],
) -> TokenRow | RowProblem:  # fmt: skip
    if isinstance(row.text, Traced) and is_taken(ids, offsets, row.text, marker_ids):
        try:
            ids, offsets = encode_apart(tokenizer, row.text, template.source.markers)
        except RowProblem as problem:
            return RowProblem(problem.reason, number)
    return TokenRow(
        input_ids=list(ids),
        trained=trained_mask(offsets, widened(offsets, row.spans, row.text)),
        source_row=number,
        lengths=(len(ids),),
        text=str.__str__(row.text),
        notes=row.notes,
    )


def _ready_or_problem(
    conversation: Conversation, tokenizer: Any, template: Template, policy: Policy
) -> _Ready | RowProblem:
    """The template writes BOS itself; a plain text gets BOS and EOS here (CORRECTNESS 15 and 16)."""
    if conversation.text is not None:
        text = with_ends(conversation.text, tokenizer)
        return _Ready(text, [(0, len(text))])
    try:
        found = laid_out(conversation, template, policy)
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
