"""`qlora starter`: the whole program once, in minutes: train the starter, ask it before and after, export it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.cli.commands.export import export_run
from qlora_engine.cli.commands.job import set_option
from qlora_engine.cli.commands.train import ON_STOP, Outcome, loss_line
from qlora_engine.events import Event, RunStarted, SampleAnswered
from qlora_engine.jobs import TrainJob

SETTINGS = (
    "training.max_steps=60",
    "training.effective_batch=8",
    "training.learning_rate=4e-4",
    "training.eval_every_steps=30",
    "training.eval_rows=40",
    "training.sample_tokens=64",
)
"""What makes the quick-look preset finish in minutes on two CPU cores and still teaches the skill."""


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where the merged model goes. [default: with your data]"
)
@set_option
@output.json_option
def starter(out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train the starter model on the starter dataset and export it; no account, hub or GPU needed."""
    from qlora_engine import config_io

    config = config_io.with_overrides(
        config_io.load_preset("quick-look", is_cpu=True), [*SETTINGS, *overrides]
    )
    if not as_json:
        output.note("Training the starter: a small model learns one skill. This takes some minutes on a CPU.")
    outcome, samples = train_and_listen(TrainJob(config_io.to_dict(config)), is_quiet=as_json)
    document = outcome.document()
    if outcome.state != "finished":
        _print_stopped(document, as_json)
        return
    document["samples"] = samples
    document["merged"] = _export_merged(document, out, as_json)
    if as_json:
        output.print_json(document)
    else:
        _print_finished(document)


def train_and_listen(job: TrainJob, *, is_quiet: bool) -> tuple[Outcome, list[dict[str, Any]]]:
    """Run the job and keep the answers to the fixed prompts, oldest first."""
    outcome = Outcome()
    samples: list[dict[str, Any]] = []
    with progress.view(is_quiet=is_quiet) as shown:

        def listen(event: Event) -> None:
            if isinstance(event, RunStarted):
                outcome.run_dir = Path(event.run_dir)
            if isinstance(event, SampleAnswered):
                samples.append({"step": event.step, "prompt": event.prompt, "answer": event.answer})
            shown.show(event)

        outcome.end = driving.run_job(job, listen, on_stop=ON_STOP)
    return outcome, samples


def _export_merged(document: dict[str, Any], out: Path | None, is_quiet: bool) -> str:
    from qlora_engine import paths

    target = out or paths.home() / "exports" / f"{document['run_id']}-merged"
    result = export_run(str(document["run_dir"]), "merged", target, {"verify": True}, is_quiet=is_quiet)
    return str(result["path"])


def _print_stopped(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.print_json(document)
    else:
        output.say(f"Stopped. Go on with: qlora resume {document.get('run_id', document['run_dir'])}")


def _print_finished(document: dict[str, Any]) -> None:
    output.say()
    output.say(loss_line(document.get("loss_before"), document.get("loss_after")))
    for name, sample in _first_and_best(document):
        output.say(f"\n{name}: {sample['prompt']}\n  {sample['answer']}")
    output.say(f"\nAdapter:      {document['adapter']}")
    output.say(f"Merged model: {document['merged']}")
    output.say(f"Talk to it:   qlora chat {document['run_id']}")


def _first_and_best(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """One prompt's answer before training and at the step that was kept."""
    samples = document["samples"]
    if not samples:
        return []
    first = samples[0]
    later = [s for s in samples[1:] if s["prompt"] == first["prompt"]]
    kept = [s for s in later if s["step"] == document.get("best_step")] or later[-1:]
    return [("Before", first), *(("After", sample) for sample in kept[-1:])]
