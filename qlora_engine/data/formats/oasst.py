"""OpenAssistant texts with ### Human and ### Assistant, as the paper's Guanaco set has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qlora_engine.data.conversation import Message, RowProblem
from qlora_engine.data.formats import turns
from qlora_engine.data.formats.columns import text_of
from qlora_engine.data.formats.kind import Detection, Format, Keys, Row, Said

FIELDS = {"text": ("text",)}
TURN = re.compile(r"(?<!#)###\s*(Human|Assistant|User)\s*:")
"""A turn begins anywhere: the dataset of the paper's Guanaco models writes most answers on the question's own line."""


def read(row: Row, detection: Detection, keys: Keys) -> Said:
    column = detection.columns["text"]
    keys.use(column)
    text = text_of(row, column, "text")
    marks = list(TURN.finditer(text))
    if not marks:
        raise RowProblem("it has no '### Human:' and '### Assistant:' turns")
    messages = []
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        content = text[mark.end() : after.start() if after else len(text)].strip()
        messages.append(turns.answer(content) if mark[1] == "Assistant" else Message("user", content))
    return Said(tuple(messages))


def test(rows: Sequence[Row], columns: Sequence[str], chosen: Mapping[str, str]) -> str:
    texts = [row.get(chosen.get("text", "text")) for row in rows]
    if texts and all(isinstance(t, str) and TURN.search(t) for t in texts):
        return "its texts have '### Human:' and '### Assistant:' turns"
    return ""


FORMAT = Format(
    "oasst", "OpenAssistant (text with ### Human / ### Assistant, or message trees)", FIELDS, test, read
)
