"""Whether a run stays as fast as it begins: by rows in a step, rows of data, and steps done; and what its start takes.

`make bench-scaling`, or `python -m tests.bench.scaling_table [json file] [largest number of rows] [steps]`. Counted in seconds of this
process's processor time, and runs that are compared take their steps in turn, so that other programs disturb little; the start
alone by the clock, in a process of its own, the second time it is made.
Exit code 1 when time per token leaves its band, memory grows, or the start takes too long.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from qlora_engine import config_io
from qlora_engine.client import ProcessEngine
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.control import Control
from qlora_engine.events import RunFailed, RunStarted, StepFinished
from qlora_engine.jobs import TrainJob
from qlora_engine.runs.record import RunFolder
from qlora_engine.spare import Spare
from qlora_engine.training import recipe
from tests.bench import speed_contestants as contestants
from tests.support.starter import starter_folder
from tests.support.tiny import make_tiny

ROWS_IN_A_STEP = (1, 2, 4, 8, 16, 32, 64)
TOKENS_COUNTED = 1_200
ROW_TOKENS = 224
"""At least so many for each number of rows: small steps are repeated."""
DATA_ROWS = (500, 5_000, 50_000, 500_000)
STEPS_ON_DATA = 200
STEPS = 5_000
FLAT = 0.05
GROWTH_BYTES_A_STEP = 1024
START_SECONDS = 8.0
IMPORT_SECONDS = 15
"""What an engine that waits has at least had for its imports."""


@dataclass(frozen=True)
class Point:
    """A step, when it had ended: processor seconds since the step before, tokens, and this process's memory."""

    seconds: float
    tokens: int
    resident_bytes: int


def main(arguments: Sequence[str]) -> int:
    largest = int(arguments[1]) if len(arguments) > 1 else DATA_ROWS[-1]
    steps = int(arguments[2]) if len(arguments) > 2 else STEPS
    with tempfile.TemporaryDirectory(prefix="qlora-scaling-") as place, _home(Path(place)):
        found = {
            "rows_in_a_step": list(by_rows_in_a_step(Path(place))),
            "rows_of_data": list(by_rows_of_data(Path(place), largest)),
            "steps": by_steps(Path(place), steps),
            "start": start(Path(place)),
        }
    found["holds"] = verdicts(found)
    print(table(found))
    print(json.dumps(found, indent=1))
    if arguments:
        Path(arguments[0]).write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0 if all(found["holds"].values()) else 1


