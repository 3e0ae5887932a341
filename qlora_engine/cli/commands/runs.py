"""`qlora runs` lists the history, `qlora compare` shows where two runs differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_engine.cli import output
from qlora_engine.errors import EngineError

if TYPE_CHECKING:
    from qlora_engine.runs.record import RunFolder, RunSummary


REASONS_SHOWN = 3


@click.command()
@click.argument("run", required=False)
@click.option("--dir", "runs_dir", type=click.Path(path_type=Path), help="Another runs folder.")
@click.option(
    "--answers",
    "wants_answers",
    is_flag=True,
    help="What RUN answered to its fixed prompts at each evaluation.",
)
@output.json_option
def runs(run: str | None, runs_dir: Path | None, wants_answers: bool, as_json: bool) -> None:
    """List the runs, newest first, or show one."""
    from qlora_engine import paths
    from qlora_engine.runs.record import RunFolder, list_runs

    if wants_answers:
        if run is None:
            raise click.UsageError("--answers needs a RUN")
        print_answers(RunFolder.open(run), as_json)
        return
    if run is not None:
        _print([RunFolder.open(run).summary()], as_json)
        return
    if runs_dir is not None and not runs_dir.is_dir():
        raise EngineError(
            "runs.missing", f"there is no folder {runs_dir}", "check the path, or leave --dir out"
        )
    found = list_runs(runs_dir)
    if not found and not as_json:
        where = runs_dir or paths.runs_dir()
        output.say(f"No runs in {where} yet. Start one with: {output.program()} starter")
        return
    _print(found, as_json)


def print_answers(folder: RunFolder, as_json: bool) -> None:
    """Each fixed prompt and its answers from step to step."""
    from qlora_engine.runs.timeline import timelines

    found = timelines(folder.metrics())
    if as_json:
        prompts = [dataclasses.asdict(timeline) for timeline in found]
        output.print_json({"run_id": folder.run_id, "prompts": prompts})
        return
    if not found:
        output.say(f"Run {folder.run_id} answered no fixed prompts; training.sample_prompts names them.")
    for timeline in found:
        output.say(f"Asked: {timeline.prompt}")
        for point in timeline.points:
            output.say(
                f"  step {point.step:>6}  held-out loss {output.loss(point.held_out_loss)}  {' '.join(point.answer.split())}"
            )


def _print(found: list[RunSummary], as_json: bool) -> None:
    if as_json:
        output.print_json({"runs": [dataclasses.asdict(summary) for summary in found]})
        return
    headers = ("run", "state", "model", "steps", "loss before", "loss after", "peak", "began")
    output.table(headers, [_row(summary) for summary in found])
    for summary in found:
        for notice in summary.notices:
            output.note(f"{summary.run_id}: {notice}")
    _print_reasons([summary for summary in found if summary.state == "failed"][:REASONS_SHOWN])


def _print_reasons(failed: list[RunSummary]) -> None:
    """Why the newest failed ones failed."""
    from qlora_engine.runs.record import RunFolder

    for summary in failed:
        error = RunFolder(summary.path).record().get("error") or {}
        if error.get("message"):
            output.say(f"{summary.run_id} failed: {error['message']}")


def _row(summary: RunSummary) -> tuple[str, ...]:
    steps = f"{summary.last_step if summary.last_step is not None else '-'}/{summary.total_steps or '-'}"
    state = f"{summary.state}{' (resumable)' if summary.is_resumable else ''}"
    return (
        summary.run_id,
        state,
        summary.model,
        steps,
        output.loss(summary.loss_before),
        output.loss(summary.loss_after),
        output.size(summary.measured_peak_bytes),
        output.moment(summary.created_unix),
    )


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@output.json_option
def compare(first: str, second: str, as_json: bool) -> None:
    """Show where two runs differ. Settings, figures and curves side by side."""
    from qlora_engine.runs.record import RunFolder

    pair = (RunFolder.open(first), RunFolder.open(second))
    differing = _differing(*pair)
    sides = [_side(folder) for folder in pair]
    if as_json:
        output.print_json({"settings": differing, "runs": sides})
        return
    _print_settings(sides, differing)
    _print_figures(sides)
    _print_curves(sides)


def _differing(first: RunFolder, second: RunFolder) -> dict[str, dict[str, Any]]:
    from qlora_engine.config import changed_from

    changed = changed_from(second.job(), first.job())
    return {path: {"a": a, "b": b} for path, (a, b) in changed.items() if not path.startswith("output.")}


def _side(folder: RunFolder) -> dict[str, Any]:
    from qlora_engine.events import EvaluationFinished, StepFinished

    summary = folder.summary()
    steps = [event for event in folder.metrics() if isinstance(event, StepFinished)]
    scores = [event for event in folder.metrics() if isinstance(event, EvaluationFinished)]
    return {
        "run_id": folder.run_id,
        "state": summary.state,
        "last_step": summary.last_step,
        "loss_before": summary.loss_before,
        "loss_after": summary.loss_after,
        "predicted_peak_bytes": summary.predicted_peak_bytes,
        "measured_peak_bytes": summary.measured_peak_bytes,
        "seconds": sum(event.step_seconds for event in steps),
        "curve": [{"step": event.step, "loss": event.loss} for event in steps],
        "held_out": [{"step": event.step, "loss": event.loss} for event in scores],
    }


def _print_settings(sides: list[dict[str, Any]], differing: dict[str, dict[str, Any]]) -> None:
    if not differing:
        output.say("The settings are the same.")
        return
    rows = [(path, str(values["a"]), str(values["b"])) for path, values in differing.items()]
    output.table(("setting", sides[0]["run_id"], sides[1]["run_id"]), rows)


def _print_figures(sides: list[dict[str, Any]]) -> None:
    output.say()
    rows = [
        ("state", *(side["state"] for side in sides)),
        ("steps", *(str(side["last_step"] or output.NOT_AVAILABLE) for side in sides)),
        ("held-out loss before", *(output.loss(side["loss_before"]) for side in sides)),
        ("held-out loss after", *(output.loss(side["loss_after"]) for side in sides)),
        ("training time", *(output.duration(side["seconds"]) for side in sides)),
        ("peak predicted", *(output.size(side["predicted_peak_bytes"]) for side in sides)),
        ("peak measured", *(output.size(side["measured_peak_bytes"]) for side in sides)),
    ]
    output.table(("", *(side["run_id"] for side in sides)), rows)


def _print_curves(sides: list[dict[str, Any]]) -> None:
    """Training loss of both at up to twelve common steps."""
    curves = [{point["step"]: point["loss"] for point in side["curve"]} for side in sides]
    common = sorted(set(curves[0]) & set(curves[1]))
    if not common:
        return
    shown = common[:: max(1, len(common) // 12)]
    output.say()
    rows = [(str(step), *(output.loss(curve[step]) for curve in curves)) for step in shown]
    output.table(("step", *(f"loss {side['run_id']}" for side in sides)), rows)
