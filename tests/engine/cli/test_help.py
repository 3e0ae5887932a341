"""The help that ships with the program: complete, and in step with the code."""

from __future__ import annotations

import re

import pytest

from qlora_engine import paths
from qlora_engine.cli import reference
from qlora_engine.cli.main import COMMANDS
from qlora_engine.config import all_knobs

PAGES = ("start", "model", "data", "memory", "train", "try", "export", "runs", "options")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_there(page: str) -> None:
    text = (paths.resources_dir() / "help" / f"{page}.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "!" not in text.replace("!=", "")


def test_the_reference_is_what_the_knobs_say() -> None:
    """Regenerate with `python -m qlora_engine.cli.reference`."""
    assert reference.reference_path().read_text(encoding="utf-8") == reference.markdown()


def test_the_reference_names_every_option() -> None:
    text = reference.markdown()
    for path in all_knobs():
        assert f"`{path.split('.', 1)[1]}`" in text


def test_help_names_only_commands_that_exist() -> None:
    for page in PAGES:
        text = (paths.resources_dir() / "help" / f"{page}.md").read_text(encoding="utf-8")
        for name in re.findall(r"`qlora (\w+)", text) + re.findall(r"^    qlora (\w+)", text, re.MULTILINE):
            assert name in COMMANDS, f"{page}.md names `qlora {name}`"
