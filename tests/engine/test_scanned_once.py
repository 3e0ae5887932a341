"""transformers reads each file of its model types once in an engine, and knows the same names as ever."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, os, sys
from collections import Counter
listed = Counter()
sys.addaudithook(lambda name, given: name == "os.scandir" and listed.update([str(given[0])]))
if sys.argv[1] == "once":
    from qlora_engine import scanned_once
    scanned_once.install(); scanned_once.install()
import transformers, transformers.models
folder = os.path.dirname(transformers.models.__file__)
known = {name: sorted(vars(module)["_class_to_module"].items())
         for name, module in (("all", transformers), ("models", transformers.models))}
print(json.dumps({"times": listed[folder], "known": known, "class": transformers.LlamaConfig.__module__}))
"""


def seen(way: str) -> Any:
    """Of a clean interpreter: how often the folder of all model types was listed, and what is found where."""
    command = [sys.executable, "-c", SCRIPT, way]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def twice() -> Any:
    return seen("twice")


def test_model_types_are_looked_through_once(twice: Any) -> None:
    found = seen("once")
    assert found["times"] == 1 < twice["times"]
    assert found["known"] == twice["known"]
    assert len(found["known"]["all"]) > 1000
    assert found["class"] == twice["class"]
