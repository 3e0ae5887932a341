"""Data: reading rows, finding their format, rendering, masking, splitting, packing, and telling what was found.

`prepare` is imported when it is asked for: the window asks at its start whether files are there, and nothing more.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_engine.data.pipeline import PreparedData, prepare

__all__ = ["PreparedData", "prepare"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qlora_engine.data import pipeline

    return getattr(pipeline, name)
