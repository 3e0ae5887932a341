"""Every wrong input of a run: exit code 2, one sentence, the next step, no traceback, nothing left "running"."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ERROR_FORM = re.compile(r"^error: .+; hint: .+[^.]$")


@pytest.fixture
def train(qlora: Any, tiny_model: Path, good_rows: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train from a job of good model and data, with the given settings changed."""
    job = tmp_path / "job.toml"

    def call(*changes: str, model: Path | str = tiny_model, data: Path | str = good_rows) -> Any:
        settings = ["model.device=cpu", "training.max_steps=1", "training.effective_batch=2", *changes]
        job.write_text(
            f"[model]\nname = {json.dumps(str(model))}\n[data]\npath = {json.dumps(str(data))}\n", "utf-8"
        )
        return qlora("train", job, *(part for setting in settings for part in ("--set", setting)))

    return call


def assert_refused(result: Any, *words: str) -> None:
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert ERROR_FORM.match(result.error), result.error
    for word in words:
        assert word in result.error, result.error


def broken_model(tiny_model: Path, folder: Path, name: str) -> Path:
    """A copy of the tiny model with one thing wrong."""
    model = folder / name
    shutil.copytree(tiny_model, model)
    weights = model / "model.safetensors"
    match name:
        case "no-config":
            (model / "config.json").unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "pickled":
            weights.rename(model / "pytorch_model.bin")
        case "unknown":
            config = json.loads((model / "config.json").read_text(encoding="utf-8"))
            config |= {"model_type": "mystery", "architectures": ["MysteryForCausalLM"]}
            (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return model


MODELS = {
    "no-config": ("has no config.json",),
    "truncated": ("model.safetensors", "cut short"),
    "pickled": ("pickles", "pytorch_model.bin"),
    "unknown": ("mystery",),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("command", ["inspect", "estimate", "train"])
def test_broken_models(
    name: str, command: str, qlora: Any, train: Any, tiny_model: Path, tmp_path: Path
) -> None:
    model = broken_model(tiny_model, tmp_path, name)
    result = train(model=model) if command == "train" else qlora(command, model)
    assert_refused(result, *MODELS[name])


def test_missing_folder(qlora: Any, train: Any, tmp_path: Path) -> None:
    missing = tmp_path / "not" / "there"
    for result in (qlora("inspect", missing), qlora("estimate", missing), train(model=missing)):
        assert_refused(result, str(missing))


DATASETS = {
    "empty.jsonl": ("", ("empty",)),
    "broken.jsonl": (
        '{"instruction": "a", "input": "", "output": "b"}\n{"instruction": "a", \n',
        ("line 2",),
    ),
    "columns.jsonl": ('{"foo": "a", "bar": "b"}\n' * 4, ("foo", "bar")),
    "answerless.jsonl": ('{"instruction": "a", "input": "", "output": ""}\n' * 4, ("its output is empty",)),
}


@pytest.mark.parametrize("name", DATASETS)
def test_unusable_datasets(name: str, qlora: Any, train: Any, tiny_model: Path, tmp_path: Path) -> None:
    text, words = DATASETS[name]
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    assert_refused(qlora("data", file, "--model", tiny_model), *words)
    assert_refused(train(data=file), *words)


def test_rows_whose_answers_are_all_cut_off(
    qlora: Any, train: Any, tiny_model: Path, good_rows: Path
) -> None:
    too_short = "data.seq_len=8"
    for result in (qlora("data", good_rows, "--model", tiny_model, "--set", too_short), train(too_short)):
        assert_refused(result, "trained")


def test_missing_dataset(qlora: Any, train: Any, tiny_model: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl"
    assert_refused(qlora("data", missing, "--model", tiny_model), "none.jsonl")
    assert_refused(train(data=missing), "none.jsonl")


@pytest.mark.parametrize(
    ("setting", "path"),
    [("lora.rank=0", "lora.rank"), ("training.learning_rate=nan", "training.learning_rate")],
)
def test_impossible_settings(setting: str, path: str, train: Any) -> None:
    assert_refused(train(setting), path)


def test_a_runs_folder_that_cannot_be_written(train: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    assert_refused(train(f"output.runs_dir={blocked}/runs"), "cannot be written", "output.runs_dir")


def test_a_disk_that_is_too_small(train: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(home.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert_refused(train(), "free")


def test_a_refused_run_is_not_running(train: Any, qlora: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    train(data=empty)
    assert {run["state"] for run in qlora("runs", "--json").document["runs"]} == {"failed"}
