"""In which scripts texts are written, by Unicode ranges alone: no download, no guess at the language. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

RANGES = (
    (0x0000, "other"), (0x0041, "Latin"), (0x005B, "other"), (0x0061, "Latin"), (0x007B, "other"), (0x00C0, "Latin"),
    (0x0250, "other"), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"), (0x0590, "Hebrew"),
    (0x0600, "Arabic"), (0x0700, "other"), (0x0750, "Arabic"), (0x0780, "other"), (0x08A0, "Arabic"),
    (0x0900, "Devanagari"), (0x0980, "Bengali"), (0x0A00, "other"), (0x0B80, "Tamil"), (0x0C00, "Telugu"),
    (0x0C80, "other"), (0x0E00, "Thai"), (0x0E80, "other"), (0x10A0, "Georgian"), (0x1100, "Hangul"),
    (0x1200, "Ethiopic"), (0x1380, "other"), (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, "other"),
    (0x3041, "Kana"), (0x3100, "other"), (0x3130, "Hangul"), (0x3190, "other"), (0x3400, "Han"), (0xA000, "other"),
    (0xAC00, "Hangul"), (0xD7B0, "other"), (0xF900, "Han"), (0xFB00, "other"), (0xFB50, "Arabic"), (0xFE00, "other"),
    (0xFF66, "Kana"), (0xFFA0, "other"), (0x20000, "Han"), (0x32000, "other"),
)  # fmt: skip
LETTER = re.compile("[A-Za-z]")
NAMES = tuple(dict.fromkeys(name for _, name in RANGES))


def dominant(texts: Sequence[str]) -> Any:
    """For each text the place in `NAMES` of the script that most of its letters have, 0 (other) without letters."""
    import numpy as np

    found = np.zeros(len(texts), np.uint8)
    others = [place for place, text in enumerate(texts) if not text.isascii()]
    latin = NAMES.index("Latin")
    for place, text in enumerate(texts):
        if text.isascii() and LETTER.search(text):
            found[place] = latin
    if others:
        found[others] = _counted([texts[place] for place in others])
    return found


def _counted(texts: Sequence[str]) -> Any:
    import numpy as np

    starts = np.array([start for start, _ in RANGES], np.uint32)
    codes = np.array([NAMES.index(name) for _, name in RANGES], np.int64)
    joined = "".join(texts)
    lengths = np.array([len(text) for text in texts], np.int64)
    letters = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    script = codes[np.searchsorted(starts, letters, side="right") - 1]
    rows = np.repeat(np.arange(len(texts)), lengths)
    counts = np.bincount(rows * len(NAMES) + script, minlength=len(texts) * len(NAMES))
    table = counts.reshape(len(texts), len(NAMES))
    table[:, 0] = 0
    return table.argmax(axis=1).astype(np.uint8)
