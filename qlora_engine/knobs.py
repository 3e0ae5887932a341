"""One declaration per option: it feeds the form, the tooltip, the range check, the terminal's help and the reference.

A knob is a dataclass field made by `knob()`; `knobs_of(cls)` reads them back.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

RESUMES: dict[str, str | None] = {
    "safe": None,
    "length": "the learning rate of the steps left follows the new length",
    "base": "the adapter was learned on another base, which it may no longer fit",
    "adapter": "what was learned so far counts with another weight from here on",
    "shape": "",
    "rows": "the steps left see other rows or another order of them, and held-out losses before and after do not compare",
    "rate": "the steps left use the new learning rate, and the run is that of neither setting",
    "optimizer": "the optimizer begins anew, without what it knew of the gradients",
    "method": "the steps left are computed another way, and the run is that of neither setting",
    "scores": "held-out losses before and after do not compare",
}
"""What a knob may say of a resume. None: it may change. `length` may too, and is said. "": the checkpoint does not fit any
more. Any other text is the consequence that a person has to accept."""


@dataclass(frozen=True)
class Knob:
    """What a person is told of an option, and what values it takes.

    `lo` and `hi` are inclusive unless `lo_open`; `choices` maps each allowed value to its label.
    `is_expert` hides it behind "Show all options". `resume` is what a change of it means to a run that goes on from a
    checkpoint, one of `RESUMES`.
    """

    name: str
    type: Any
    default: Any
    label: str
    help: str
    unit: str = ""
    lo: float | None = None
    hi: float | None = None
    lo_open: bool = False
    choices: Mapping[str, str] | None = None
    is_expert: bool = False
    resume: str = ""

    @property
    def accepted_types(self) -> tuple[Any, ...]:
        """The types without None: `int | None` gives `(int,)`."""
        if isinstance(self.type, types.UnionType):
            return tuple(t for t in typing.get_args(self.type) if t is not types.NoneType)
        return (self.type,)

    @property
    def is_optional(self) -> bool:
        return isinstance(self.type, types.UnionType) and types.NoneType in typing.get_args(self.type)


def knob(
    default: Any = dataclasses.MISSING,
    *,
    label: str,
    help: str,  # noqa: A002 - the word everyone looks for
    unit: str = "",
    lo: float | None = None,
    hi: float | None = None,
    lo_open: bool = False,
    choices: Mapping[str, str] | None = None,
    is_expert: bool = False,
    resume: str = "",
    default_factory: Callable[[], Any] | None = None,
) -> Any:
    """A dataclass field that carries its own documentation and range."""
    details = {
        "label": label,
        "help": help,
        "unit": unit,
        "lo": lo,
        "hi": hi,
        "lo_open": lo_open,
        "choices": choices,
        "is_expert": is_expert,
        "resume": resume,
    }
    if default_factory is not None:
        return dataclasses.field(default_factory=default_factory, metadata={"knob": details})
    return dataclasses.field(default=default, metadata={"knob": details})


def knobs_of(cls: type) -> dict[str, Knob]:
    """The knobs of a dataclass, in the order they were declared."""
    return dict(_knobs_of(cls))


@cache
def _knobs_of(cls: type) -> dict[str, Knob]:
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        details = field.metadata.get("knob")
        if details is None:
            continue
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found[field.name] = Knob(name=field.name, type=hints[field.name], default=default, **details)
    return found


def problem_with(knob: Knob, value: Any) -> str | None:
    """Why `value` cannot be used for `knob`, as a sentence without its name; None when it can."""
    if value is None:
        return None if knob.is_optional else "needs a value"
    if not _has_type(knob, value):
        return f"must be {_type_words(knob)}, not {_shown(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {value}"
    if knob.choices is not None and isinstance(value, str) and value not in knob.choices:
        from qlora_engine.errors import did_you_mean

        return f"must be one of the known values, not {_shown(value)}; {did_you_mean(value, knob.choices)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return _range_problem(knob, value)


def _range_problem(knob: Knob, value: float) -> str | None:
    unit = f" {knob.unit}" if knob.unit else ""
    if knob.lo is not None and (value < knob.lo or (knob.lo_open and value == knob.lo)):
        words = "more than" if knob.lo_open else "at least"
        return f"must be {words} {knob.lo:g}{unit}, not {value:g}"
    if knob.hi is not None and value > knob.hi:
        return f"must be at most {knob.hi:g}{unit}, not {value:g}"
    return None


def _has_type(knob: Knob, value: Any) -> bool:
    for accepted in knob.accepted_types:
        origin = typing.get_origin(accepted) or accepted
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return True
        if origin is int and isinstance(value, int) and not isinstance(value, bool):
            return True
        if origin is tuple and isinstance(value, tuple) and all(isinstance(v, str) for v in value):
            return True
        if origin in (str, bool, dict) and isinstance(value, origin):
            return True
    return False


_TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    tuple: "a list of texts",
    dict: "a table",
}


def _type_words(knob: Knob) -> str:
    return " or ".join(_TYPE_WORDS[typing.get_origin(t) or t] for t in knob.accepted_types)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)
