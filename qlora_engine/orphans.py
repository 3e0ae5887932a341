"""The engine's end of its watcher (`orphan_child`): starts it, tells it that the engine noticed, lets it go. Torch-free."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess

from qlora_engine import child

DRIVER_VARIABLE = "QLORA_DRIVER"
"""Who drives the engine. Not always its parent: a virtual environment on Windows starts Python by way of a launcher."""


class Watcher:
    """A process that ends this one when its driver has gone. An engine whose watcher cannot start goes on without."""

    def __init__(self) -> None:
        driver = os.environ.get(DRIVER_VARIABLE, "") or str(os.getppid())
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                child.command("qlora_engine.orphan_child", driver, str(os.getpid())),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=child.environment(),
                start_new_session=True,  # a closed terminal is what it is there for
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            logging.getLogger(__name__).warning("nothing will end this engine if its driver goes: %s", error)

    def noticed(self) -> None:
        """This engine knows that nobody reads it, and will save and end: from here on the clock counts."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(b"noticed\n")
                self._process.stdin.flush()

    def end(self) -> None:
        """This engine may go on without anyone."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
