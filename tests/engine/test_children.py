"""Code that lies in the current folder never runs: every process of this program is started with a safe path."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from qlora_engine import child

ROOT = Path(__file__).resolve().parents[2]
STARTS = re.compile(
    r"subprocess\.(Popen|run|call|check_\w+)\(|multiprocessing\.(Process|Pool|get_context)|\bos\.(exec|spawn|system|popen)\w*\("
)
BAD_NAMES = (
    "torch", "types", "json", "enum", "typing", "logging", "psutil", "numpy", "transformers", "bitsandbytes", "click",
    "tomllib", "signal", "PySide6", "random", "sitecustomize", "app", "qlora_engine", "resources",
)  # fmt: skip


def modules() -> list[str]:
    """The modules that this program starts as processes, as its source names them."""
    text = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "qlora_engine").rglob("*.py"))
    return sorted(set(re.findall(r'child\.command\(\s*"([\w.]+)"', text)))


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder such as a downloaded dataset, with files that leave a mark when they are run."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    code = f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__ + '\\n')\nraise SystemExit(99)\n"
    for name in BAD_NAMES:
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return folder


def start(command: list[str], trap: Path, places: str, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": places, "QLORA_HOME": str(trap.parent / "home")}
    return subprocess.run(
        command, cwd=trap, env=child.environment(environment), input=text, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("places", ["", ".", f"{os.pathsep}.{os.pathsep}"], ids=["none", "here", "empty"])
@pytest.mark.parametrize("module", modules())
def test_no_process_runs_what_lies_in_the_current_folder(module: str, places: str, trap: Path) -> None:
    arguments = ["0"] if module.endswith("context_probe") else []
    quick = trap.parent / "elsewhere"
    quick.mkdir()
    (quick / "torch.py").write_text(
        "raise SystemExit(7)", encoding="utf-8"
    )  # the right one would take ten seconds
    done = start(child.command(module, *arguments), trap, f"{places}{os.pathsep}{quick}")
    assert not (trap.parent / "ran").exists()
    assert done.returncode != 99


@pytest.mark.parametrize("guard", ["command", "environment"])
def test_either_guard_alone_keeps_the_current_folder_out(guard: str, trap: Path) -> None:
    """The command line, for one whose environment is made by others; the environment, for what a child starts."""
    command = child.command("qlora_engine.data.tokenizing_child")
    environment = child.environment({**os.environ, "QLORA_HOME": str(trap.parent / "home")})
    if guard == "command":
        environment.pop("PYTHONSAFEPATH")
    else:
        command.remove("-P")
    subprocess.run(
        command, cwd=trap, env=environment, input="", text=True, capture_output=True, timeout=120, check=False
    )
    assert not (trap.parent / "ran").exists()


def test_every_process_was_found() -> None:
    assert modules() == [
        "qlora_engine.cli.torch_facts", "qlora_engine.data.tokenizing_child", "qlora_engine.export.verify_child",
        "qlora_engine.memory.context_probe",
        "qlora_engine.models.class_child", "qlora_engine.orphan_child", "qlora_engine.runs.queue_runner", "qlora_engine.worker",
    ]  # fmt: skip


STUCK = """
import importlib, os, re, sys
class Stuck:
    def read(self, *_):
        os.write(2, f"{os.getpid()}\\n".encode())
        re.match("(a+)+$", "a" * 60 + "b")
Stuck.buffer = Stuck()
main = importlib.import_module("MODULE").main
sys.stdin = Stuck()
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
@pytest.mark.parametrize(
    "module",
    [
        "qlora_engine.data.tokenizing_child",
        pytest.param("qlora_engine.models.class_child", marks=pytest.mark.slow),
        pytest.param("qlora_engine.export.verify_child", marks=pytest.mark.slow),
    ],
)
def test_what_answers_a_parent_ends_with_it_even_inside_c_code(module: str) -> None:
    """A regular expression that tries for ever holds Python's lock: nothing in the process can look for its parent."""
    command = [sys.executable, "-P", "-c", STUCK.replace("MODULE", module)]
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", f"import subprocess; subprocess.run({command!r})"],
        stderr=subprocess.PIPE, text=True, env=child.environment(),
    )  # fmt: skip
    assert parent.stderr is not None
    stuck = psutil.Process(int(next(line for line in parent.stderr if line.strip().isdigit())))
    parent.kill()
    parent.wait()
    parent.stderr.close()
    assert not psutil.wait_procs([stuck], timeout=20)[1]


@pytest.mark.parametrize("place", ["qlora_engine", "app"])
def test_no_process_is_started_another_way(place: str) -> None:
    """Whoever starts a Python process takes its command line from `child`; modules that start other programs are named
    here."""
    for path in sorted((ROOT / place).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "sys.executable" not in text or path.name == "child.py", path
        if path.name == "awake.py":
            assert 'return ["caffeinate", ' in text
            assert 'return ["systemd-inhibit", ' in text
            assert len(STARTS.findall(text)) == 1
        elif STARTS.search(text):
            assert "child.command(" in text, path
            assert "child.environment(" in text, path


@pytest.mark.parametrize("module", ["qlora_engine.cli.main", "app.main"])
def test_started_by_hand_with_m_the_program_forgets_the_current_folder(module: str, trap: Path) -> None:
    """What Python itself imports before the program's first line is out of reach; torch and the rest are not."""
    for name in BAD_NAMES:
        if name not in ("torch", "transformers", "bitsandbytes", "numpy"):
            (trap / f"{name}.py").unlink()
    script = (
        f"import sys; sys.path.insert(0, ''); sys.argv = ['x', '--version']; import {module}; "
        "from qlora_engine import child; child.forget_current_folder(); import importlib.util as u; "
        "print(all(str(u.find_spec(n).origin).find('downloads') < 0 for n in ('torch', 'numpy')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "QT_QPA_PLATFORM": "offscreen"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=trap, env=environment, capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "True"
    text = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
    assert "child.forget_current_folder()" in text


def test_the_trap_works(trap: Path) -> None:
    """Else the tests above would prove nothing."""
    command = [sys.executable, "-m", "qlora_engine.worker"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONSAFEPATH", None)
    subprocess.run(
        command, cwd=trap, env=environment, input="", capture_output=True, text=True, check=False, timeout=60
    )
    assert (trap.parent / "ran").exists()


@pytest.mark.parametrize("module", modules())
def test_a_frozen_bundle_can_start_every_process(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its one executable knows each by a flag; the entry imports it by name, since a bundle holds only what is imported."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    flag = child.command(module)[1]
    entry = (ROOT / "packaging" / "frozen_entry.py").read_text(encoding="utf-8")
    after = entry.split(f'["{flag}"]')[1].split("return")[0]
    assert f"from {module} import main as" in after
