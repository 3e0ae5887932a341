"""A process that tokenizes: a plan and blocks of rows on stdin, what became of them on stdout; ends with its parent."""

from __future__ import annotations

import os
import sys

from qlora_engine import child


def main() -> int:
    """Entry point of the process."""
    child.forget_current_folder()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from qlora_engine.data import parallel, working

    try:
        plan = parallel.receive(sys.stdin.buffer)
        while True:
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
