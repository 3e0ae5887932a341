"""Every way a command ends badly, as one sentence on stderr and an exit code.

A person's mistake is 2, a failure is 1, a second Ctrl+C is 130. Only bugs have a traceback, in a file.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import click

from qlora_engine import paths
from qlora_engine.cli import output
from qlora_engine.errors import Cancelled, EngineError, did_you_mean

INTERRUPTED = 130


def report(error: BaseException) -> int:
    """Print what a person needs to read and return the exit code."""
    match error:
        case EngineError():
            say(error.message, error.hint)
            return error.exit_code
        case click.ClickException():
            say(_sentence(error.format_message()), _usage_hint(error))
            return 2
        case click.exceptions.Exit():
            return error.exit_code
        case KeyboardInterrupt() | click.Abort():
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        case Cancelled():
            print("stopped", file=sys.stderr)
            return 0
        case BrokenPipeError():
            _forget_stdout()
            return 1
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
    return report_bug(error, traceback.format_exc())


def report_bug(error: BaseException, details: str) -> int:
    log = write_log(details)
    say(f"unexpected {type(error).__name__}: {_sentence(str(error)) or 'no message'}", log_hint(log))
    return 1


def log_hint(log: Path) -> str:
    return f"this is a bug; report it with {log}"


def write_log(details: str) -> Path:
    """Keep a traceback in the program's log folder, or in the temporary folder when that cannot be written."""
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (paths.home() / "logs", Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(details, encoding="utf-8")
            return folder / name
    return Path(name)


def say(message: str, hint: str) -> None:
    """The one form of an error on a terminal."""
    text = f"error: {message.rstrip('.')}"
    output.note(f"{text}; hint: {hint.rstrip('.')}" if hint else text)


def unknown_command(name: str, known: Iterable[str]) -> EngineError:
    return EngineError("usage.command", f"there is no command {name!r}", did_you_mean(name, known))


def _usage_hint(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    return f"see `{ctx.command_path if ctx else 'qlora'} --help`"


def _sentence(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def _forget_stdout() -> None:
    """Whoever read our output has gone; keep the interpreter's last flush from failing too."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
