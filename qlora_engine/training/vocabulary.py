"""Whether a tokenizer and a model agree on how many tokens there are, before anything is loaded; what is done about it.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from qlora_engine.errors import EngineError
from qlora_engine.events import Event, Noticed
from qlora_engine.models import resizing
from qlora_engine.models.parts import ModelFacts

SPARE_ROWS = 1024
"""Embeddings are rounded up to a multiple that suits the hardware; more than this many without a token is no rounding."""


def settled(
    tokenizer: Any, facts: ModelFacts, resizes: bool, rows: Iterable[Sequence[int]]
) -> Generator[Event, None, ModelFacts]:
    """`facts` with the rows that the tokenizer needs, where they are wanted; what that is, and where the two still differ, is
    said. `rows` are the token ids that will be trained and measured.

    Raises:
        EngineError: a row has a token that the model has no embedding for, or the model cannot get one.
    """
    before = facts.vocab_size
    if resizes:
        facts = resizing.grown(facts, resizing.rows_needed(tokenizer))
        yield _resized(facts, before, len(tokenizer))
    yield from compare(tokenizer, facts.vocab_size, rows)
    return facts


def _resized(facts: ModelFacts, before: int, entries: int) -> Noticed:
    if not facts.new_rows:
        return Noticed(
            "info", "model.resized",
            f"The embeddings stay as they are: the tokenizer's {entries:,} entries have their place in {before:,} rows",
        )  # fmt: skip
    return Noticed(
        "info", "model.resized",
        f"The tokenizer has {entries:,} entries and the model embeddings for {before:,}: {facts.new_rows:,} rows are added, "
        "each the mean of the others, and trained whole; the adapter keeps them, and so does every merge",
    )  # fmt: skip


def compare(tokenizer: Any, embedding_rows: int, rows: Iterable[Sequence[int]]) -> Iterator[Event]:
    """Say where they differ; `rows` are the token ids that will be trained and measured.

    Raises:
        EngineError: a row has a token that the model has no embedding for.
    """
    entries = len(tokenizer)
    largest = max((max(row, default=0) for row in rows), default=0)
    if largest >= embedding_rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise EngineError(
            "model.vocabulary",
            f"the tokenizer has {entries:,} entries and the model has embeddings for {embedding_rows:,}: the data uses token "
            f"{largest:,} ({token!r}), which the model does not know",
            "use the tokenizer that belongs to these weights, or a chat template without that token; or set "
            "model.resize_embeddings to true, and rows for the new tokens are added and trained",
        )
    if entries > embedding_rows:
        yield Noticed(
            "warning", "model.vocabulary",
            f"The tokenizer has {entries:,} entries and the model has embeddings for {embedding_rows:,}; the data uses none of "
            f"the {entries - embedding_rows:,} others",
            "a prompt that uses one of them cannot be answered; model.resize_embeddings gives them embeddings",
        )  # fmt: skip
    if embedding_rows - entries > SPARE_ROWS:
        yield Noticed(
            "warning", "model.vocabulary",
            f"The tokenizer has {entries:,} entries and the model has embeddings for {embedding_rows:,}: "
            f"{embedding_rows - entries:,} of them no text leads to, more than rounding up leaves",
            "see that the tokenizer belongs to these weights",
        )  # fmt: skip
    if tokenizer.pad_token_id is None:
        yield Noticed(
            "info", "model.no_pad",
            "The tokenizer has no padding token; short rows are filled with the end token, which is masked by length",
        )  # fmt: skip
