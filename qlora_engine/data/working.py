"""One block of rows into tokens and what is known of each, in whatever process it runs. Torch-free, picklable.

What comes back is an Arrow batch of plain arrays, so that a million rows are never a million objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_engine import row_numbers
from qlora_engine.data import near, scripts, secrets, splitting
from qlora_engine.data.conversation import Conversation, RowProblem
from qlora_engine.data.formats import Detection, read_row
from qlora_engine.data.sources import BadRow, Block
from qlora_engine.data.templates import Template
from qlora_engine.data.tokenize import Encoded, Policy, TokenRow, encode, tokenize, with_ends

(
    HAS_SECRET,
    HAS_EMAIL,
    HAS_REASONING,
    HAS_CALLS,
    HAS_TOOLS,
    HAS_END,
    IS_TEXT,
    HAS_UNTRAINED_ANSWER,
    LOST_REASONING,
) = (1 << place for place in range(9))


@dataclass(frozen=True)
class Plan:
    """What is done to every row: how each source is read, and into what."""

    detections: tuple[Detection, ...]
    tokenizer: Any
    template: Template
    policy: Policy
    system_prompt: str | None
    text_tokens: int
    overlap: int
    end_ids: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """What became of a block: an Arrow stream of its token rows, the rows left out, and of what is
    noted of rows (`unused:` keys, `note:` of their rendering) the rows that have it."""

    stream: bytes
    numbers: int
    problems: list[tuple[int, str]]
    noted: dict[str, row_numbers.Ranges]


LETTERS_A_TOKEN = 8
"""A text with more of them for each token of a row is taken for one that becomes several; most have four or five."""
Kept = tuple[Encoded, Conversation, int]
"""A row, what it was made of, and which part of a text it is."""


def work(plan: Plan, block: Block) -> Part:
    """Read, understand, render and tokenize a block.

    Raises:
        EngineError: its file has gone.
    """
    problems: list[tuple[int, str]] = []
    noted: dict[str, list[int]] = {}
    kept: list[Kept] = []
    conversations = list(_conversations(plan, block, problems))
    texts = [c for c in conversations if c.text is not None]
    talks = [c for c in conversations if c.text is None]
    kept.extend(_of_texts(plan, texts))
    encoded = encode(talks, plan.tokenizer, plan.template, plan.policy)
    for conversation, row in zip(talks, encoded, strict=True):
        if isinstance(row, RowProblem):
            problems.append((conversation.number, row.reason))
        elif not row.trained_count:
            problems.append((conversation.number, "nothing of it is to be trained"))
        else:
            for note in row.notes:
                noted.setdefault(f"note:{note}", []).append(conversation.number)
            kept.append((row, conversation, 0))
    for _, conversation, _ in kept:
        for key in conversation.unused:
            noted.setdefault(f"unused:{key}", []).append(conversation.number)
    ranges = {name: row_numbers.of_numbers(numbers) for name, numbers in noted.items()}
    return Part(_stream(plan, block.source, kept), len(block.spans), sorted(problems), ranges)


def _of_texts(plan: Plan, texts: Sequence[Conversation]) -> Iterator[Kept]:
    """Each text as one row, made together with the others; what is too long for one by itself, since its tokens must be placed.
    Of a text that is surely so, none are made before."""
    most = plan.text_tokens * LETTERS_A_TOKEN
    short = [one for one in texts if one.text is not None and len(one.text) <= most]
    encoded = dict(
        zip(map(id, short), encode(short, plan.tokenizer, plan.template, plan.policy), strict=True)
    )
    for conversation in texts:
        row = encoded.get(id(conversation))
        if isinstance(row, Encoded) and len(row.ids) <= plan.text_tokens:
            yield row, conversation, 0
        else:
            rows = enumerate(text_rows(plan, conversation))
            yield from ((Encoded.of(piece), conversation, part) for part, piece in rows)


def _conversations(plan: Plan, block: Block, problems: list[tuple[int, str]]) -> Iterator[Conversation]:
    detection = plan.detections[block.source]
    for number, row in block.rows():
        if isinstance(row, BadRow):
            problems.append((number, row.reason))
            continue
        try:
            conversation = read_row(row, number, detection)
        except RowProblem as problem:
            problems.append((number, problem.reason))
            continue
        yield conversation.with_system(plan.system_prompt)


def text_rows(plan: Plan, conversation: Conversation) -> Iterator[TokenRow]:
    """A plain text as one row, or as many as its length needs."""
    assert conversation.text is not None
    text = with_ends(conversation.text, plan.tokenizer)
    encoded = plan.tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    starts = [start for start, _ in offsets]
    for first, end in splitting.pieces(text, starts, plan.text_tokens, plan.overlap):
        last_char = starts[end] if end < len(starts) else len(text)
        yield TokenRow(
            input_ids=list(ids[first:end]),
            trained=[e > s for s, e in offsets[first:end]],
            source_row=conversation.number,
            lengths=(end - first,),
            text=text[starts[first] if starts else 0 : last_char],
        )


def said(conversation: Conversation) -> str:
    """What a row says of its own: everything but the system prompt."""
    if conversation.text is not None:
        return conversation.text
    pieces = []
    for message in conversation.messages:
        if message.role not in ("system", "developer"):
            pieces.extend(
                [message.text, message.reasoning or "", *(f"{c.name} {c.arguments}" for c in message.calls)]
            )
    return "\n".join(piece for piece in pieces if piece)


def _stream(plan: Plan, source: int, kept: Sequence[Kept]) -> bytes:
    import pyarrow as pa

    if not kept:
        return b""
    batch = _batch(plan, source, kept)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _batch(plan: Plan, source: int, kept: Sequence[Kept]) -> Any:
    import numpy as np
    import pyarrow as pa

    rows = [row for row, _, _ in kept]
    parts = [part for _, _, part in kept]
    pieces = [_piece(row, conversation) for row, conversation, _ in kept]
    loose = [near.loose(piece) for piece in pieces]
    lengths = np.array([len(row.ids) for row in rows], np.int64)
    ids = np.concatenate([row.ids for row in rows])
    trained = np.concatenate([row.trained for row in rows])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    spans, span_offsets = _spans(trained, offsets)
    keys = b"".join(_key(conversation, part, plan.overlap) for _, conversation, part in kept)
    minima = near.signatures(loose)
    return pa.record_batch(
        {
            "number": pa.array([row.number for row in rows], pa.int64()),
            "part": pa.array(parts, pa.int32()),
            "source": pa.array(np.full(len(rows), source, np.int16)),
            "ids": pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids)),
            "spans": pa.ListArray.from_arrays(pa.array(span_offsets), pa.array(spans)),
            "trained": pa.array(_trained_counts(trained, offsets)),
            "key": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(rows), [None, pa.py_buffer(keys)]),
            "loose": pa.array([near.loose_key(text) for text in loose], pa.binary(16)),
            "minima": pa.FixedSizeListArray.from_arrays(pa.array(minima.reshape(-1)), near.MINIMA),
            "flags": pa.array(_flags(kept, pieces, _ends_trained(plan, ids, trained, offsets))),
            "script": pa.array(scripts.dominant(pieces)),
            "bos": pa.array(_count(ids, offsets, plan.tokenizer.bos_token_id)),
            "unknown": pa.array(_count(ids, offsets, plan.tokenizer.unk_token_id)),
        }
    )


def _piece(row: Encoded, conversation: Conversation) -> str:
    return row.text if conversation.text is not None else said(conversation)


def _key(conversation: Conversation, part: int, overlap: int) -> bytes:
    """16 bytes of what the row says. Pieces of a text are rows of their own unless they overlap."""
    key = bytes.fromhex(conversation.content_key())[:16]
    if part and not overlap:
        return near.loose_key(b"%b:%d" % (key, part))
    return key


def _spans(trained: Any, offsets: Any) -> tuple[Any, Any]:
    """(flat int32 of first and last+1 trained token of each run, within its row; int32 offsets of rows in it)."""
    import numpy as np

    padded = np.zeros(len(trained) + len(offsets), np.int8)
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    padded[np.arange(len(trained)) + rows] = trained
    edges = np.diff(padded, prepend=np.int8(0))
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    shifted = offsets[:-1] + np.arange(len(offsets) - 1)
    row_of = np.searchsorted(shifted, begins, side="right") - 1
    flat = np.stack([begins - shifted[row_of], ends - shifted[row_of]], axis=1).reshape(-1).astype(np.int32)
    counts = np.bincount(row_of, minlength=len(offsets) - 1) * 2
    return flat, np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _trained_counts(trained: Any, offsets: Any) -> Any:
    """Trained tokens of each row but its first, which nothing predicts."""
    import numpy as np

    counted = trained.copy()
    counted[offsets[:-1]] = False
    return np.add.reduceat(counted, offsets[:-1]).astype(np.int32)


def _count(ids: Any, offsets: Any, token: int | None) -> Any:
    import numpy as np

    if token is None:
        return np.zeros(len(offsets) - 1, np.int32)
    return np.add.reduceat((ids == token).astype(np.int32), offsets[:-1])


def _ends_trained(plan: Plan, ids: Any, trained: Any, offsets: Any) -> Any:
    """Whether each row trains a token that ends an answer."""
    import numpy as np

    is_end = np.zeros(len(ids), bool)
    for token in plan.end_ids:
        is_end |= ids == token
    return np.logical_or.reduceat(is_end & trained, offsets[:-1])


def _flags(kept: Sequence[Kept], pieces: Sequence[str], ends: Any) -> Any:
    import numpy as np

    patterns = secrets.hinted(pieces)
    found = [
        HAS_SECRET * secrets.has_secret(piece, patterns)
        | HAS_EMAIL * secrets.has_email(piece)
        | HAS_END * has_end
        | _flags_of(row, conversation)
        for (row, conversation, _), piece, has_end in zip(kept, pieces, ends.tolist(), strict=True)
    ]
    return np.array(found, np.uint16)


def _flags_of(row: Encoded, conversation: Conversation) -> int:
    found = HAS_TOOLS * bool(conversation.tools) | IS_TEXT * (conversation.text is not None)
    for message in conversation.messages:
        if message.role == "assistant":
            found |= HAS_REASONING * bool(message.reasoning) | HAS_CALLS * bool(message.calls)
            found |= HAS_UNTRAINED_ANSWER * (message.is_trained is False)
    return found | LOST_REASONING * (bool(row.notes) and any("reasoning" in note for note in row.notes))


def as_processed(plan: Plan, conversation: Conversation) -> list[TokenRow]:
    """The rows of one conversation, for looking at them: the same code as for a million.

    Raises:
        RowProblem: it is left out, with the reason.
    """
    if conversation.text is not None:
        return list(text_rows(plan, conversation))
    (row,) = tokenize([conversation], plan.tokenizer, plan.template, plan.policy)
    if isinstance(row, RowProblem):
        raise row
    return [replace(row, source_row=conversation.number)]
