"""Uploads through the real hub client to a hub on this machine: private, proven, gone on with, and never with a stored token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner

from qlora_engine.cli.main import cli
from qlora_engine.client import InlineEngine
from qlora_engine.events import Event, Noticed, PhaseChanged, Progressed, RunFailed, RunFinished, RunStopped
from qlora_engine.jobs import PushJob
from tests.support.upload_hub import UploadHub, receiving

# The hub's client hands file objects to httpx in the older of its two ways.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_secret_of_this_test"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    constants = huggingface_hub.constants
    with receiving(UploadHub()) as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of four files, two of them large."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-00001-of-00002.safetensors").write_bytes(b"a" * 5000)
    (out / "model-00002-of-00002.safetensors").write_bytes(b"b" * 7000)
    (out / "README.md").write_text("---\ntags: [qlora]\n---\nHello")
    (out / "proof.json").write_text(json.dumps({"is_proven": True}))
    return out


def pushed(folder: Path, **options: Any) -> list[Event]:
    return list(InlineEngine().run(PushJob(str(folder), options.pop("repository", "me/tuned"), **options)))


def test_an_export_arrives_whole_and_private(hub: UploadHub, folder: Path) -> None:
    events = pushed(folder)
    end = events[-1]
    assert isinstance(end, RunFinished), end
    assert hub.files == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert hub.is_private is True
    assert end.result["is_private"] is True
    plan = next(e for e in events if isinstance(e, Noticed))
    assert "4 files" in plan.message
    assert "private" in plan.message
    shares = [e for e in events if isinstance(e, Progressed)]
    assert shares[-1].done == shares[-1].total == sum(p.stat().st_size for p in folder.iterdir())
    assert events.index(plan) < events.index(next(e for e in events if isinstance(e, PhaseChanged)))
    assert f"Bearer {TOKEN}" in hub.tokens  # the hub's own store gave it ...
    assert TOKEN not in "".join(map(repr, events))  # ... and nothing repeats it
    assert not any(TOKEN.encode() in p.read_bytes() for p in folder.iterdir())


def test_public_only_when_asked_and_never_by_surprise(hub: UploadHub, folder: Path) -> None:
    assert isinstance(pushed(folder, is_public=True)[-1], RunFinished)
    assert hub.is_private is False
    hub.files.clear()
    end = pushed(folder)[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "push.public"
    assert hub.files == {}


def test_what_is_not_proven_is_refused_unless_asked(hub: UploadHub, folder: Path) -> None:
    (folder / "proof.json").write_text(json.dumps({"is_proven": False}))
    end = pushed(folder)[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "push.unproven"
    assert hub.is_private is None  # nobody was asked anything
    assert isinstance(pushed(folder, allow_unproven=True)[-1], RunFinished)
    (folder / "proof.json").unlink()
    end = pushed(folder, allow_unproven=True)[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "push.no_export"


def test_without_a_token_the_next_step_is_said(
    hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    end = pushed(folder)[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "hub.no_token"
    assert "hf auth login" in end.hint


@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_does_not_let_you_is_said(hub: UploadHub, folder: Path, status: int) -> None:
    hub.status = status
    end = pushed(folder)[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "hub.denied"
    assert str(status) in end.message


def test_a_cut_connection_keeps_what_arrived_and_goes_on(
    hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits longer and longer between its tries
    hub.break_at_put = 1
    end = pushed(folder)[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "hub.unreachable"
    assert "not sent a second time" in end.hint
    assert len(hub.objects) == 1
    assert hub.files == {}  # nobody sees half an export
    hub.break_at_put = None
    assert isinstance(pushed(folder)[-1], RunFinished)
    assert len(hub.puts) == 2  # the first file was not sent again
    assert len(hub.files) == 4


def test_a_stop_shows_nobody_half_an_export(hub: UploadHub, folder: Path) -> None:
    engine, seen = InlineEngine(), []
    for event in engine.run(PushJob(str(folder), "me/tuned")):
        seen.append(event)
        if isinstance(event, Noticed):
            engine.request_stop()
    assert isinstance(seen[-1], RunStopped)
    assert hub.files == {}


def test_a_name_without_an_owner_is_an_input_error(folder: Path) -> None:
    end = pushed(folder, repository="tuned")[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "push.name"


def test_the_command_uploads_and_answers_in_json(hub: UploadHub, folder: Path) -> None:
    found = CliRunner().invoke(cli, ["--engine", "inline", "push", str(folder), "me/tuned", "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["repository"] == "me/tuned"
    assert hub.is_private is True
