"""What a text in a field means for an option, and how a value is written there. Without Qt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_engine.knobs import Knob


def parsed(knob: Knob, text: str) -> Any:
    """What a typed text means for `knob`. A text that is no number stays a text, so that the range check names it."""
    stripped = text.strip()
    if not stripped and knob.is_optional:
        return None
    kinds = knob.accepted_types
    plain = stripped.replace(",", "").replace("\u2009", "") if "," not in stripped[-3:] else stripped
    if int in kinds:
        try:
            return int(plain)
        except ValueError:
            return _number(plain) if float in kinds else stripped
    if float in kinds:
        return _number(plain)
    if any(getattr(kind, "__origin__", kind) is tuple for kind in kinds):
        parts = tuple(part.strip() for part in stripped.split(",") if part.strip())
        return stripped if str in kinds and len(parts) < 2 else parts
    if any(getattr(kind, "__origin__", kind) is dict for kind in kinds):
        pairs = (part.split("=", 1) for part in stripped.split(",") if "=" in part)
        return {name.strip(): column_name.strip() for name, column_name in pairs}
    return stripped


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def shown(value: Any) -> str:
    """How a value is written into a field."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {column_name}" for name, column_name in value.items())
    return str(value)
