"""`qlora predictions`: a run's held-out rows by loss, what was expected and what the run says."""

from __future__ import annotations

from typing import Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.counting import counted
from qlora_engine.events import RunFinished
from qlora_engine.jobs import PredictionsJob


@click.command()
@click.argument("run")
@click.option(
    "--rows",
    type=click.IntRange(1, 1_000),
    default=10,
    show_default=True,
    help="How many of each end to show.",
)
@click.option(
    "--again", is_flag=True, help="Score again even if the run keeps the predictions of its adapter."
)
@output.json_option
def predictions(run: str, rows: int, again: bool, as_json: bool) -> None:
    """Show the held-out rows a run predicts best and worst, expected against got."""
    from qlora_engine.evaluate import prediction_file
    from qlora_engine.runs.record import RunFolder

    folder = RunFolder.open(run)
    found = None if again else prediction_file.read(folder)
    if found is None or min(rows, found["scored_rows"]) > len(found["worst"]):
        found = _score(folder.path.as_posix(), rows, is_quiet=as_json)
    found |= {end: found[end][:rows] for end in ("worst", "best")}
    if as_json:
        output.print_json(found)
        return
    output.say(summary_line(found))
    for title, end in (("Worst", "worst"), ("Best", "best")):
        output.say(f"\n{title}")
        for row in found[end]:
            _print_row(row)


def _score(run_dir: str, rows: int, *, is_quiet: bool) -> dict[str, Any]:
    with progress.view(is_quiet=is_quiet) as shown:
        end = driving.run_job(PredictionsJob(run_dir, rows), shown.show, on_stop="Stopping")
    if not isinstance(end, RunFinished):
        raise click.Abort
    return dict(end.result)


def summary_line(found: dict[str, Any]) -> str:
    return (
        f"{counted(found['scored_rows'], 'held-out row')}, mean loss {output.loss(found['loss'])} over {found['trained_tokens']:,} tokens; "
        f"{found['faultless_rows']:,} predicted without a wrong token"
    )


def _print_row(row: dict[str, Any]) -> None:
    output.say(f"  row {row['row']}  loss {output.loss(row['loss'])}  {_wrong(row)}")
    for name in ("question", "expected", "got"):
        output.say(f"    {name:<9} {' '.join(row[name].split())}")


def _wrong(row: dict[str, Any]) -> str:
    if row["wrong_at"] is None:
        return "no wrong token"
    return (
        f"first wrong token {row['wrong_at'] + 1} of {row['answer_tokens']}: "
        f"expected {row['wrong_token']!r}, likeliest {row['likeliest_token']!r}"
    )
