"""A call of a tool in words. Light: the window shows them too."""

from __future__ import annotations

import json  # writing alone
from collections.abc import Mapping
from typing import Any


def called(call: Mapping[str, Any]) -> str:
    """A call as it would stand in a program."""
    arguments = call["arguments"]
    pairs = arguments.items() if isinstance(arguments, Mapping) else [("arguments", arguments)]
    return f"{call['name']}({', '.join(f'{k}={json.dumps(v, ensure_ascii=False)}' for k, v in pairs)})"
