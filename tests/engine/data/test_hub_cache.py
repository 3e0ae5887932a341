"""Datasets that lie in the hub's cache are read without the hub: offline, and where there is no connection."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from qlora_engine import data
from qlora_engine.config import DataSettings
from qlora_engine.errors import EngineError
from tests.support.tiny import tiny_tokenizer

NAME, COMMIT, OLDER = "org/Set_of-rows", "0123456789abcdef0123456789abcdef01234567", "f" * 40


def parquet(rows: int, first: int = 0) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([{"question": f"How many are {n}?", "answer": f"There are {n}."} for n in range(first, first + rows)])  # fmt: skip
    pa.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def cached(root: Path, files: dict[str, bytes], commit: str = COMMIT, branch: str = "main") -> Path:
    """As `hf download` leaves it: a link in the snapshot for every file, and what the branch stands for."""
    place = root / "datasets--org--Set_of-rows"
    for number, (name, content) in enumerate(files.items()):
        blob, link = place / "blobs" / f"{commit[:4]}{number}", place / "snapshots" / commit / name
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if branch:
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / branch).write_text(commit, encoding="utf-8")
    return place


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    import datasets.config

    def refuse(*_: object, **__: object) -> None:
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def read(split: str = "train", **options: Any) -> data.PreparedData:
    settings = DataSettings(path=NAME, split=split, held_out_fraction=0.0)
    return data.prepare(settings, tiny_tokenizer(), seed=1, is_look=True, **options)


FILES = {
    "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
    b"  - split: test\n    path: data/test-*\n---\n# Rows\n",
    "data/train-00000-of-00002.parquet": parquet(5),
    "data/train-00001-of-00002.parquet": parquet(4, 5),
    "data/test-00000-of-00001.parquet": parquet(3, 20),
}


def test_what_was_downloaded_is_read_offline_part_by_part(hub: Path) -> None:
    cached(hub, FILES)
    prepared = read()
    assert (len(prepared.store), prepared.store.origin) == (9, NAME)
    assert prepared.store.row(9) == {"question": "How many are 8?", "answer": "There are 8."}
    assert f"{NAME}: read from the hub's cache, commit {COMMIT[:12]}." in prepared.report.notices
    assert len(read("test").store) == 3
    with pytest.raises(EngineError, match=r"lies in the hub's cache and could not be read: .*dev"):
        read("dev")


def test_the_setting_alone_asks_no_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    cached(hub, FILES)
    assert len(read(is_offline=True).store) == 9


def test_the_main_branch_is_read_and_without_it_the_newest(hub: Path) -> None:
    place = cached(hub, {"train.jsonl": b'{"question": "new?", "answer": "new"}\n'})
    cached(hub, {"train.jsonl": b'{"question": "old?", "answer": "old"}\n'}, OLDER, branch="")
    os.utime(place / "snapshots" / COMMIT, (1e9, 1e9))
    assert read().store.row(1)["answer"] == "new"
    (place / "refs" / "main").unlink()
    assert read().store.row(1)["answer"] == "old"


def test_a_part_of_a_dataset_is_not_taken_for_the_whole(hub: Path) -> None:
    cached(hub, {name: content for name, content in FILES.items() if "00001-of-00002" not in name})
    with pytest.raises(
        EngineError, match="only 1 of 2 parts of train of the dataset org/Set_of-rows lies in"
    ) as caught:
        read()
    assert "hf download org/Set_of-rows --repo-type dataset" in caught.value.hint


def test_a_description_alone_is_no_dataset(hub: Path) -> None:
    cached(hub, {"README.md": FILES["README.md"]})
    with pytest.raises(EngineError, match="is not on this disk, and the program is set to stay offline"):
        read()


def test_without_a_connection_the_cache_is_read(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    for place in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(EngineError, match="check the name, the split and the connection"):
        read()
    cached(hub, FILES)
    assert len(read().store) == 9


def test_a_hub_that_knows_better_is_believed(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("it is gated")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    cached(hub, FILES)
    with pytest.raises(EngineError, match=r"^the dataset \S+ \(train\) could not be read: it is gated"):
        read()
