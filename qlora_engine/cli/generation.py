"""How answers are drawn, as options of the commands that ask a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = (
    click.option(
        "--max-tokens", type=click.IntRange(1, 32_768), default=256, show_default=True, help="Longest answer."
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(0, 5),
        default=0.0,
        show_default=True,
        help="0 always takes the likeliest token; higher is freer.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.95,
        show_default=True,
        help="Draw from the likeliest tokens that together have this chance.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(0, 1_000_000),
        default=50,
        show_default=True,
        help="Draw from this many likeliest tokens; 0: from all.",
    ),
    click.option(
        "--repetition-penalty",
        type=click.FloatRange(0.01, 100),
        default=1.0,
        show_default=True,
        help="Above 1 what was said already is less likely.",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draws; the same on every side."
    ),
)  # fmt: skip


def options(command: F) -> F:
    """Adds the options, in the order above."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def settings(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of evaluate.generate.GenerationSettings from the options' values."""
    temperature = float(chosen["temperature"])
    found: dict[str, Any] = {
        "max_new_tokens": chosen["max_tokens"],
        "do_sample": temperature > 0,
        "repetition_penalty": chosen["repetition_penalty"],
        "seed": chosen["seed"],
    }
    if temperature > 0:
        found |= {"temperature": temperature, "top_p": chosen["top_p"], "top_k": chosen["top_k"]}
    return found
