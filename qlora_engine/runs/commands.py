"""Wishes for a run that another process owns: lines of JSON in its folder, which its engine takes as they come. Torch-free.

Whoever can write the folder, which is its owner's alone, can pause and stop the run; nothing else can be asked for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_engine import parsing
from qlora_engine.control import ONE_SHOTS, STOP_DISCARD, STOP_SAVE, Control
from qlora_engine.errors import EngineError
from qlora_engine.runs import sealed
from qlora_engine.runs.record import LIVE_STATES, RunFolder

COMMANDS_FILE = "commands.jsonl"
POLL_SECONDS = 0.3
KNOWN = ("stop", "pause", "continue", *ONE_SHOTS)


def send(run_dir: Path, command: Mapping[str, Any]) -> None:
    """Ask the engine that trains this run, as `Engine.send` does: stop (`mode`), pause, continue, save, evaluate, sample.

    Raises:
        EngineError: nobody trains it, or there is no such command. OSError: its folder cannot be written.
    """
    if command.get("command") not in KNOWN:
        raise EngineError(
            "run.command", f"{command.get('command')!r} is no command", f"known: {', '.join(KNOWN)}"
        )
    folder = RunFolder.open(run_dir)
    if folder.state() not in LIVE_STATES:
        raise EngineError(
            "run.idle", f"run {folder.run_id!r} is not being trained", "look at it with `qlora runs`"
        )
    sealed.append_line(run_dir / COMMANDS_FILE, json.dumps(dict(command)))


class Inbox:
    """The owner's end: what was sent since the last look. What lay there before it was opened is old, and thrown away."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / COMMANDS_FILE
        self._offset = 0
        self._path.unlink(missing_ok=True)

    def take(self) -> list[dict[str, Any]]:
        """Whole, known commands in order."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [command for line in whole.splitlines() if (command := _command(line))]


@contextlib.contextmanager
def listening(run_dir: Path, control: Control) -> Iterator[None]:
    """While inside, commands from the folder reach `control`."""
    try:
        inbox = Inbox(run_dir)
    except OSError:
        yield
        return
    is_over = threading.Event()

    def poll() -> None:
        while not is_over.wait(POLL_SECONDS):
            for command in inbox.take():
                control.handle(command)

    thread = threading.Thread(target=poll, name="folder-commands", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()


def _command(line: bytes) -> dict[str, Any] | None:
    try:
        found = parsing.object_from_json(line)
    except ValueError:
        logging.getLogger(__name__).warning("not a command: %r", line[:80])
        return None
    if found.get("command") not in KNOWN or found.get("mode", STOP_SAVE) not in (STOP_SAVE, STOP_DISCARD):
        return None
    return found
