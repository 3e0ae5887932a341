"""Reads plain text and Markdown: a file is a document, a long one comes in sections. Torch-free.

Sections end at a paragraph where there is one; put together they are the document to the last character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TextIO

from qlora_engine.data.sources.reading import BadRow, Reading, Row

SECTION_CHARS = 1_000_000
PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")


def read(stream: TextIO, reading: Reading) -> Iterator[Row | BadRow]:
    """One row for a document of up to a million characters, else one for each section."""
    held = ""
    while piece := stream.read(SECTION_CHARS):
        reading.check()
        held += piece
        while len(held) > SECTION_CHARS:
            end = _end(held)
            yield {"text": held[:end]}
            held = held[end:]
    if held.strip():
        yield {"text": held}


def _end(text: str) -> int:
    """Behind the last paragraph end of the second half of a section, else behind its last line or at its length."""
    ends = [match.end() for match in PARAGRAPH.finditer(text, SECTION_CHARS // 2, SECTION_CHARS)]
    if ends:
        return ends[-1]
    line = text.rfind("\n", SECTION_CHARS // 2, SECTION_CHARS)
    return line + 1 if line >= 0 else SECTION_CHARS
