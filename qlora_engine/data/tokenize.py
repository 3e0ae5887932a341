"""Turns examples into tokens with a mask of what is trained. Torch-free; needs a fast tokenizer.

The answers are found in the rendered text, turn by turn, so that any template works; what cannot be found is an
error, never the whole text (CORRECTNESS 17). Padding is masked by length, not by token id (CORRECTNESS 14).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_engine.data.formats import Example
from qlora_engine.data.templates import Template, render

Span = tuple[int, int]
BATCH_ROWS = 256


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One training row. `trained[i]` says whether token i is predicted in the loss; same length as `input_ids`.

    `lengths` are those of the rows packed into it; a row of its own has one. `cut_tokens` were left out by the
    sequence length, `is_answer_cut` says whether trained ones were among them.
    """

    input_ids: list[int]
    trained: list[bool]
    source_row: int
    lengths: tuple[int, ...] = ()
    cut_tokens: int = 0
    is_answer_cut: bool = False
    text: str = field(default="", repr=False)

    @property
    def trained_count(self) -> int:
        """Tokens that count in the loss: the first of a row has nothing before it to be predicted from."""
        return sum(self.trained[1:])


class MaskProblem(Exception):  # noqa: N818 - carries a reason, turned into a sentence by the pipeline
    """The answers of a row cannot be found in its rendered text."""


def tokenize(
    examples: Sequence[Example], tokenizer: Any, template: Template, *, train_on: str
) -> Iterator[TokenRow]:
    """Whole rows, not yet cut, in order.

    Raises:
        MaskProblem: an answer cannot be found in the rendered text.
    """
    for start in range(0, len(examples), BATCH_ROWS):
        group = examples[start : start + BATCH_ROWS]
        texts, spans = [], []
        for example in group:
            text, found = rendered(example, tokenizer, template, train_on=train_on)
            texts.append(text)
            spans.append(found)
        encoded = tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        for example, text, found, ids, offsets in zip(
            group, texts, spans, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            yield TokenRow(
                input_ids=list(ids),
                trained=trained_mask(offsets, found),
                source_row=example.number,
                lengths=(len(ids),),
                text=text,
            )


def rendered(
    example: Example, tokenizer: Any, template: Template, *, train_on: str
) -> tuple[str, list[Span]]:
    """The text of a row and the spans of it that are trained.

    The template writes BOS itself; a plain text gets BOS and EOS here (CORRECTNESS 15 and 16).
    """
    if example.text is not None:
        text = _with_ends(example.text, tokenizer)
        return text, [(0, len(text))]
    text = render(tokenizer, template, example.messages)
    if train_on == "everything":
        return text, [(0, len(text))]
    return text, answer_spans(text, example, tokenizer, template)


def answer_spans(text: str, example: Example, tokenizer: Any, template: Template) -> list[Span]:
    """Where the answers stand in `text`, each with the token that ends its turn and nothing after it.

    Raises:
        MaskProblem: one cannot be found.
    """
    spans = []
    searched = 0
    for index, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        span = _by_prefix(text, example, index, tokenizer, template)
        if span is None or span[0] < searched:
            span = _by_content(text, message["content"], searched, template)
        spans.append(span)
        searched = span[1]
    if not spans:
        raise MaskProblem("it has no answer")
    return spans


def _by_prefix(text: str, example: Example, index: int, tokenizer: Any, template: Template) -> Span | None:
    """From the end of the prompt that generation would see to the end of the turn; None when the template renders
    the conversation's beginning differently on its own."""
    prompt = render(tokenizer, template, example.messages[:index], is_prompt=True)
    through = render(tokenizer, template, example.messages[: index + 1])
    content = example.messages[index]["content"].strip()
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
    )


def _with_ends(text: str, tokenizer: Any) -> str:
    begin = tokenizer.bos_token if tokenizer.bos_token and getattr(tokenizer, "add_bos_token", False) else ""
    end = tokenizer.eos_token or ""
    if begin and text.startswith(begin):
        begin = ""
    return f"{begin}{text}{'' if end and text.endswith(end) else end}"
