"""Plain text: every token is trained."""

from __future__ import annotations

from qlora_engine.data.formats.columns import by_names, text_of
from qlora_engine.data.formats.kind import Detection, Format, Keys, Row, Said

FIELDS = {"text": ("text", "content", "document")}


def read(row: Row, detection: Detection, keys: Keys) -> Said:
    keys.use(detection.columns["text"])
    return Said(text=text_of(row, detection.columns["text"], "text"))


FORMAT = Format("text", "Plain text", FIELDS, by_names(FIELDS), read)
