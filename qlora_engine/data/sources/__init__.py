"""Where rows come from: files, folders, packed ones, tables in any encoding, the hub, and mixes of these."""

from qlora_engine.data.sources.reading import BadRow, Row, UnreadableRow
from qlora_engine.data.sources.store import (
    STARTER,
    Block,
    RowStore,
    is_local,
    missing,
    open_held_out,
    open_store,
)

__all__ = [
    "STARTER",
    "BadRow",
    "Block",
    "Row",
    "RowStore",
    "UnreadableRow",
    "is_local",
    "missing",
    "open_held_out",
    "open_store",
]
