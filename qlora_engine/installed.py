"""Versions of the installed libraries, each looked up once. Torch-free."""

from __future__ import annotations

import importlib.metadata
from functools import cache


@cache
def version(name: str) -> str:
    """The installed version; reading it anew takes a millisecond of parsing.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
    """
    return importlib.metadata.version(name)
