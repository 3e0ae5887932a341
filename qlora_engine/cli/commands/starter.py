"""`qlora starter`: the whole program once, in minutes: train the starter, ask it before and after, export it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.cli.commands.export import export_run, require_proof
from qlora_engine.cli.commands.job import set_option
from qlora_engine.cli.commands.train import ON_STOP, Outcome, last_words, loss_line, print_outcome, run_name
from qlora_engine.events import Event, RunStarted, SampleAnswered
from qlora_engine.jobs import TrainJob

INTRODUCTION = """\
The starter: a small model (SmolLM2-135M-Instruct) learns to turn a request in plain words into one line of JSON that a
program can run. It takes about five minutes on two CPU cores; Ctrl+C stops and saves.
"""


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where the merged model goes. [default: with your data]"
)
@set_option
@output.json_option
def starter(out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train, try and export the starter. The whole program once, with no account, hub or GPU."""
    from qlora_engine import config_io
    from qlora_engine.export.source import require_target
    from qlora_engine.starter import starter_job

    if out is not None:
        require_target(out)  # before minutes of training, not after
    config = config_io.with_overrides(starter_job(is_cpu=True), list(overrides))
    if not as_json:
        output.note(INTRODUCTION)
    outcome, samples = train_and_listen(TrainJob(config_io.to_dict(config)), is_quiet=as_json)
    if outcome.state != "finished":
        print_outcome(outcome, False, as_json)
        return
    document = {**outcome.document(), "samples": samples}
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

        with last_words(outcome):
            outcome.end = driving.run_job(job, listen, on_stop=ON_STOP)
    return outcome, samples


def _export_merged(document: dict[str, Any], out: Path | None, is_quiet: bool) -> str:
    from qlora_engine import paths

    target = out or paths.home() / "exports" / f"{document['run_id']}-merged"
    result = export_run(str(document["run_dir"]), "merged", target, {"verify": True}, is_quiet=is_quiet)
    require_proof(result)
    return str(result["path"])


def _print_finished(document: dict[str, Any]) -> None:
    output.say("\nWhat it has learned")
    output.say(f"  {loss_line(document.get('loss_before'), document.get('loss_after'))}")
    output.say("  (the mean loss on rows that were never trained on; lower is better)")
    for name, words in _conversation(document):
        output.say(f"  {name:<7} {words}")
    output.say("\nWhere it is")
    output.say(f"  Adapter:      {document['adapter']}")
    output.say(f"  Merged model: {document['merged']}")
    run, program = run_name(Path(document["run_dir"])), output.program()
    output.say("\nWhat to do next")
    output.say(f"  {program} chat {run} --compare   talk to it beside the untouched model")
    output.say(f"  {program} init job.toml   write a job file for a model and data of your own")


def _conversation(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The question and both answers, when the run was asked one."""
    pairs = _first_and_best(document)
    asked = [("Asked:", pairs[0][1]["prompt"])] if pairs else []
    return [*asked, *((f"{name}:", " ".join(s["answer"].split()) or "(nothing)") for name, s in pairs)]


def _first_and_best(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """One prompt's answer before training and at the step that was kept."""
    samples = document["samples"]
    if not samples:
        return []
    first = samples[0]
    later = [s for s in samples[1:] if s["prompt"] == first["prompt"]]
    kept = [s for s in later if s["step"] == document.get("best_step")] or later[-1:]
    return [("Before", first), *(("After", sample) for sample in kept[-1:])]
