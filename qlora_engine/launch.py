"""Starts the process that an engine works in. Torch-free."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qlora_engine import child, orphans


@dataclass(frozen=True)
class Launched:
    """A worker that waits for its job, what it prints, and the environment and folder that it was started with."""

    process: subprocess.Popen[str]
    folder: tempfile.TemporaryDirectory[str]
    environment: dict[str, str]
    cwd: str

    @property
    def log(self) -> Path:
        return Path(self.folder.name) / "log.txt"

    def clean_up(self) -> None:
        """Forget what it printed."""
        self.folder.cleanup()


def launch() -> Launched:
    """A worker of its own.

    Raises:
        OSError: no process can be started.
    """
    folder = tempfile.TemporaryDirectory(prefix="qlora-engine-", ignore_cleanup_errors=True)
    environment = worker_environment()
    with (Path(folder.name) / "log.txt").open("wb") as log_file:
        process = subprocess.Popen(
            worker_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            encoding="utf-8",
            bufsize=1,
            env=environment,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    return Launched(process, folder, environment, os.getcwd())  # noqa: PTH109 - text, compared as such


def worker_command() -> list[str]:
    """How the engine process is started; a frozen bundle starts itself with a flag."""
    return child.command("qlora_engine.worker")


def worker_environment() -> dict[str, str]:
    environment = child.environment()
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("PYTHONUNBUFFERED", "1")
    environment[orphans.DRIVER_VARIABLE] = str(os.getpid())
    # Two busy programs on two cores: threads that spin at a barrier starve the one they wait for.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment
