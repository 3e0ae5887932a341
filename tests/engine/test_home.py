"""Where the program's data lies: told, chosen, or usual; the same for the window, the terminal and their children."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_engine import child, home_choice, paths
from qlora_engine.errors import EngineError


@pytest.fixture(autouse=True)
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the choice, in a place of this test alone; nothing is told by the environment."""
    file = tmp_path / "config" / "home.txt"
    monkeypatch.delenv(paths.HOME_VARIABLE, raising=False)
    monkeypatch.setattr(paths, "home_file", lambda: file)
    paths._home_at_start.cache_clear()
    return file


def test_a_choice_holds_from_the_next_start_and_children_keep_this_one_s(tmp_path: Path) -> None:
    before = paths.home()
    home_choice.choose(tmp_path)
    assert paths.next_home() == tmp_path
    assert paths.home() == before == Path(child.environment()[paths.HOME_VARIABLE])
    paths._home_at_start.cache_clear()  # as the next start
    assert paths.home() == tmp_path
    home_choice.choose(None)
    assert paths.next_home() == paths.usual_home()


def test_the_environment_decides_before_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home_choice.choose(tmp_path)
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "told"))
    assert paths.home() == tmp_path / "told"


@pytest.mark.parametrize("content", [b"", b"relative/folder", b"\xff\xfe\x00"])
def test_a_damaged_note_means_the_usual_folder(note: Path, content: bytes) -> None:
    note.parent.mkdir()
    note.write_bytes(content)
    assert paths.next_home() == paths.usual_home()


def test_a_folder_that_takes_no_file_is_refused(tmp_path: Path, note: Path) -> None:
    with pytest.raises(EngineError, match="stays"):
        home_choice.choose(tmp_path / "not there")
    assert not note.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms keep choices where no variable leads")
def test_the_terminal_finds_what_the_window_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.delenv(paths.HOME_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    home_choice.choose(tmp_path)
    told = [sys.executable, "-c", "from qlora_engine import paths; print(paths.home())"]
    found = subprocess.run(told, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(tmp_path)
