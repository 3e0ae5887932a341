"""`qlora compare`: several runs beside each other: what differs, what they came to, their curves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_engine.cli import output
from qlora_engine.cli.commands.runs import found
from qlora_engine.errors import EngineError

if TYPE_CHECKING:
    from qlora_engine.evaluate.rows_across import RowsAcross
    from qlora_engine.runs.comparison import Comparison, Side

STEPS_SHOWN = 12


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="A B ...")
@click.option("--smoothing", type=click.FloatRange(0, 0.999), default=0.0, show_default=True, help="Weight of the past in the shown losses.")  # fmt: skip
@click.option("--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every step of all runs there.")  # fmt: skip
@click.option(
    "--rows", type=click.IntRange(0), default=0, help="Show this many held-out rows under all runs."
)
@output.json_option
def compare(runs: tuple[str, ...], smoothing: float, csv_file: Path | None, rows: int, as_json: bool) -> None:
    """Show where runs differ. Settings, figures and curves side by side."""
    from qlora_engine.evaluate import rows_across
    from qlora_engine.runs import comparison

    folders = [found(run) for run in runs]
    compared = comparison.compare(folders)
    beside = rows_across.across(folders, rows) if rows else None
    if csv_file is not None:
        _write(csv_file, compared.csv())
    if as_json:
        across = {"held_out_rows": dataclasses.asdict(beside)} if beside is not None else {}
        output.print_json({**_document(compared, smoothing), **across})
        return
    print_differences(compared)
    output.say()
    print_figures(compared)
    _print_curves(compared, smoothing)
    if beside is not None:
        print_rows(beside, compared)


def print_differences(compared: Comparison) -> None:
    """Only what is not the same in all."""
    if not any(difference.path for difference in compared.differences):
        output.say("The settings are the same.")
    if compared.differences:
        rows = [
            (one.path or one.label, *("-" if value is None else str(value) for value in one.values))
            for one in compared.differences
        ]
        output.table(("", *(side.title for side in compared.sides)), rows)


def print_figures(compared: Comparison) -> None:
    """What each run came to."""
    figures = [side.figures for side in compared.sides]
    rows = [
        ("state", *(side.summary.state for side in compared.sides)),
        ("steps", *(str(f.steps or output.NOT_AVAILABLE) for f in figures)),
        ("held-out loss before", *(output.loss(f.loss_before) for f in figures)),
        ("held-out loss after", *(output.loss(f.loss_after) for f in figures)),
        ("lowest held-out loss", *(output.loss(f.best_loss) for f in figures)),
        ("training time", *(output.duration(f.seconds) for f in figures)),
        ("tokens", *(output.count(f.tokens) for f in figures)),
        ("tokens/s", *(output.number(f.tokens_per_second) for f in figures)),
        ("peak predicted", *(output.size(f.predicted_peak_bytes) for f in figures)),
        ("peak measured", *(output.size(f.measured_peak_bytes) for f in figures)),
    ]
    output.table(("", *(side.title for side in compared.sides)), rows)


def print_rows(beside: RowsAcross, compared: Comparison) -> None:
    """Each row under every run, those first on which they differ most."""
    output.say()
    for row in beside.rows:
        output.say(f"row {row.row}")
        output.say(f"  {'question':<10} {_line(row.question)}")
        output.say(f"  {'expected':<10} {_line(row.expected)}")
        for side, loss, answer in zip(compared.sides, row.losses, row.answers, strict=True):
            output.say(f"  {side.title}  loss {output.loss(loss)}  {_line(answer or output.NOT_AVAILABLE)}")
    if beside.problem:
        output.note(beside.problem)
    for place in beside.unscored:
        run = compared.sides[place].summary.run_id
        output.note(f"{run} was not scored yet: {output.program()} predictions {run}")


def _line(text: str) -> str:
    return " ".join(text.split())


def _print_curves(compared: Comparison, smoothing: float) -> None:
    """Training loss of all at up to twelve common steps."""
    curves = [_losses(side, smoothing) for side in compared.sides]
    common = sorted(set(curves[0]).intersection(*curves[1:]))
    if not common:
        return
    shown = common[:: max(1, len(common) // STEPS_SHOWN)]
    output.say()
    rows = [(str(step), *(output.loss(curve[step]) for curve in curves)) for step in shown]
    output.table(("step", *(f"loss {side.title}" for side in compared.sides)), rows)


def _losses(side: Side, smoothing: float) -> dict[int, float]:
    curve = side.curve
    return {
        int(step): loss for step, loss in zip(curve.columns["step"], curve.y("loss", smoothing), strict=True)
    }


def _document(compared: Comparison, smoothing: float) -> dict[str, Any]:
    settings = {d.path: list(d.values) for d in compared.differences if d.path}
    contents = {d.label: list(d.values) for d in compared.differences if not d.path}
    return {"settings": settings, "contents": contents, "runs": [_side(s, smoothing) for s in compared.sides]}


def _side(side: Side, smoothing: float) -> dict[str, Any]:
    return {
        "run_id": side.summary.run_id,
        "title": side.title,
        "state": side.summary.state,
        "last_step": side.summary.last_step,
        **dataclasses.asdict(side.figures),
        "curve": [{"step": step, "loss": loss} for step, loss in _losses(side, smoothing).items()],
        "held_out": [{"step": event.step, "loss": event.loss} for event in side.curve.held_out],
    }


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EngineError(
            "compare.not_writable",
            f"{file} cannot be written: {error.strerror or error}",
            "choose another place",
        ) from error
