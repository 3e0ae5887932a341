"""A worker that has imported what training needs before anyone asks, and waits for its job. Torch-free.

Importing is the longest part of a start. The worker holds no model, no data and no memory of a GPU; it ends with its
driver, since its pipe does.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading

from qlora_engine import jobs, launch
from qlora_engine.launch import Launched

PREPARE = {"command": "prepare"}
"""What a worker is told that is to import and wait."""
SERVES = (
    jobs.TrainJob,
    jobs.ResumeJob,
    jobs.ChatJob,
    jobs.ReplayJob,
    jobs.PredictionsJob,
)
"""The jobs that need all of it, and that a person waits for."""
END_SECONDS = 5.0


class Spare:
    """At most one such worker. Its methods are safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Launched | None = None

    @property
    def is_waiting(self) -> bool:
        with self._lock:
            return self._waiting is not None and self._waiting.process.poll() is None

    def prepare(self) -> None:
        """Have one from soon on; nothing where one waits already or no process can be started."""
        with self._lock:
            if self._waiting is not None and self._is_fit(self._waiting):
                return
            self._let_go()
            with contextlib.suppress(OSError):
                self._waiting = launch.launch()
                _write(self._waiting.process, json.dumps(PREPARE))

    def take(self, job: jobs.Job) -> Launched | None:
        """The worker, which is the caller's from now on; None where there is none that would do as well as a new one."""
        if not isinstance(job, SERVES):
            return None
        with self._lock:
            if self._waiting is not None and self._is_fit(self._waiting):
                taken, self._waiting = self._waiting, None
                return taken
            self._let_go()
            return None

    def end(self) -> None:
        """Let it go."""
        with self._lock:
            self._let_go()

    def _is_fit(self, worker: Launched) -> bool:
        """Alive, and started as one would be now: the home folder or a token may have been chosen since."""
        is_same = worker.environment == launch.worker_environment() and worker.cwd == os.getcwd()  # noqa: PTH109
        return is_same and worker.process.poll() is None

    def _let_go(self) -> None:
        worker, self._waiting = self._waiting, None
        if worker is None:
            return
        process = worker.process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        worker.clean_up()


def _write(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
