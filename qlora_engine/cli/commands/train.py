"""`qlora train` and `qlora resume`: one run from its first step or from its newest checkpoint to its end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.cli.commands.job import set_option
from qlora_engine.events import Event, RunFinished, RunLeft, RunStarted, RunStopped, encode
from qlora_engine.jobs import Job, ResumeJob, TrainJob

if TYPE_CHECKING:
    from qlora_engine.config import TrainingConfig

ON_STOP = "Stopping after this micro-batch and saving a checkpoint"

events_option = click.option(
    "--events", is_flag=True, help="Stream the run's events as JSON lines on stdout."
)


detach_option = click.option(
    "--detach", is_flag=True, help="Leave as soon as it has begun; it goes on without this terminal."
)


@click.command()
@click.argument("file", metavar="FILE_OR_RUN", type=click.Path(path_type=Path))
@set_option
@detach_option
@events_option
@output.json_option
def train(file: Path, overrides: tuple[str, ...], detach: bool, events: bool, as_json: bool) -> None:
    """Train from a job file, or start a planned run. Ctrl+C stops and saves; a second Ctrl+C ends at once."""
    from qlora_engine import config_io

    run_dir = planned_dir(file)
    config = config_io.load(file if run_dir is None else run_dir / "job.toml")
    config = config_io.with_overrides(config, list(overrides))
    place = "" if run_dir is None else str(run_dir)
    if not begin_beside(config, place, is_asked=not (events or as_json)):
        return
    job = TrainJob(config_io.to_dict(config), place, detach)
    print_outcome(follow(job, events, as_json), events, as_json)


def planned_dir(file: Path) -> Path | None:
    """The folder of a run that is named instead of a job file."""
    from qlora_engine.cli.commands.runs import found
    from qlora_engine.errors import EngineError

    if file.is_file() or file.suffix == ".toml":
        return None
    try:
        return found(str(file)).path
    except EngineError:
        return None  # what is wrong with it as a job file is the better answer


def begin_beside(config: TrainingConfig, run_dir: str, *, is_asked: bool) -> bool:
    """Say what is busy there, and on a terminal ask: start, queue or neither. False: do not start now."""
    from qlora_engine.runs import outlook, plans, queue
    from qlora_engine.runs.record import RunFolder

    busy = outlook.busy_with(config)
    if busy is None:
        return True
    output.note(f"warning: {busy.message}")
    if not (is_asked and sys.stdin.isatty() and sys.stderr.isatty()):
        output.note(f"To line it up instead: {output.program()} queue add")
        return True
    answer = click.prompt("Start it, queue it, or neither", type=click.Choice(["start", "queue", "no"]), default="queue", err=True)  # fmt: skip
    if answer == "queue":
        folder = RunFolder(Path(run_dir)) if run_dir else plans.create(config)
        queue.add(folder)
        output.say(f"Queued run {folder.run_id}. Carry the queue out with: {output.program()} queue run")
    return bool(answer == "start")


@click.command()
@click.argument("run")
@click.option(
    "--accept",
    multiple=True,
    metavar="NAME",
    help="Go on although NAME is not what the checkpoint was made with: a setting such as training.seed, "
    "base, data, template, owner, or all.",
)
@detach_option
@events_option
@output.json_option
def resume(run: str, accept: tuple[str, ...], detach: bool, events: bool, as_json: bool) -> None:
    """Go on with a stopped or crashed run from its newest checkpoint."""
    from qlora_engine.cli.commands.runs import found

    folder = found(run)
    job = ResumeJob(str(folder.path), accept, detach)
    print_outcome(follow(job, events, as_json), events, as_json)


class Outcome:
    """What a followed run left: its folder and its terminal event."""

    def __init__(self) -> None:
        self.run_dir: Path | None = None
        self.end: RunFinished | RunStopped | RunLeft | None = None

    @property
    def state(self) -> str:
        if isinstance(self.end, RunLeft):
            return "running"
        return "finished" if isinstance(self.end, RunFinished) else "stopped"

    def document(self) -> dict[str, Any]:
        """The result as JSON: the run's record where there is one, and the terminal event's own figures."""
        record = self._record()
        kept = ("run_id", "loss_before", "loss_after", "best_step", "last_step", "measured_peak_bytes")
        result = dict(self.end.result) if self.end and not isinstance(self.end, RunLeft) else {}
        shown = {key: record[key] for key in kept if key in record}
        if isinstance(self.end, RunStopped):
            shown["is_resumable"] = self.end.is_resumable
        return {"state": self.state, "run_dir": self.run_dir, **shown, **result}

    def _record(self) -> dict[str, Any]:
        from qlora_engine.runs.record import RunFolder

        return RunFolder(self.run_dir).record() if self.run_dir else {}


def follow(job: Job, events: bool, is_quiet: bool) -> Outcome:
    """Run `job` to its end with a bar, lines or the event stream.

    Raises:
        EngineError: it failed.
    """
    outcome = Outcome()
    with progress.view(is_quiet=is_quiet or events) as shown:

        def listen(event: Event) -> None:
            if isinstance(event, RunStarted):
                outcome.run_dir = Path(event.run_dir)
            if events:
                output.say(encode(event))
            shown.show(event)

        with last_words(outcome):
            if getattr(job, "detached", False):
                outcome.end = driving.launch(job, listen)
            else:
                outcome.end = driving.run_job(job, listen, on_stop=ON_STOP)
    return outcome


@contextlib.contextmanager
def last_words(outcome: Outcome) -> Iterator[None]:
    """When the person will not wait for the end: what is lost, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if outcome.run_dir is not None:
            output.note(_after_quitting(outcome.run_dir))
        raise


