"""The tabs of a run, one folder each: what a folder's `TAB` says is all that the window knows of it."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from app.tab import Tab


@cache
def all_tabs() -> tuple[Tab, ...]:
    """In the order in which they stand in the window."""
    names = [found.name for found in pkgutil.iter_modules(__path__)]
    tabs: list[Tab] = [importlib.import_module(f"{__name__}.{name}").TAB for name in names]
    return tuple(sorted(tabs, key=lambda tab: tab.place))
