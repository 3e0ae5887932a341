"""An experiment before it begins, and what it came to: values as typed, memory and time of every cell, margins. Without Qt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.presenters import numerals
from app.presenters.memory_words import Capacity, verdict_text
from app.presenters.typed import parsed, value_text
from app.presenters.words import UNKNOWN, capital, duration_text, number_text, of_text, plural
from qlora_engine.config import TrainingConfig, get_value
from qlora_engine.errors import EngineError
from qlora_engine.knobs import Knob, problem_with
from qlora_engine.runs import sweep
from qlora_engine.runs.index import RunEntry
from qlora_engine.runs.sweep import LookedAt, Planned, Preview, Result, Sweep

USUAL = "lora.rank"
USUAL_SEEDS = 3
TYPE_MORE = "Type two or more values."
NO_TIME = "its time is not known until a run of this model has steps"
WORDS_OF_NOTHING = ("none", "automatic")


@dataclass(frozen=True)
class Wish:
    """What the dialog says: of each setting its path and its values, typed or chosen."""

    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    seeds: int = USUAL_SEEDS


@dataclass(frozen=True)
class ExperimentState:
    """`rows` have as many cells as there are `heads`. `problem`: why it cannot begin."""

    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    total: str = ""
    problem: str = ""
    hint: str = ""
    queue_text: str = "Put into the queue"

    @property
    def can_begin(self) -> bool:
        return bool(self.rows) and not self.problem


def settings() -> list[tuple[str, str]]:
    """(path, words) of what can be varied, what is asked for often first."""
    knobs = {
        path: knob for path, knob in sweep.settings().items() if dict not in map(_kind, knob.accepted_types)
    }
    ordered = sorted(knobs, key=lambda path: (path != USUAL, knobs[path].is_expert))
    return [(path, f"{knobs[path].label} \u00b7 {path.split('.')[0]}") for path in ordered]


def choices_of(knob: Knob) -> tuple[tuple[Any, str], ...]:
    """(value, words) where an option has a few; empty where its values are typed."""
    if bool in knob.accepted_types:
        return (True, "on"), (False, "off")
    return tuple((knob.choices or {}).items())


def typed_values(knob: Knob, text: str) -> tuple[Any, ...]:
    """What a typed list means: with commas between, with semicolons where a value has commas itself, a decimal comma say.

    Raises:
        EngineError: a value that the option cannot have.
    """
    mark = ";" if ";" in text or _has_lists(knob) else r",\s" if _has_commas(knob) else ","
    parts = [part.strip(", ") for part in re.split(mark, text)]
    return tuple(_value(knob, part) for part in parts if part)


def separator(knob: Knob) -> str:
    return "semicolons" if _has_lists(knob) or _has_commas(knob) else "commas"


def _has_lists(knob: Knob) -> bool:
    return tuple in map(_kind, knob.accepted_types)


def _has_commas(knob: Knob) -> bool:
    """Its numbers have one where English has a point; `0,1, 0,2` can be read all the same."""
    return float in map(_kind, knob.accepted_types) and numerals.style().decimal == ","


def asked(config: TrainingConfig, wish: Wish) -> Sweep:
    """The experiment, named by what it varies.

    Raises:
        EngineError: values or numbers that cannot be.
    """
    knobs = sweep.settings()
    if len({path for path, _ in wish.axes}) < len(wish.axes):
        raise EngineError("sweep.invalid", "both settings are the same", "choose another one, or none")
    vary = {path: _plain(knobs[path], values) for path, values in wish.axes}
    name = " and ".join(knobs[path].label.lower() for path in vary)
    return sweep.make(config, vary, seeds=wish.seeds, name=name)


def state_of(wanted: Sweep, cells: Sequence[Preview], capacity: Capacity | None) -> ExperimentState:
    """`capacity`: the memory it has to fit into, as far as that is known."""
    count, seeds = len(wanted.cells) * len(wanted.seeds), plural(len(wanted.seeds), "seed")
    known = [cell.seconds for cell in cells if cell.seconds is not None]
    time = f"altogether {duration_text(sum(known))}" if len(known) == len(cells) else NO_TIME
    return ExperimentState(
        heads=(*map(_label, wanted.settings), "Memory", f"Time for {seeds}"),
        rows=tuple(
            (*_words(wanted.settings, c.values), _memory(c, capacity), duration_text(c.seconds))
            for c in cells
        ),
        total=f"{plural(len(cells), 'cell')} under {seeds} each: {plural(count, 'run')}, {time}.",
        queue_text=f"Put {plural(count, 'run')} into the queue",
    )


def refused(error: EngineError) -> ExperimentState:
    if error.code == sweep.SINGLE:
        return ExperimentState(total=TYPE_MORE)
    return ExperimentState(problem=f"{capital(error.message)}.", hint=capital(error.hint))


def preview(config: TrainingConfig, wish: Wish, entries: Sequence[RunEntry], device: str, data: LookedAt) -> tuple[Sweep, list[Preview]]:  # fmt: skip
    """For a pool thread: the experiment with what each cell needs.

    Raises:
        EngineError: as `asked`.
    """
    wanted = asked(config, wish)
    return wanted, sweep.preview(wanted, entries, device, data)


def runs_to_compare(planned: Planned, most: int) -> list[str]:
    """Its runs, or where they are more than `most`, those of the first seed of each cell."""
    whole = [str(path.resolve()) for row in planned.runs for path in row]
    return whole if len(whole) <= most else [str(row[0].resolve()) for row in planned.runs]


def result_heads(planned: Planned) -> tuple[str, ...]:
    return (*map(_label, planned.settings), "Runs", "Held-out loss, mean", "Against the first")


def result_rows(planned: Planned, found: Sequence[Result]) -> list[tuple[str, ...]]:
    """Each cell as it stands, with the margin to the first against the noise of the seeds."""
    return [
        (
            *_words(planned.settings, cell.values),
            f"{of_text(sum(state == 'finished' for state in cell.states), len(cell.states))} finished",
            number_text(cell.mean_loss),
            "Compared with"
            if cell.margin is None
            else capital(cell.margin.told(lambda amount: numerals.decimal(amount, 4))),
        )
        for cell in found
    ]


def _words(paths: Sequence[str], values: Sequence[Any]) -> tuple[str, ...]:
    """A choice as the settings name it, anything else as it is written."""
    named = (dict(choices_of(sweep.settings()[path])) for path in paths)
    return tuple(
        names.get(value, _word(value)) if names else _word(value)
        for names, value in zip(named, values, strict=True)
    )


def _word(value: Any) -> str:
    """A value of a cell."""
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return "none" if value is None else value_text(value)


def _label(path: str) -> str:
    return sweep.settings()[path].label


def _memory(cell: Preview, capacity: Capacity | None) -> str:
    if cell.device_bytes is None:
        return f"{UNKNOWN}: {cell.problem}" if cell.problem else UNKNOWN
    return capital(verdict_text(cell.device_bytes, capacity))


def _value(knob: Knob, text: str) -> Any:
    value = None if knob.is_optional and text.lower() in WORDS_OF_NOTHING else parsed(knob, text)
    problem = problem_with(knob, value)
    if problem is not None:
        raise EngineError("sweep.invalid", f"{knob.label} {problem}", "correct the list")
    return value


def _plain(knob: Knob, values: Sequence[Any]) -> list[Any]:
    """As an experiment file would have them."""
    found = values if choices_of(knob) else typed_values(knob, str(values[0]) if values else "")
    return [list(value) if isinstance(value, tuple) else value for value in found]


def _kind(accepted: Any) -> Any:
    return getattr(accepted, "__origin__", accepted)


def own_value(config: TrainingConfig, path: str) -> Any:
    """What the draft has."""
    return get_value(config, path)
