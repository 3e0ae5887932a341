"""How this program starts Python processes of its own: never with the current folder among the places of modules.

`python -m` puts the current folder first, so a `torch.py` or `types.py` lying where a person starts the program (a
downloaded dataset, say) would be run. Torch-free.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from qlora_engine import paths

PR_SET_PDEATHSIG = 1
FLAGS = {
    "qlora_engine.worker": "--engine-worker",
    "qlora_engine.orphan_child": "--watch-engine",
    "qlora_engine.export.verify_child": "--verify-export",
    "qlora_engine.models.class_child": "--describe-class",
    "qlora_engine.data.tokenizing_child": "--tokenize-rows",
    "qlora_engine.runs.queue_runner": "--run-queue",
    "qlora_engine.cli.torch_facts": "--torch-facts",
    "qlora_engine.memory.context_probe": "--measure-context",
}
"""How a frozen bundle, which is one executable, starts itself as each of them."""


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` of this program in a process of its own."""
    if getattr(sys, "frozen", False):
        return [sys.executable, FLAGS[module], *arguments]
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(known: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of such a process, for its own children too: this program's place first, no relative ones, and this
    program's home, whatever is chosen in between."""
    found = dict(os.environ if known is None else known)
    found.setdefault(paths.HOME_VARIABLE, str(paths.home()))
    root = str(Path(__file__).resolve().parent.parent)
    places = [place for place in found.get("PYTHONPATH", "").split(os.pathsep) if Path(place).is_absolute()]
    found["PYTHONPATH"] = os.pathsep.join([root, *(place for place in places if place != root)])
    found["PYTHONSAFEPATH"] = "1"
    return found


def end_with_parent() -> None:
    """For a process that answers its parent and keeps nothing: on Linux the system ends it with the thread that started it,
    whatever it is doing then. Elsewhere it ends when it next reads, which code in C may put off for ever."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def forget_current_folder() -> None:
    """For an entry point: modules are never looked for where the person happens to stand, here or in a child."""
    os.environ["PYTHONSAFEPATH"] = "1"
    root = str(Path(__file__).resolve().parent.parent)
    kept = [place for place in sys.path if place == root or place not in ("", str(Path.cwd()))]
    sys.path[:] = kept if root in kept or len(kept) == len(sys.path) else [root, *kept]