class _home:  # noqa: N801 - used like a function
    """The program's own data in a folder that goes again."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __enter__(self) -> None:
        os.environ["QLORA_HOME"] = str(self._place / "home")

    def __exit__(self, *_: object) -> None:
        del os.environ["QLORA_HOME"]


def config_of(place: Path, model: Path, file: Path, **changes: Any) -> TrainingConfig:
    config = contestants.config_for(model, file, packing=False)
    values = {"output.runs_dir": str(place / "runs"), "data.seq_len": 256, "checkpoint.every_minutes": 1440.0}
    for path, value in {**values, **changes}.items():
        config = with_value(config, path.replace("__", ".", 1), value)
    return config


def rows_file(place: Path, count: int) -> Path:
    """JSON lines: rows made for 500, again and again with a number of their own."""
    made = contestants.make_rows(min(count, 500))
    file = place / f"rows-{count}.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            row = made[number % len(made)]
            out.write(json.dumps({**row, "instruction": f"{row['instruction']} ({number})"}) + "\n")
    return file


def steps_of(config: TrainingConfig) -> Iterator[Point]:
    """Every step but the first."""
    process, before = psutil.Process(), None
    for event in recipe.train(TrainJob(config_io.to_dict(config)), Control()):
        if isinstance(event, StepFinished):
            now = time.process_time()
            if before is not None:
                yield Point(now - before, event.tokens, process.memory_info().rss)
            before = time.process_time()


def per_token(points: Sequence[Point]) -> float:
    """Processor microseconds per token."""
    return 1e6 * sum(p.seconds for p in points) / sum(p.tokens for p in points)


def by_rows_in_a_step(place: Path) -> Iterator[dict[str, Any]]:
    """The starter, rows that nearly fill the length, one micro-batch after the other."""
    file = place / "alike.jsonl"
    row = {"instruction": "Say it", "input": "", "output": " ".join(contestants.WORDS * 5)}
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(64)), encoding="utf-8")
    for rows in ROWS_IN_A_STEP:
        count = 2 + TOKENS_COUNTED // (rows * ROW_TOKENS)
        config = config_of(
            place, starter_folder(), file, training__effective_batch=rows, training__micro_batch=None,
            training__max_steps=count,
        )  # fmt: skip
        yield {"rows": rows, "microseconds_per_token": round(per_token(list(steps_of(config))), 1)}


def by_rows_of_data(place: Path, largest: int) -> Iterator[dict[str, Any]]:
    """A run on each, one step of each in turn: what slows the machine for a while slows all of them."""
    model = make_tiny("llama", place / "small", num_hidden_layers=2)
    counts = [count for count in DATA_ROWS if count <= largest]
    runs = [
        steps_of(config_of(place, model, rows_file(place, rows), training__max_steps=STEPS_ON_DATA))
        for rows in counts
    ]
    for rows, points in zip(counts, zip(*zip(*runs, strict=True), strict=True), strict=True):
        yield {"rows": rows, "microseconds_per_token": round(typical(points), 1)}


def by_steps(place: Path, steps: int) -> dict[str, Any]:
    """Over a long run: its memory, and by tenths its time per token as a share of that of a run which has just begun, one step
    of each in turn."""
    model = make_tiny("llama", place / "smallest", num_hidden_layers=1)
    settings: dict[str, Any] = {"training__effective_batch": 4, "training__micro_batch": 4}
    file, size = rows_file(place, 500), (steps - 1) // 10
    long = config_of(place, model, file, training__max_steps=steps, **settings)
    sizes = [point.resident_bytes for point in steps_of(long)]
    settled = sizes[len(sizes) // 4 :]
    young = config_of(place, model, file, training__max_steps=size + 1, **settings)
    return {
        "steps": steps,
        "share_of_a_young_run": [round(one, 3) for one in shares(steps_of(long), young, size)],
        "bytes_a_step": round(statistics.linear_regression(range(len(settled)), settled).slope, 1),
    }


def shares(long: Iterator[Point], young: TrainingConfig, size: int) -> Iterator[float]:
    """Of each tenth, `size` steps, of `long` beside another run of `young`."""
    for _ in range(10):
        beside = steps_of(young)
        old, new = zip(*zip(itertools.islice(long, size), beside, strict=False), strict=True)
        for _ in beside:  # to its end, which takes no more steps
            pass
        yield typical(old) / typical(new)


def typical(points: Sequence[Point]) -> float:
    """Processor microseconds per token, of the step in the middle."""
    return 1e6 * statistics.median(point.seconds / point.tokens for point in points)


def start(place: Path) -> dict[str, Any]:
    """Seconds by the clock from asking for an engine to the end of the starter's first step, the second time, when model, data
    and files are where they are looked for, and what they went into: as the window starts it, where an engine waits, and as
    the terminal does."""
    config = config_of(
        place, starter_folder(), rows_file(place, 400), training__max_steps=1, training__effective_batch=4,
        training__micro_batch=4,
    )  # fmt: skip
    job = TrainJob(config_io.to_dict(config))
    _one_start(job, ProcessEngine())
    terminal, spare = _one_start(job, ProcessEngine()), Spare()
    spare.prepare()
    time.sleep(IMPORT_SECONDS)
    return {**_one_start(job, ProcessEngine(spare)), "terminal": terminal}


def _one_start(job: TrainJob, engine: ProcessEngine) -> dict[str, Any]:
    began, seconds, folder = time.perf_counter(), 0.0, Path()
    for event in engine.run(job):
        if isinstance(event, RunStarted):
            folder = Path(event.run_dir)
        if isinstance(event, StepFinished):
            seconds, step_seconds = time.perf_counter() - began, event.step_seconds
        if isinstance(event, RunFailed):
            raise RuntimeError(event.message)
    parts = {**RunFolder(folder).record()["start_seconds"], "the first step": step_seconds}
    parts["starting a process, and between"] = seconds - sum(parts.values())
    return {"seconds": round(seconds, 2), "parts": {name: round(value, 2) for name, value in parts.items()}}


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    return {
        "rows in a step": spread([one["microseconds_per_token"] for one in found["rows_in_a_step"]]) <= FLAT,
        "rows of data": spread([one["microseconds_per_token"] for one in found["rows_of_data"]]) <= FLAT,
        "steps": max(abs(share - 1) for share in found["steps"]["share_of_a_young_run"]) <= FLAT,
        "memory": found["steps"]["bytes_a_step"] <= GROWTH_BYTES_A_STEP,
        "start": found["start"]["seconds"] <= START_SECONDS,
    }


def spread(values: Sequence[float]) -> float:
    """The furthest from the median, as a share of it."""
    middle = statistics.median(values)
    return max(abs(value - middle) for value in values) / middle


def table(found: dict[str, Any]) -> str:
    lines = [f"processor time per token, {torch.get_num_threads()} threads"]
    for title in ("rows_in_a_step", "rows_of_data"):
        values = ", ".join(f"{one['rows']:,}: {one['microseconds_per_token']:.0f} us" for one in found[title])
        lines.append(f"{title.replace('_', ' ')}: {values}")
    one = found["steps"]
    lines.append(
        f"over {one['steps']:,} steps, by tenths, of a young run's time: {', '.join(f'{v:.2f}' for v in one['share_of_a_young_run'])}; "
        f"memory grows by {one['bytes_a_step']:.0f} bytes a step"
    )
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found["start"]["parts"].items())
    lines.append(
        f"start to the end of the first step: {found['start']['seconds']:.2f} s ({parts}); in the terminal, where no engine waits, "
        f"{found['start']['terminal']['seconds']:.2f} s"
    )
    lines += [f"{name}: {'holds' if holds else 'MISSED'}" for name, holds in found["holds"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
