"""Downloads against a hub of our own: whole, stopped, broken off, damaged, gated, without a connection."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from qlora_engine.control import Control
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.events import PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import PrepareModelJob
from qlora_engine.models import catalog, hub, hub_transfer, prepare, spec
from tests.support.hub import COMMIT, FakeHub, files_of, serving
from tests.support.tiny import make_tiny

NAME = "org/tiny"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_transfer, "CHUNK_BYTES", 16_384)
    monkeypatch.setattr(hub_transfer, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def server(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one sharded model, pickles and other things that nobody asked for."""
    folder = make_tiny("llama", tmp_path / "published", max_shard_size="100KB")
    files = {
        **files_of(folder),
        "pytorch_model.bin": b"\x80\x04.",
        "original/consolidated.00.pth": b"x",
        "consolidated.safetensors": b"x",
        "README.md": b"# A model",
    }
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(FakeHub(files)) as fake:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", fake.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            fake.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        # The suite as a whole runs offline, which the library reads once, when it is imported.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()
        yield fake
        huggingface_hub.close_session()


def fetch(control: Control | None = None) -> tuple[Path, list[tuple[int, int | None]]]:
    seen: list[tuple[int, int | None]] = []
    path = hub.download(
        NAME, None, control or Control(), lambda phase, done, total, unit: seen.append((done, total))
    )
    return path, seen


def test_a_model_is_downloaded_without_its_pickles(server: FakeHub, tmp_path: Path) -> None:
    path, seen = fetch()
    facts = spec.facts_of_folder(path)
    assert facts.parameters == spec.facts_of_folder(tmp_path / "published").parameters
    names = {p.name for p in path.iterdir()}
    assert {"config.json", "tokenizer.json", "README.md"} <= names
    assert not names & {"pytorch_model.bin", "consolidated.safetensors", "original"}
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert seen[-1][0] == seen[-1][1] == sum(p.stat().st_size for p in path.iterdir())
    assert catalog.resolve(NAME, offline=True).path == path


def test_weights_come_last_so_that_a_stop_never_looks_whole(server: FakeHub) -> None:
    control = Control()

    def stop_in_the_weights(phase: str, done: int, total: int | None, unit: str) -> None:
        if any("model-00002" in line for line in server.asked):
            control.request_stop()

    with pytest.raises(Cancelled):
        hub.download(NAME, None, control, stop_in_the_weights)
    assert catalog.cached_snapshot(NAME, None) is None
    assert catalog.resolve(NAME).needs == "download"
    path, _ = fetch()
    assert spec.facts_of_folder(path).layers == 2


def test_a_stopped_download_goes_on_at_the_byte_where_it_stopped(server: FakeHub, tmp_path: Path) -> None:
    control = Control()

    def stop_inside_a_shard(phase: str, done: int, total: int | None, unit: str) -> None:
        if any((tmp_path / "hub").rglob("*.partial")):
            control.request_stop()

    with pytest.raises(Cancelled):
        hub.download(NAME, None, control, stop_inside_a_shard)
    (left,) = (tmp_path / "hub").rglob("*.partial")
    kept = left.stat().st_size
    assert kept > 0
    path, _ = fetch()
    assert server.ranges[0] == f"bytes={kept}-"
    assert not list((tmp_path / "hub").rglob("*.partial"))
    assert spec.facts_of_folder(path).layers == 2


def test_a_connection_that_breaks_off_is_taken_up_again(server: FakeHub) -> None:
    server.break_after = 20_000
    path, _ = fetch()
    assert len(server.ranges) == 1
    assert spec.facts_of_folder(path).layers == 2


def test_a_server_without_ranges_starts_over(server: FakeHub) -> None:
    server.break_after, server.ignores_ranges = 20_000, True
    path, _ = fetch()
    assert spec.facts_of_folder(path).layers == 2


def test_bytes_that_are_not_the_promised_ones_are_thrown_away(server: FakeHub, tmp_path: Path) -> None:
    server.spoil = True
    with pytest.raises(EngineError, match="arrived damaged") as caught:
        fetch()
    assert caught.value.exit_code == 1
    assert not list((tmp_path / "hub").rglob("*.partial"))
    server.spoil = False
    assert fetch()[0].is_dir()


@pytest.mark.parametrize(
    ("status", "error_code", "code", "words"),
    [
        (403, "GatedRepo", "hub.gated", "an agreement"),
        (404, "RepoNotFound", "hub.not_found", "no model org/tiny"),
        (404, "RevisionNotFound", "hub.not_found", "no such revision"),
        (500, "", "hub.unreachable", "answered 500"),
    ],
)
def test_what_the_hub_answers_is_said(
    server: FakeHub, status: int, error_code: str, code: str, words: str
) -> None:
    server.status, server.error_code = status, error_code
    with pytest.raises(EngineError, match=words) as caught:
        fetch()
    assert caught.value.code == code
    assert caught.value.hint


def test_no_connection_is_said(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EngineError, match="could not be reached") as caught:
        fetch()
    assert caught.value.code == "hub.unreachable"


def test_only_pickles_is_said_before_anything_is_fetched(server: FakeHub) -> None:
    server.files = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(EngineError, match="no safetensors") as caught:
        fetch()
    assert caught.value.code == "model.pickle"
    assert len(server.asked) == 1


def test_the_hub_is_asked_for_the_model_and_nothing_else(server: FakeHub) -> None:
    fetch()
    assert server.asked
    assert not [line for line in server.asked if "org/tiny" not in line]
    assert all("torch/" not in agent for agent in server.agents)


def test_nothing_is_told_to_the_hub_unless_a_person_set_it() -> None:
    code = "import qlora_engine, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    for told, expected in (({}, "True"), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "False")):
        env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")}
        done = subprocess.run([sys.executable, "-c", code], env=env | told, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


def test_a_disk_that_is_too_small_is_said_first(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(EngineError, match="GiB left") as caught:
        fetch()
    assert caught.value.code == "disk.full"


def test_facts_come_before_the_weights(server: FakeHub, tmp_path: Path) -> None:
    facts = catalog.facts(NAME)
    assert facts.parameters == spec.facts_of_folder(tmp_path / "published").parameters
    assert (facts.revision, facts.licence, facts.stored_dtype) == (COMMIT, "mit", "BF16")
    assert facts.chat_template
    assert not any("safetensors" in line for line in server.asked)


def test_the_job_downloads_and_tells_the_revision(server: FakeHub) -> None:
    events = list(prepare.prepare_job(PrepareModelJob(NAME), Control()))
    assert events[0] == PhaseChanged("downloading", f"Downloading {NAME}")
    assert any(isinstance(e, Progressed) and e.unit == "bytes" and e.done for e in events)
    finished = events[-1]
    assert isinstance(finished, RunFinished)
    assert finished.result["facts"]["revision"] == COMMIT
    again = list(prepare.prepare_job(PrepareModelJob(NAME, offline=True), Control()))
    assert [type(e) for e in again] == [RunFinished]
