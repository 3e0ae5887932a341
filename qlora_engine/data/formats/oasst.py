"""OpenAssistant texts with ### Human and ### Assistant, as the paper's Guanaco set has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.formats import transcript
from qlora_engine.data.formats.columns import text_of
from qlora_engine.data.formats.kind import Detection, Format, Keys, Row, Said

FIELDS = {"text": ("text",)}
STYLE = transcript.Style(re.compile(r"(?<!#)###\s*(Human|Assistant|User)\s*:"), has_preamble=True)
"""A turn begins anywhere: the dataset of the paper's Guanaco models writes most answers on the question's own line."""


def read(row: Row, detection: Detection, keys: Keys) -> Said:
    column = detection.columns["text"]
    keys.use(column)
    text = text_of(row, column, "text")
    if not STYLE.mark.search(text):
        raise RowProblem("it has no '### Human:' and '### Assistant:' turns")
    return Said(tuple(transcript.read_marked(text, STYLE)))


def test(rows: Sequence[Row], columns: Sequence[str], chosen: Mapping[str, str]) -> str:
    texts = [row.get(chosen.get("text", "text")) for row in rows]
    if texts and all(isinstance(t, str) and STYLE.mark.search(t) for t in texts):
        return "its texts have '### Human:' and '### Assistant:' turns"
    return ""


FORMAT = Format(
    "oasst", "OpenAssistant (text with ### Human / ### Assistant, or message trees)", FIELDS, test, read
)
