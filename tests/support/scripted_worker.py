"""A worker process whose TrainJob does what the test's `config["script"]` says: for testing the pipe, not training."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the tests' own places, as in the suite

from qlora_engine import jobs, worker
from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.events import Event, PhaseChanged, Progressed, RunFinished, RunStarted, RunStopped
from qlora_engine.runs import commands
from qlora_engine.runs.record import RunFolder
from tests.support.run_folders import step_event


def scripted(job: jobs.TrainJob, control: Control) -> Iterator[Event]:
    script = job.config["script"]
    yield PhaseChanged("training", f"script {script}")
    if script == "noise":
        print("a stray print")
        sys.stdout.flush()
        os.write(1, b'{"event": "RunFinished", "result": {}}\n')
        ctypes.CDLL(None).puts(b"a stray C print")
        ctypes.CDLL(None).fflush(None)
        yield RunFinished({"script": script})
    elif script == "die":
        os.write(2, b"the last words\n")
        os._exit(7)
    elif script == "cuda":
        os.write(2, b"CUDA Error: out of memory at line 42 in file /src/csrc/ops.cu\n")
        os._exit(1)
    elif script == "bug":
        raise ZeroDivisionError("division by zero")
    elif script == "user":
        raise EngineError("model.missing", "there is no such folder", "choose another")
    elif script == "no end":
        return
    elif script == "busy":
        while True:
            time.sleep(3600)
    elif script == "in its folder":
        yield from _in_its_folder(job, control)
    elif script == "until stopped":
        yield from _until_stopped(job, control)


def _in_its_folder(job: jobs.TrainJob, control: Control) -> Iterator[Event]:
    """A run as the recipe leaves it, without training: a step every few milliseconds until the marker is there."""
    folder = RunFolder(Path(job.run_dir))
    folder.claim(as_planned=True)
    yield from _told(folder, RunStarted(folder.run_id, str(folder.path), os.getpid(), False, time.time()))
    with commands.listening(folder.path, control):
        for number in range(1, 3000):
            yield from _told(folder, step_event(number, 3000, 1.0 / number))
            if Path(job.config["marker"]).exists() or control.is_stop_requested:
                break
            time.sleep(0.01)
    folder.update(state="stopped" if control.is_stop_requested else "finished", last_step=number)
    yield RunFinished({"steps": number})


def _told(folder: RunFolder, event: Event) -> Iterator[Event]:
    folder.append(event)
    yield event


def _until_stopped(job: jobs.TrainJob, control: Control) -> Iterator[Event]:
    for number in range(3000):
        if control.is_stop_requested:
            why = "orphaned" if control.is_orphaned else control.stop_mode
            if "marker" in job.config:
                Path(job.config["marker"]).write_text(why, encoding="utf-8")
            yield RunStopped(why, is_resumable=True, result={})
            return
        yield Progressed("training", number, None, "steps")
        time.sleep(0.01)


jobs._HANDLERS[jobs.TrainJob] = "scripted_here:scripted"
sys.modules["scripted_here"] = sys.modules[__name__]

if __name__ == "__main__":
    sys.exit(worker.main())
