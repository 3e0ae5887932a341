"""What a text in a field means for an option, and how a value is written there: in the language of numbers. Without Qt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.presenters import numerals
from qlora_engine.knobs import Knob

SEED = "seed"
"""The option whose number is a name."""


def parsed(knob: Knob, text: str) -> Any:
    """What a typed text means for `knob`. A text that is no number stays a text, so that the range check names it."""
    stripped = text.strip()
    if not stripped and knob.is_optional:
        return None
    kinds = knob.accepted_types
    plain = numerals.plain(stripped)
    if int in kinds:
        try:
            return int(plain)
        except ValueError:
            return _number(plain, stripped) if float in kinds else stripped
    if float in kinds:
        return _number(plain, stripped)
    if any(getattr(kind, "__origin__", kind) is tuple for kind in kinds):
        parts = tuple(part.strip() for part in stripped.split(",") if part.strip())
        return stripped if str in kinds and len(parts) < 2 else parts
    if any(getattr(kind, "__origin__", kind) is dict for kind in kinds):
        pairs = (part.split("=", 1) for part in stripped.split(",") if "=" in part)
        return {name.strip(): column_name.strip() for name, column_name in pairs}
    return stripped


def _number(plain: str, typed: str) -> Any:
    try:
        return float(plain)
    except ValueError:
        return typed


def shown(value: Any) -> str:
    """How a value is written into a field."""
    if value is None:
        return ""
    if isinstance(value, float):
        return numerals.short(value)
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {column_name}" for name, column_name in value.items())
    return str(value)


def value_text(value: object, *, is_counted: bool = True) -> str:
    """A value where it is only read: whole numbers in groups, unless they are names as seeds are (`is_counted`)."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and is_counted:
        return numerals.count(value)
    return numerals.short(value) if isinstance(value, float) else str(value)
