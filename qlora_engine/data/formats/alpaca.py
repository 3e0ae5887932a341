"""Alpaca: instruction, input, output, with the system prompt and the history that LLaMA-Factory adds; question/answer."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_engine.data.conversation import Message
from qlora_engine.data.formats import context, turns
from qlora_engine.data.formats.columns import by_names, text_of
from qlora_engine.data.formats.kind import Detection, Format, Keys, Row, Said

FIELDS = {
    "instruction": ("instruction", "question", "query", "task", "problem", "user", "human", "user_message"),
    "input": ("input", "context"),
    "output": (
        "output", "response", "answer", "target", "completion", "solution", "assistant", "bot", "gpt",
        "assistant_message", "reply", "answers.text",
    ),
    "reasoning": ("reasoning_content", "reasoning", "thinking", "thought", "complex_cot", "cot"),
}  # fmt: skip
OPTIONAL = ("input", "reasoning")


def read(row: Row, detection: Detection, keys: Keys) -> Said:
    columns = detection.columns
    question = text_of(row, columns["instruction"], "instruction")
    extra = row.get(columns.get("input", ""))
    if isinstance(extra, int | float) and not isinstance(extra, bool):
        extra = str(extra)
    if isinstance(extra, str):
        keys.use(columns["input"])
        question = f"{question}\n\n{extra}" if extra.strip() else question
    said = turns.answer(text_of(row, columns["output"], "output"))
    thought = row.get(columns.get("reasoning", ""))
    if isinstance(thought, str):
        keys.use(columns["reasoning"])
        said = Message("assistant", said.text, thought.strip() or said.reasoning)
    keys.use(columns["instruction"], columns["output"])
    talk = [*_history(row, keys), Message("user", question), said]
    return Said(tuple(context.with_system(row, talk, keys)), context.tools_of(row, keys))


def _history(row: Row, keys: Keys) -> Iterator[Message]:
    """Earlier turns as LLaMA-Factory stores them: a list of [question, answer]."""
    history = row.get("history")
    if not isinstance(history, list | tuple):
        return
    keys.use("history")
    for pair in history:
        if isinstance(pair, list | tuple) and len(pair) == 2:
            yield Message("user", str(pair[0]))
            yield turns.answer(str(pair[1]))


FORMAT = Format(
    "alpaca", "Alpaca (instruction, input, output)", FIELDS, by_names(FIELDS, OPTIONAL), read, OPTIONAL
)
