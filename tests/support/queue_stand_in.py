"""A queue whose runs cost milliseconds: `python queue_stand_in.py KILLS SEED` starts its runner again and again, and kills
it at random moments, then lets it end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from qlora_engine import paths
from qlora_engine.events import Event, RunFailed, RunFinished, RunStarted
from qlora_engine.jobs import Job
from qlora_engine.runs.queue_runner import Runner
from qlora_engine.runs.record import RunFolder
from tests.support.run_folders import add_checkpoint

STEPS = 4
STEP_SECONDS = 0.004


class StandIn:
    """An engine that keeps a checkpoint a step, in this process. A run whose name begins with `bad` fails."""

    def run(self, job: Job) -> Iterator[Event]:
        folder = RunFolder(Path(job.run_dir))  # type: ignore[attr-defined]
        folder.claim()
        note(f"begin {folder.run_id}")
        yield RunStarted(folder.run_id, str(folder.path), os.getpid(), False, 0.0)
        if folder.run_id.startswith("bad"):
            folder.update(state="failed", error={"code": "x", "message": "it is bad", "hint": ""})
            folder.release()
            yield RunFailed("x", "it is bad", "")
            return
        done = max((int(path.name.removeprefix("step-")) for path in folder.checkpoints()), default=0)
        for step in range(done + 1, STEPS + 1):
            time.sleep(STEP_SECONDS)
            shutil.rmtree(
                folder.checkpoints_dir / f"step-{step}", ignore_errors=True
            )  # half-written by one killed
            add_checkpoint(folder, step)
        folder.update(state="finished")
        folder.release()
        yield RunFinished({})

    def request_stop(self, mode: str = "save") -> None:
        raise AssertionError("nobody asks")


def note(line: str) -> None:
    with (paths.home() / "ledger").open("a", encoding="utf-8") as ledger:
        ledger.write(line + "\n")


def work() -> None:
    Runner("cpu", make_engine=StandIn).run()  # type: ignore[arg-type]


def main(kills: int, seed: int) -> None:
    chance = random.Random(seed)
    killed = 0
    while killed < kills:
        child = os.fork()
        if child == 0:
            work()
            os._exit(0)
        time.sleep(chance.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += 1
        if not os.WIFSIGNALED(status):  # everything was done before the kill: enough
            break
    note(f"killed {killed}")
    work()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
