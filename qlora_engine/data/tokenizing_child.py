"""A process that tokenizes: a plan and blocks of rows on stdin, what became of them on stdout; ends with its parent."""

from __future__ import annotations

import gc
import os
import sys

from qlora_engine import child

BLOCKS_BETWEEN_COLLECTIONS = 50


def main() -> int:
    """Entry point of the process."""
    child.forget_current_folder()
    child.end_with_parent()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from qlora_engine.data import last_resort, parallel, working

    last_resort.arm()
    gc.disable()  # millions of small tuples and no cycles: looking for them costs a third of the time
    try:
        plan = parallel.receive(sys.stdin.buffer)
        count = 0
        while True:
            count += 1
            if count % BLOCKS_BETWEEN_COLLECTIONS == 0:
                gc.collect()
            block = parallel.receive(sys.stdin.buffer)
            try:
                answer: object = working.work(plan, block)
            except Exception as error:  # noqa: BLE001 - raised again in the parent
                answer = parallel.Failure.of(error)
            parallel.send(out, answer)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return 0


if __name__ == "__main__":
    sys.exit(main())
