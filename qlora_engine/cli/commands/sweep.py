"""`qlora sweep`: an experiment from its preview to the comparison of its cells."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.cli.commands.queue import Stoppable
from qlora_engine.counting import counted

if TYPE_CHECKING:
    from qlora_engine.runs.sweep import Planned, Sweep

NO_TIME = "their time is not known until a run of this model has steps"


@click.command()
@click.argument("file", metavar="FILE_OR_ID")
@click.option("--preview", is_flag=True, help="Show what each cell needs, and plan nothing.")
@click.option("--queue", "only_queue", is_flag=True, help="Line the runs up, and do not wait for them.")
@output.json_option
def sweep(file: str, preview: bool, only_queue: bool, as_json: bool) -> None:
    """Carry out an experiment file, or show how an earlier experiment stands.

    One or two settings over lists, every cell under the same seeds. It ends in a comparison with the first cell against the
    noise of the seeds.
    """
    from qlora_engine.runs import queue as engine
    from qlora_engine.runs import sweep as sweeps
    from qlora_engine.runs.record import RunFolder

    if not Path(file).suffix and not Path(file).is_file():
        _print_results(sweeps.find(file), as_json)
        return
    wanted = sweeps.load(Path(file))
    _print_preview(wanted, is_document=as_json and preview, is_quiet=as_json)
    if preview:
        return
    planned = sweeps.plan(wanted)
    for run in (path for row in planned.runs for path in row):
        engine.add(RunFolder(run))
    if only_queue:
        _print_queued(planned, as_json)
        return
    _carry_out(as_json)
    _print_results(planned, as_json)


def _carry_out(is_quiet: bool) -> None:
    """The queue, up to its end; another runner may be at work on it already."""
    from qlora_engine.runs import queue_runner

    place = queue_runner.places_here()[0]
    queue_runner.claim_gpu(place)
    with progress.view(is_quiet=is_quiet) as shown:
        runner = queue_runner.Runner(place, hear=shown.show)
        with driving.interruptible(Stoppable(runner), "Stopping the run at work and saving a checkpoint"):
            runner.run()


def _print_preview(wanted: Sweep, *, is_document: bool, is_quiet: bool) -> None:
    from qlora_engine.runs import queue_runner
    from qlora_engine.runs import sweep as sweeps
    from qlora_engine.runs.index import RunIndex

    if is_quiet and not is_document:
        return
    first = wanted.cells[0].configs[0]
    is_cpu = first.model.device == "cpu" or queue_runner.places_here() == ["cpu"]
    cells = sweeps.preview(wanted, RunIndex().entries(), "cpu" if is_cpu else "cuda")
    if is_document:
        document = {"name": wanted.name, "settings": list(wanted.settings), "seeds": list(wanted.seeds)}
        output.print_json({**document, "cells": [dataclasses.asdict(cell) for cell in cells]})
        return
    rows = [
        (*sweeps.words_of(cell.values), output.size(cell.peak_bytes), output.duration(cell.seconds))
        for cell in cells
    ]
    output.table((*wanted.settings, "memory at the peak", f"time for {len(wanted.seeds)} seeds"), rows)
    for problem in dict.fromkeys(cell.problem for cell in cells if cell.problem):
        output.note(problem)
    known = [cell.seconds for cell in cells if cell.seconds is not None]
    total = f"altogether {output.duration(sum(known))}" if len(known) == len(cells) else NO_TIME
    output.say(f"{counted(len(cells), 'cell')}, {counted(len(cells) * len(wanted.seeds), 'run')}, {total}\n")


def _print_queued(planned: Planned, as_json: bool) -> None:
    runs = [str(path) for row in planned.runs for path in row]
    if as_json:
        output.print_json({"sweep_id": planned.sweep_id, "runs": runs})
        return
    output.say(f"Queued {counted(len(runs), 'run')} of experiment {planned.sweep_id}")
    output.say(f"Carry them out with: {output.program()} queue run")
    output.say(f"Compare them with:   {output.program()} sweep {planned.sweep_id}")


def _print_results(planned: Planned, as_json: bool) -> None:
    from qlora_engine.runs import sweep as sweeps

    found = sweeps.results(planned)
    if as_json:
        output.print_json(_document(planned, found))
        return
    rows = [
        (
            *sweeps.words_of(cell.values),
            output.loss(cell.mean_loss),
            "compared with" if cell.margin is None else cell.margin.words,
        )
        for cell in found
    ]
    output.table((*planned.settings, "held-out loss", "against the first"), rows)
    over = sum(state == "finished" for cell in found for state in cell.states)
    total = sum(len(cell.states) for cell in found)
    if over < total:
        output.note(
            f"{counted(over, 'run', 'are', of=total)} finished; see them with: {output.program()} queue list"
        )


def _document(planned: Planned, found: Any) -> dict[str, Any]:
    cells = [
        {
            **dataclasses.asdict(cell),
            "runs": [str(path) for path in runs],
            "words": cell.margin.words if cell.margin else "",
        }
        for cell, runs in zip(found, planned.runs, strict=True)
    ]
    document = {"sweep_id": planned.sweep_id, "name": planned.name, "settings": list(planned.settings)}
    return {**document, "seeds": list(planned.seeds), "cells": cells}
