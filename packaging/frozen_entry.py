"""Entry of the frozen bundle: one executable is the window, the engine process and the command line.

`launch.worker_command` starts a frozen bundle with `--engine-worker`, the proof of an export with `--verify-export`,
the description of a model class with `--describe-class`, and so on (`child.FLAGS`); `--cli` is `qlora`.
"""

from __future__ import annotations

import multiprocessing
import sys


def main() -> int:
    multiprocessing.freeze_support()
    if sys.argv[1:2] == ["--engine-worker"]:
        from qlora_engine.worker import main as work

        return work()
    if sys.argv[1:2] == ["--verify-export"]:
        from qlora_engine.export.verify_child import main as verify

        return verify()
    if sys.argv[1:2] == ["--describe-class"]:
        from qlora_engine.models.class_child import main as describe

        return describe()
    if sys.argv[1:2] == ["--tokenize-rows"]:
        from qlora_engine.data.tokenizing_child import main as tokenize

        return tokenize()
    if sys.argv[1:2] == ["--run-queue"]:
        from qlora_engine.runs.queue_runner import main as run_queue

        return run_queue()
    if sys.argv[1:2] == ["--watch-engine"]:
        from qlora_engine.orphan_child import main as watch

        return watch(*sys.argv[2:4])
    if sys.argv[1:2] == ["--torch-facts"]:
        from qlora_engine.cli.torch_facts import main as tell

        return tell()
    if sys.argv[1:2] == ["--measure-context"]:
        from qlora_engine.memory.context_probe import main as measure

        return measure(sys.argv[2:])
    if sys.argv[1:2] == ["--cli"]:
        from qlora_engine.cli.main import run

        return run(sys.argv[2:])
    from app.main import main as open_window

    return open_window() or 0


if __name__ == "__main__":
    sys.exit(main())
