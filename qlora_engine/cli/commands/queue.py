"""`qlora queue`: runs one after another, of planned runs, broken-off ones and job files."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.cli.commands.job import set_option
from qlora_engine.cli.commands.runs import found
from qlora_engine.errors import EngineError

if TYPE_CHECKING:
    from qlora_engine.runs.queue_runner import Runner
    from qlora_engine.runs.record import RunFolder


@click.group()
def queue() -> None:
    """Line runs up and carry them out one after another."""


@queue.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN_OR_FILE ...")
@click.option("--gpu", type=click.IntRange(0), help="Only on this GPU. [default: any]")
@click.option("--first", is_flag=True, help="Before all others that wait.")
@click.option("--not-before", metavar="HH:MM", help="Begin no run of the queue before this time of the day.")
@set_option
@output.json_option
def add(
    runs: tuple[str, ...], gpu: int | None, first: bool, not_before: str | None, overrides: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Put planned or broken-off runs, or job files, at the end of the queue."""
    from qlora_engine.runs import outlook
    from qlora_engine.runs import queue as engine

    begins = outlook.next_time(not_before) if not_before else None
    if begins is not None:
        engine.start_at(begins)  # first: a runner that is at work takes what is added at once
    folders = [planned(run, overrides) for run in runs]
    for folder in reversed(folders) if first else folders:
        engine.add(folder, gpu="" if gpu is None else f"gpu{gpu}", first=first)
    _print(as_json)


def planned(run: str, overrides: tuple[str, ...]) -> RunFolder:
    """A run by name, or the plan of a job file.

    Raises:
        EngineError: neither; or settings for a run that has begun.
    """
    from qlora_engine import config_io
    from qlora_engine.runs import plans

    file = Path(run).expanduser()
    if file.is_file():
        return plans.create(config_io.with_overrides(config_io.load(file), list(overrides)))
    folder = found(run)
    if overrides:
        plans.edit(folder, config_io.with_overrides(folder.asked()[0], list(overrides)))
    return folder


@queue.command("list")
@output.json_option
def list_(as_json: bool) -> None:
    """Show what waits, with its estimated end, and what is done."""
    _print(as_json)


@queue.command()
@click.argument("run")
@click.argument("place", type=click.IntRange(1))
@output.json_option
def move(run: str, place: int, as_json: bool) -> None:
    """Put a waiting RUN at PLACE, 1 for the next."""
    from qlora_engine.runs import queue as engine

    engine.move(found(run).path, place)
    _print(as_json)


@queue.command()
@click.argument("run")
@output.json_option
def remove(run: str, as_json: bool) -> None:
    """Take a waiting RUN out of the queue. It stays among the runs."""
    from qlora_engine.runs import queue as engine

    engine.remove(_waiting(run))
    _print(as_json)


@queue.command()
@click.option("--off", is_flag=True, help="Go on.")
@output.json_option
def pause(off: bool, as_json: bool) -> None:
    """Begin no further run. The one at work is left alone."""
    from qlora_engine.runs import queue as engine

    engine.pause(not off)
    _print(as_json)


@queue.command("run")
@click.option("--gpu", type=click.IntRange(0), help="On this GPU. [default: the first; without one, the CPU]")
@click.option("--stay", is_flag=True, help="Wait for more when nothing is left.")
@click.option("--tonight", is_flag=True, help="Begin at ten in the evening.")
@click.option("--not-before", metavar="HH:MM", help="Begin no run before this time of the day.")
@click.option("--background", is_flag=True, help="In a process of its own, which outlives this terminal.")
@output.json_option
def run_(
    gpu: int | None, stay: bool, tonight: bool, not_before: str | None, background: bool, as_json: bool
) -> None:
    """Carry out the queue. Ctrl+C stops and saves the run at work, which waits again."""
    from qlora_engine.runs import outlook, queue_runner
    from qlora_engine.runs import queue as engine

    when = not_before or (outlook.TONIGHT if tonight else None)
    begins = outlook.next_time(when) if when else None
    engine.pause(False)
    engine.start_at(begins)
    if background:
        queue_runner.ensure_running()
        _print(as_json)
        return
    places = queue_runner.places_here()
    place = places[0] if gpu is None else f"gpu{gpu}"
    if place not in places:
        raise EngineError("queue.gpu", f"this computer has no GPU {gpu}", f"it has: {', '.join(places)}")
    queue_runner.claim_gpu(place)
    with progress.view(is_quiet=as_json) as shown:
        runner = queue_runner.Runner(place, hear=shown.show)
        with driving.interruptible(Stoppable(runner), "Stopping the run at work and saving a checkpoint"):
            runner.run(stay=stay)
    _print(as_json)


