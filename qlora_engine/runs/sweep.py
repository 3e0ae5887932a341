"""An experiment: one or two settings over lists, each cell under the same seeds, as planned runs that end in a comparison.

Torch-free. Its plan is kept in `QLORA_HOME/sweeps/ID.json`; the runs are runs like any other, tagged with its name.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_engine import config_io, parsing, paths
from qlora_engine.config import TrainingConfig, all_knobs, get_value, tables
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.knobs import Knob
from qlora_engine.runs import naming, notes, plans, sealed
from qlora_engine.runs.index import RunEntry
from qlora_engine.runs.margin import Margin, margin
from qlora_engine.runs.pace import Paces, has_same_rows
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import RunSummary, summary_of

MOST_SETTINGS, MOST_RUNS, MOST_SEEDS = 2, 200, 20
ASSUMED_LENGTH = 512
"""Tokens a row, for the preview alone, where the job leaves the length to the data."""
SEED = "training.seed"
KEYS = ("name", "job", "seeds", "vary")

SINGLE = "sweep.single"
"""The code of an experiment of a single cell."""


@dataclass(frozen=True)
class Cell:
    """One combination of the values, in the order of the settings, with a job a seed."""

    values: tuple[Any, ...]
    configs: tuple[TrainingConfig, ...]


@dataclass(frozen=True)
class Sweep:
    """`settings`: the dotted paths that vary. The first cell is what the others are compared with."""

    name: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class LookedAt:
    """What a look at the data of `config` and at the device has found: the length of the rows where the job leaves it to the
    data, rows and tokens to train on, and what the GPU has free. None: not looked at."""

    config: TrainingConfig | None = None
    seq_len: int | None = None
    rows: int | None = None
    tokens: int | None = None
    usable_bytes: int | None = None


@dataclass(frozen=True)
class Preview:
    """What a cell will need. `peak_bytes` of tensors, `device_bytes` of the device with its context, and `seconds` of all its
    seeds; None with the reason in `problem`, or where nothing comparable has run."""

    values: tuple[Any, ...]
    peak_bytes: int | None
    seconds: float | None
    problem: str = ""
    device_bytes: int | None = None


@dataclass(frozen=True)
class Planned:
    """A sweep whose runs have their folders: `runs[cell][seed]`."""

    sweep_id: str
    name: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    values: tuple[tuple[Any, ...], ...]
    runs: tuple[tuple[Path, ...], ...]


@dataclass(frozen=True)
class Result:
    """What a cell came to: held-out loss of each seed (None: not yet, or none), their mean, and the margin to the first
    cell; `states` of its runs."""

    values: tuple[Any, ...]
    losses: tuple[float | None, ...]
    mean_loss: float | None
    margin: Margin | None
    states: tuple[str, ...]


def load(file: Path) -> Sweep:
    """An experiment file: `name`, `seeds`, `job` (a job file beside it, or the tables of a job in this file) and `[vary]`.

    Raises:
        EngineError: it cannot be read, or says what cannot be.
    """
    try:
        plain = parsing.from_toml(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EngineError("sweep.missing", f"there is no experiment file {file}", "check the path") from error
    except (OSError, ValueError) as error:
        raise EngineError("sweep.unreadable", f"{file} cannot be read: {error}", "correct it") from error
    known = (*KEYS, "schema_version", *tables())
    for key in plain:
        if key not in known:
            raise _wrong(f"{key!r} is not part of an experiment", did_you_mean(key, known))
    base = _base(file, plain)
    return make(base, plain.get("vary"), seeds=plain.get("seeds", 1), name=plain.get("name", file.stem))


def make(base: TrainingConfig, vary: Any, *, seeds: Any = 1, name: Any = "experiment") -> Sweep:
    """The grid of `vary` (dotted path -> list of values) over `base`, each cell under `seeds` seeds from the job's own on.

    Raises:
        EngineError: a setting or value that cannot be, no or too many settings, or too many runs.
    """
    if not isinstance(vary, Mapping) or not 1 <= len(vary) <= MOST_SETTINGS:
        raise _wrong(
            "an experiment varies one or two settings", 'write them as [vary] with "lora.rank" = [8, 16]'
        )
    if not isinstance(seeds, int) or isinstance(seeds, bool) or not 1 <= seeds <= MOST_SEEDS:
        raise _wrong(
            f"seeds must be a number from 1 to {MOST_SEEDS}, not {seeds!r}", "three tell noise from gain"
        )
    for path, values in vary.items():
        _require_setting(path, values)
    numbers = tuple(base.training.seed + n for n in range(seeds))
    grid = list(itertools.product(*vary.values()))
    if len(grid) < 2:
        raise EngineError(SINGLE, "one value of each setting leaves nothing to compare", "write two or more")
    if len(grid) * seeds > MOST_RUNS:
        raise _wrong(
            f"{len(grid)} cells, each {seeds} times, are {len(grid) * seeds} runs; at most {MOST_RUNS} are carried out",
            "shorten a list, or take fewer seeds",
        )
    cells = tuple(_cell(base, tuple(vary), values, numbers) for values in grid)
    return Sweep(str(name), tuple(vary), numbers, cells)


def preview(
    sweep: Sweep, entries: Sequence[RunEntry], device: str, data: LookedAt | None = None
) -> list[Preview]:
    """Memory and time of every cell on `cuda` or `cpu`, nothing loaded."""
    paces = Paces(entries)
    return [_previewed(cell, paces, device, data or LookedAt()) for cell in sweep.cells]


def plan(sweep: Sweep) -> Planned:
    """Make its runs, planned and tagged, and write down which is which.

    Raises:
        EngineError: the runs folder cannot be written.
    """
    sweep_id = f"{naming.slug(sweep.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    place = _folder()
    place.mkdir(parents=True, exist_ok=True)
    runs = tuple(
        tuple(_planned_run(sweep, sweep_id, c, s) for s in range(len(sweep.seeds)))
        for c in range(len(sweep.cells))
    )
    values = tuple(cell.values for cell in sweep.cells)
    planned = Planned(sweep_id, sweep.name, sweep.settings, sweep.seeds, values, runs)
    content = {**asdict(planned), "runs": [[str(path) for path in row] for row in runs]}
    sealed.write_aside(place / f"{sweep_id}.json", sealed.sealed(content, indent=1))
    return planned


def find(sweep_id: str) -> Planned:
    """An experiment that was planned.

    Raises:
        EngineError: there is none, or its file is damaged.
    """
    try:
        plain = sealed.read(_folder() / f"{sweep_id}.json")
        runs = tuple(tuple(Path(path) for path in row) for row in plain["runs"])
        values = tuple(tuple(row) for row in plain["values"])
        return Planned(
            plain["sweep_id"], plain["name"], tuple(plain["settings"]), tuple(plain["seeds"]), values, runs
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            "sweep.unknown", f"there is no experiment {sweep_id!r}", did_you_mean(sweep_id, all_ids())
        ) from error


def all_ids() -> list[str]:
    """The experiments that were planned, by name."""
    return sorted(path.stem for path in _folder().glob("*.json"))


def among(runs: Sequence[Path]) -> list[Planned]:
    """The experiments of which any of these runs is one, the newest last. Damaged ones are left out."""
    wanted = {path.resolve() for path in runs}
    return [one for one in _all() if any(path.resolve() in wanted for row in one.runs for path in row)]


def _all() -> tuple[Planned, ...]:
    try:
        return _read_all(_folder(), _folder().stat().st_mtime_ns)
    except OSError:
        return ()


@functools.lru_cache(2)
def _read_all(folder: Path, changed_ns: int) -> tuple[Planned, ...]:
    """An experiment is written once, which changes its folder."""
    found = []
    for sweep_id in all_ids():
        with contextlib.suppress(EngineError):
            found.append(find(sweep_id))
    return tuple(found)


def results(planned: Planned) -> list[Result]:
    """Every cell as it stands, each compared with the first under the same seeds."""
    summaries = [[_summary(path) for path in row] for row in planned.runs]
    losses = [tuple(_score(summary) for summary in row) for row in summaries]
    found = []
    for place, (values, row) in enumerate(zip(planned.values, losses, strict=True)):
        known = [loss for loss in row if loss is not None]
        mean = sum(known) / len(known) if known else None
        states = tuple(summary.state if summary else "gone" for summary in summaries[place])
        found.append(Result(values, row, mean, margin(losses[0], row) if place else None, states))
    return found


def _base(file: Path, plain: Mapping[str, Any]) -> TrainingConfig:
    given = plain.get("job")
    if given is None:
        own = {key: value for key, value in plain.items() if key in ("schema_version", *tables())}
        return config_io.from_dict(own, str(file))
    if not isinstance(given, str):
        raise _wrong("job must be the name of a job file", "or leave it out and write the job's tables here")
    return config_io.load(file.parent / Path(given).expanduser())


def settings() -> dict[str, Knob]:
    """What can be varied, by dotted path."""
    return {
        path: knob for path, knob in all_knobs().items() if not path.startswith("output.") and path != SEED
    }


def _require_setting(path: str, values: Any) -> None:
    knobs = list(settings())
    if path == SEED:
        raise _wrong("the seed is not varied as a setting", "say how many with seeds = 3")
    if path not in knobs:
        raise _wrong(f"there is no setting {path!r} to vary", did_you_mean(path, knobs))
    if not isinstance(values, list) or not values or any(values.count(value) > 1 for value in values):
        raise _wrong(f"{path} needs a list of different values, not {values!r}", f'"{path}" = [...]')


def _cell(
    base: TrainingConfig, settings: tuple[str, ...], values: tuple[Any, ...], seeds: tuple[int, ...]
) -> Cell:
    configs = []
    for seed in seeds:
        plain = config_io.to_dict(base)
        for path, value in (*zip(settings, values, strict=True), (SEED, seed)):
            table, name = path.split(".", 1)
            plain[table][name] = value
        where = ", ".join(f"{path} = {value}" for path, value in zip(settings, values, strict=True))
        configs.append(config_io.from_dict(plain, f"the cell {where}"))
    return Cell(tuple(get_value(configs[0], path) for path in settings), tuple(configs))


def _previewed(cell: Cell, paces: Paces, device: str, data: LookedAt) -> Preview:
    from qlora_engine.memory import estimate
    from qlora_engine.models import catalog

    config = cell.configs[0]
    is_known = data.config is not None and has_same_rows(config, data.config)
    one = paces.seconds_of(config, *((data.rows, data.tokens) if is_known else ()))
    seconds = None if one is None else one * len(cell.configs)
    try:
        facts = catalog.facts_for(config.model)
        seq_len = config.data.seq_len or data.seq_len or ASSUMED_LENGTH
        usable = data.usable_bytes if device == "cuda" else None
        rows = estimate.rows_at_once(facts, config, seq_len=seq_len, device=device, usable_bytes=usable)
        found = estimate.estimate(
            facts, config, seq_len=seq_len, micro_batch=rows, device=device, wants_advice=False
        )
    except EngineError as error:
        return Preview(cell.values, None, seconds, error.message)
    chosen = found.chosen(config.quantization.double_quant)
    return Preview(cell.values, chosen.peak_bytes, seconds, device_bytes=chosen.device_likely)


def _planned_run(sweep: Sweep, sweep_id: str, cell: int, seed: int) -> Path:
    config = config_io.with_overrides(
        sweep.cells[cell].configs[seed], [f"output.name={sweep_id}-{cell + 1}-{seed + 1}"]
    )
    folder = plans.create(config)
    told = zip(sweep.settings, sweep.cells[cell].values, strict=True)
    words = ", ".join(f"{path.split('.', 1)[1]} {_word(value)}" for path, value in told)
    name = f"{words}, seed {sweep.seeds[seed]}"[: notes.LONGEST_NAME]
    notes.write(folder.path, notes.Notes(name, "", (f"{sweep.name}"[: notes.LONGEST_TAG],)))
    return folder.path


def _summary(path: Path) -> RunSummary | None:
    try:
        return summary_of(RunFolder.open(path))
    except EngineError:
        return None


def _score(summary: RunSummary | None) -> float | None:
    """The held-out loss of the adapter that a finished run kept."""
    return summary.loss_after if summary is not None and summary.state == "finished" else None


def words_of(values: Iterator[Any] | Sequence[Any]) -> tuple[str, ...]:
    """A cell's values as they are shown."""
    return tuple(_word(value) for value in values)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _folder() -> Path:
    return paths.home() / "sweeps"


def _wrong(message: str, hint: str) -> EngineError:
    return EngineError("sweep.invalid", message, hint)
