"""Turns conversations into tokens with a mask of what is trained. Torch-free; needs a fast tokenizer.

A row that cannot be trained rightly comes out as a RowProblem with its number, never as the whole text (CORRECTNESS
17), and never stops the others. Padding is masked by length, not by token id (CORRECTNESS 14).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from qlora_engine.config import DataSettings
from qlora_engine.data.conversation import Conversation, RowProblem
from qlora_engine.data.templates import Template, render

Span = tuple[int, int]
BATCH_ROWS = 256


@dataclass(frozen=True)
class Policy:
    """What a run does with every row: `train_on` answers or everything, `reasoning` train, context or remove,
    `empty_answers` context or train."""

    train_on: str = "answers"
    reasoning: str = "train"
    empty_answers: str = "context"

    @classmethod
    def of(cls, settings: DataSettings) -> Policy:
        return cls(settings.train_on, settings.reasoning, settings.empty_answers)


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


class MaskProblem(RowProblem):
    """The answers of a row cannot be found in its rendered text."""


def tokenize(
    conversations: Sequence[Conversation], tokenizer: Any, template: Template, policy: Policy
) -> Iterator[TokenRow | RowProblem]:
    """Whole rows, not yet cut, in order; a row that cannot be trained comes out as its problem, with its number."""
    waiting = iter(conversations)
    while group := list(islice(waiting, BATCH_ROWS)):
        yield from _tokenize_group(group, tokenizer, template, policy)


def _tokenize_group(
    group: Sequence[Conversation], tokenizer: Any, template: Template, policy: Policy
) -> Iterator[TokenRow | RowProblem]:
    rendering = [_rendered_or_problem(c, tokenizer, template, policy) for c in group]
    texts = [r[0] for r in rendering if not isinstance(r, RowProblem)]
    encoded: Iterator[tuple[Any, Any]] = iter(())
    if texts:
        found = tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        encoded = iter(zip(found["input_ids"], found["offset_mapping"], strict=True))
    for conversation, result in zip(group, rendering, strict=True):
        if isinstance(result, RowProblem):
            yield result
            continue
        ids, offsets = next(encoded)
        yield TokenRow(
            input_ids=list(ids),
            trained=trained_mask(offsets, result[1]),
            source_row=conversation.number,
            lengths=(len(ids),),
            text=result[0],
        )


def _rendered_or_problem(
    conversation: Conversation, tokenizer: Any, template: Template, policy: Policy
) -> tuple[str, list[Span]] | RowProblem:
    try:
        return rendered(conversation, tokenizer, template, policy)
    except RowProblem as problem:
        return RowProblem(problem.reason, conversation.number)
    except Exception as error:  # noqa: BLE001 - a template raises whatever its author chose
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return RowProblem(f"the chat template refuses it: {lines[0][:160]}", conversation.number)


def rendered(
    conversation: Conversation, tokenizer: Any, template: Template, policy: Policy
) -> tuple[str, list[Span]]:
    """The text of a row and the spans of it that are trained.

    The template writes BOS itself; a plain text gets BOS and EOS here (CORRECTNESS 15 and 16).
    """
    if conversation.text is not None:
        text = _with_ends(conversation.text, tokenizer)
        return text, [(0, len(text))]
    text = render(tokenizer, template, conversation.messages)
    if policy.train_on == "everything":
        return text, [(0, len(text))]
    return text, answer_spans(text, conversation, tokenizer, template)


def answer_spans(text: str, conversation: Conversation, tokenizer: Any, template: Template) -> list[Span]:
    """Where the answers stand in `text`, each with the token that ends its turn and nothing after it.

    Raises:
        MaskProblem: one cannot be found.
    """
    spans = []
    searched = 0
    for index, message in enumerate(conversation.messages):
        if not message.is_answer:
            continue
        span = _by_prefix(text, conversation, index, tokenizer, template)
        if span is None or span[0] < searched:
            span = _by_content(text, message.text, searched, template)
        spans.append(span)
        searched = span[1]
    if not spans:
        raise MaskProblem("it has no answer")
    return spans


def _by_prefix(
    text: str, conversation: Conversation, index: int, tokenizer: Any, template: Template
) -> Span | None:
    """From the end of the prompt that generation would see to the end of the turn; None when the template renders
    the conversation's beginning differently on its own."""
    prompt = render(tokenizer, template, conversation.messages[:index], is_prompt=True)
    through = render(tokenizer, template, conversation.messages[: index + 1])
    content = conversation.messages[index].text.strip()
    if not text.startswith(prompt):
        return None
    end = _common_length(text, through)
    if content not in text[len(prompt) : end]:
        return None
    return len(prompt), _after_end_token(text, len(prompt), end, content, template)


def _by_content(text: str, content: str, searched: int, template: Template) -> Span:
    """The answer's own text after `searched`, and the end token right behind it."""
    wanted = content.strip()
    start = text.find(wanted, searched) if wanted else -1
    if start < 0:
        raise MaskProblem("the chat template changes the answer's text, so it cannot be found")
    end = start + len(wanted)
    rest = text[end:]
    for token in template.end_tokens:
        gap = rest.find(token)
        if gap >= 0 and not rest[:gap].strip():
            return start, end + gap + len(token)
    return start, end


def _after_end_token(text: str, start: int, end: int, content: str, template: Template) -> int:
    """The place after the first end token behind the answer; without one, the end of the answer's text."""
    after = text.index(content, start) + len(content)
    places = [
        text.find(token, after, end) + len(token)
        for token in template.end_tokens
        if text.find(token, after, end) >= 0
    ]
    return min(places) if places else after


def _common_length(text: str, other: str) -> int:
    """How far two texts agree."""
    if text.startswith(other):
        return len(other)
    for index, (a, b) in enumerate(zip(text, other, strict=False)):
        if a != b:
            return index
    return min(len(text), len(other))


def trained_mask(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For each token (character offsets) whether it begins inside a span and is not empty.

    A token that begins before an answer and reaches into it belongs to the prompt.
    """
    mask, current = [], 0
    for start, end in offsets:
        while current < len(spans) and start >= spans[current][1]:
            current += 1
        mask.append(current < len(spans) and end > start >= spans[current][0])
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


def _with_ends(text: str, tokenizer: Any) -> str:
    begin = tokenizer.bos_token if tokenizer.bos_token and getattr(tokenizer, "add_bos_token", False) else ""
    end = tokenizer.eos_token or ""
    if begin and text.startswith(begin):
        begin = ""
    return f"{begin}{text}{'' if end and text.endswith(end) else end}"
