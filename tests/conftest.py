"""What every test shares: a busy machine is no failure, so no generated example has a deadline of its own; and the files
that take minutes begin first, or one worker would be at them when the other has nothing left to do."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import tempfile

import pytest
from hypothesis import settings

OWN_HUB = tempfile.mkdtemp(prefix="qlora-tests-hub-")
"""What the person at this machine has downloaded, or their token, changes nothing here. Read when the hub's library is imported."""
os.environ["HF_HOME"] = OWN_HUB
os.environ.pop("HF_HUB_CACHE", None)
atexit.register(shutil.rmtree, OWN_HUB, ignore_errors=True)
importlib.import_module(
    "qlora_engine"
)  # before the hub's library, as in the program, which tells that what to tell

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

LONGEST = (
    "e2e/test_window_run.py",
    "e2e/test_headless.py",
    "gpu/test_offline.py",
    "engine/cli/test_train.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """After the shuffle; the order within a file and among all others stays."""
    items.sort(key=lambda item: _turn(item.path.as_posix()))


def _turn(path: str) -> int:
    return next((turn for turn, name in enumerate(LONGEST) if path.endswith(name)), len(LONGEST))
