"""Data: reading rows, finding their format, rendering, masking, splitting, packing, and telling what was found."""

from qlora_engine.data.pipeline import PreparedData, prepare

__all__ = ["PreparedData", "prepare"]