def _after_quitting(run_dir: Path) -> str:
    from qlora_engine.runs.record import RunFolder

    folder = RunFolder(run_dir)
    newest = [path.name.removeprefix("step-") for path in folder.checkpoints()][-1:]
    if not newest:
        return f"Ended at once, before the first checkpoint: nothing of run {run_name(run_dir)} can be gone on with."
    return (
        f"Ended at once; what was trained after step {newest[0]} is lost. "
        f"Go on with: {output.program()} resume {run_name(run_dir)}"
    )


def print_outcome(outcome: Outcome, events: bool, as_json: bool) -> None:
    """How it ended, in words or as one document; nothing after an event stream, which says so itself."""
    if events:
        return
    document = outcome.document()
    if as_json:
        output.print_json(document)
        return
    run = run_name(outcome.run_dir)
    if isinstance(outcome.end, RunLeft):
        output.say(f"Run {run} goes on without this terminal. Watch it with: {output.program()} attach {run}")
        return
    output.say(f"{'Finished' if outcome.state == 'finished' else 'Stopped'}: run {run}")
    for line in _lines(document):
        output.say(line)
    if outcome.state == "finished":
        output.say(f"Talk to it: {output.program()} chat {run} --compare")
        output.say(f"Export it:  {output.program()} export {run} --as merged --out FOLDER")
    if isinstance(outcome.end, RunStopped) and not outcome.end.is_resumable:
        output.say("Nothing was trained yet, so there is nothing to go on with.")
    if isinstance(outcome.end, RunStopped) and outcome.end.is_resumable:
        output.say(f"Go on with: {output.program()} resume {run}")


def run_name(run_dir: Path | None) -> str:
    """What the other commands take: the run's name where runs are usually kept, else its folder."""
    from qlora_engine import paths

    if run_dir is None:
        return output.NOT_AVAILABLE
    is_at_home = run_dir.resolve().parent == paths.runs_dir().resolve()
    return run_dir.name if is_at_home else str(run_dir)


def _lines(document: dict[str, Any]) -> list[str]:
    lines = [loss_line(document.get("loss_before"), document.get("loss_after"))]
    peak = document.get("measured_peak_bytes")
    if peak is not None:
        lines.append(f"Peak memory measured: {output.size(peak)}")
    run_dir = document.get("run_dir")
    if run_dir is not None and (Path(run_dir) / "adapter").is_dir():
        lines.append(f"Adapter: {Path(run_dir) / 'adapter'}")
    return [line for line in lines if line]


def loss_line(before: float | None, after: float | None) -> str:
    """Held-out loss before and after, with the change in percent."""
    if before is None or after is None:
        return ""
    line = f"Held-out loss: {before:.4f} before, {after:.4f} after"
    if not before:
        return line
    change = f"{abs(after - before) / before:.0%}"
    direction = "lower" if after < before else "higher"
    return f"{line} ({'the same' if change == '0%' else f'{change} {direction}'})"
