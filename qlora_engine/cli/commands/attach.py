"""`qlora attach`: watch a run that another process trains, live, and ask it for something."""

from __future__ import annotations

import threading
from typing import Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.cli.commands.runs import found
from qlora_engine.events import TERMINAL, Event, RunLeft, encode

ASKED = ("stop", "discard", "pause", "continue", "save", "evaluate", "sample")


@click.command()
@click.argument("run")
@click.option("--ask", type=click.Choice(ASKED), help="Ask the run for this, and do not watch.")
@click.option(
    "--events", is_flag=True, help="Stream the run's events as JSON lines on stdout, from its beginning."
)
@output.json_option
def attach(run: str, ask: str | None, events: bool, as_json: bool) -> None:
    """Watch a run that another process owns. Ctrl+C leaves; the run goes on."""
    from qlora_engine.runs import commands
    from qlora_engine.runs.watch import WatchEngine

    folder = found(run)
    if ask is not None:
        command = {"command": "stop", "mode": "discard"} if ask == "discard" else {"command": ask}
        commands.send(folder.path, command)
        output.print_json({"run_id": folder.run_id, "asked": ask}) if as_json else output.say(f"Asked run {folder.run_id}: {ask}")  # fmt: skip
        return
    engine = WatchEngine(folder.path)
    end = _watched(engine, events, as_json)
    if events:
        return
    document: dict[str, Any] = {"run_id": folder.run_id, "run_dir": folder.path, "state": folder.state()}
    if as_json:
        output.print_json(document)
    elif isinstance(end, RunLeft):
        output.say(
            f"Left; run {folder.run_id} goes on. Stop it with: {output.program()} attach {run} --ask stop"
        )
    else:
        driving.settled(end)
        output.say(f"Run {folder.run_id}: {document['state']}")


def _watched(engine: Any, events: bool, is_quiet: bool) -> Event:
    """Show everything until the run ends or Ctrl+C leaves it; the last event."""
    last: list[Event] = []
    with (
        progress.view(is_quiet=is_quiet or events) as shown,
        driving.interruptible(Leaving(engine), "Leaving"),
    ):
        for event in engine.run():
            if events:
                output.say(encode(event))
            shown.show(event)
            last = [event]
    assert isinstance(last[0], TERMINAL)
    return last[0]


class Leaving:
    """What Ctrl+C stops here is the watching."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._lock = threading.Lock()

    def request_stop(self, mode: str = "") -> None:
        with self._lock:
            self._engine.leave()

    def run(self, job: Any) -> Any:
        return self._engine.run(job)

    def send(self, command: Any) -> None:
        self._engine.send(command)