class Stoppable:
    """A runner as what Ctrl+C stops."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def request_stop(self, mode: str = "") -> None:
        self._runner.stop()

    def run(self, job: Any) -> Any:
        raise NotImplementedError

    def send(self, command: Any) -> None:
        raise NotImplementedError


def _waiting(run: str) -> Path:
    """A run of the queue, also where its folder is gone."""
    from qlora_engine.runs import queue as engine

    by_name = [entry.run_dir for entry in engine.read().entries if entry.run_dir.name == run]
    return by_name[0] if by_name else found(run).path


def _print(as_json: bool) -> None:
    """The queue as it is now."""
    from qlora_engine.runs import outlook, queue_runner
    from qlora_engine.runs import queue as engine
    from qlora_engine.runs.index import RunIndex

    state, entries = engine.read(), RunIndex().entries()
    places = queue_runner.places_here()
    times = outlook.forecast(state, entries, places=places)
    at_work = [place for place in places if queue_runner.is_at_work(place)]
    if as_json:
        waiting = [
            {**_plain(one.entry), "begins_seconds": one.begins_seconds, "ends_seconds": one.ends_seconds}
            for one in times
        ]
        done = [_plain(one) for one in state.done]
        document = {
            "is_paused": state.is_paused,
            "not_before_unix": state.not_before_unix,
            "problem": state.problem,
            "ends_seconds": outlook.whole_seconds(times),
        }
        output.print_json({**document, "runners": at_work, "entries": waiting, "done": done})
        return
    titles = {entry.path: entry.title for entry in entries}
    _print_words(state, times, titles, at_work)


def _plain(one: Any) -> dict[str, Any]:
    return {"run_id": one.run_dir.name, **dataclasses.asdict(one)}


def _print_words(state: Any, times: Any, titles: Any, at_work: list[str]) -> None:
    from qlora_engine.runs import outlook, queue_runner
    from qlora_engine.runs import queue as engine

    if state.problem:
        output.note(state.problem)
    for one in state.done[-5:]:
        reason = f": {one.error}" if one.error else ""
        output.say(
            f"{one.state:<9} {titles.get(one.run_dir, one.run_dir.name)}  {output.moment(one.ended_unix)}{reason}"
        )
    if not times:
        output.say("Nothing waits.")
        return
    places = engine.places()
    rows = [
        (
            str(places.get(str(one.entry.run_dir)) or ""),
            titles.get(one.entry.run_dir, one.entry.run_dir.name),
            "running" if one.entry.runner else "waits",
            one.entry.gpu or one.entry.device,
            _in(one.begins_seconds),
            _in(one.ends_seconds),
        )
        for one in times
    ]
    output.table(("", "run", "state", "where", "begins", "ends"), rows)
    output.say(f"Everything is done: {_in(outlook.whole_seconds(times))}")
    if state.is_paused:
        output.say(f"Paused. Go on with: {output.program()} queue pause --off")
    elif state.is_held():
        output.say(f"Begins at {output.moment(state.not_before_unix)}")
    if at_work:
        output.say(f"At work on {', '.join(map(queue_runner.title, at_work))}")
    else:
        output.say(f"Nobody is at work. Start with: {output.program()} queue run{_time_kept(state)}")


def _time_kept(state: Any) -> str:
    """The option that keeps the time to begin: a runner that is started without one begins at once."""
    if not state.is_held():
        return ""
    return time.strftime(" --not-before %H:%M", time.localtime(state.not_before_unix))


def _in(seconds: float | None) -> str:
    if seconds is None:
        return output.NOT_AVAILABLE
    return f"in {output.duration(seconds)}" if seconds else "now"
