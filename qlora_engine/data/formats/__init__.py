"""Formats: how rows are read as conversations. One file a format; detection says what it found and why. Torch-free."""

from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.formats.detection import (
    FIELDS,
    FORMATS,
    OPTIONAL_FIELDS,
    SAMPLE_ROWS,
    detect,
    read_row,
    require_settled,
)
from qlora_engine.data.formats.kind import Detection, Question

__all__ = [
    "FIELDS",
    "FORMATS",
    "OPTIONAL_FIELDS",
    "SAMPLE_ROWS",
    "Detection",
    "Question",
    "RowProblem",
    "detect",
    "read_row",
    "require_settled",
]
