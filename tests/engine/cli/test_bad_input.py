"""Every wrong input of a run: exit code 2, one sentence, the next step, no traceback, nothing left "running"."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
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
        case "no-weights":
            weights.unlink()
        case "no bytes":
            weights.write_bytes(b"")
        case "not safetensors":
            weights.write_bytes(b"\xff" * 5000)
        case "broken config":
            (model / "config.json").write_text('{"model_type": ', encoding="utf-8")
        case "unknown":
            config = json.loads((model / "config.json").read_text(encoding="utf-8"))
            config |= {"model_type": "mystery", "architectures": ["MysteryForCausalLM"]}
            (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return model


MODELS = {
    "no-config": ("has no config.json",),
    "truncated": ("model.safetensors", "cut short"),
    "pickled": ("pickles", "pytorch_model.bin"),
    "unknown": ("mystery", "known: "),
    "no-weights": ("no model.safetensors",),
    "no bytes": ("model.safetensors", "0 bytes"),
    "not safetensors": ("model.safetensors", "not a safetensors file"),
    "broken config": ("config.json", "line 1"),
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
        '{"instruction": "a", \n' * 2,
        ("no row of", "broken.jsonl, row 1", "broken JSON"),
    ),
    "columns.jsonl": ('{"foo": "a", "bar": "b"}\n' * 4, ("foo", "bar")),
    "answerless.jsonl": ('{"instruction": "a", "input": "", "output": ""}\n' * 4, ("its output is empty",)),
    "header-only.csv": ("instruction,output\n", ("has no rows",)),
    "number.json": ("3", ("no list of rows",)),
    "null.jsonl": ("null\n", ("row 1", "must be an object")),
    "binary.jsonl": ("\ud800", ("row 1", "UTF-8")),
    "words.xyz": ("words", (".xyz", ".jsonl")),
    "cut.parquet": ("PAR1", ("Parquet",)),
}


@pytest.mark.parametrize("name", DATASETS)
def test_unusable_datasets(name: str, qlora: Any, train: Any, tiny_model: Path, tmp_path: Path) -> None:
    text, words = DATASETS[name]
    file = tmp_path / name
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
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


def test_an_offline_program_asks_no_hub(
    qlora: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def note(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", note)
    offline = ("--set", "model.offline=true")
    assert_refused(qlora("data", "no-such/dataset", "--model", tiny_model, *offline), "stay offline")
    assert_refused(qlora("data", "starter", "--model", "no-such/model", *offline), "stay offline")
    assert asked == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("lora.rank=0", "lora.rank"),
        ("lora.rnk=8", "did you mean 'lora.rank'"),
        ('lora.targets=["foo_proj"]', "known: "),
        ("lora.init=pissa", "lora.init"),
        ("training.learning_rate=nan", "training.learning_rate"),
        ("training.micro_batch=3", "must divide the effective batch"),
        ("training.effective_batch=0", "training.effective_batch"),
        ("quantization.compute_dtype=fp16", "quantization.compute_dtype"),
        ("data.chat_template=none-such", "there is no chat template"),
        ("data.columns={instruction = 'question'}", "no column 'question'"),
        ("data.held_out_path=/none/such.jsonl", "/none/such.jsonl"),
    ],
)
def test_impossible_settings(setting: str, words: str, train: Any) -> None:
    assert_refused(train(setting), words)


def test_a_machine_without_the_gpu_that_was_asked_for(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(train("model.device=cuda"), "torch sees none", "model.device")


def test_a_folder_instead_of_a_job_file(qlora: Any, tmp_path: Path) -> None:
    assert_refused(qlora("train", tmp_path), "is a folder", "job.toml")


def test_a_gguf_file_that_is_none(qlora: Any, train: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model")
    for result in (qlora("inspect", file), train(model=file)):
        assert_refused(result, "model.gguf", "does not begin with GGUF")
    assert_refused(qlora("inspect", tmp_path / "none.gguf"), "there is no file")


def test_a_runs_folder_that_cannot_be_written(train: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    assert_refused(train(f"output.runs_dir={blocked}/runs"), "cannot be written", "output.runs_dir")


def test_a_run_name_that_is_taken(train: Any, home: Path) -> None:
    assert train("output.name=one").code == 0
    assert_refused(train("output.name=one"), "'one' exists already", "output.name")


def test_what_cannot_be_exported(train: Any, qlora: Any, home: Path, tmp_path: Path, good_rows: Path) -> None:
    assert train("output.name=one").code == 0
    taken = good_rows.parent
    assert_refused(qlora("export", "one", "--as", "merged", "--out", taken), "not an empty folder")
    below_a_file = good_rows / "out"
    assert_refused(qlora("export", "one", "--as", "adapter", "--out", below_a_file), "cannot be written")
    assert_refused(qlora("export", "one", "--as", "zip", "--out", tmp_path / "out"), "'zip' is not one of")
    shutil.rmtree(home / "runs" / "one" / "adapter")
    assert_refused(qlora("export", "one", "--as", "merged", "--out", tmp_path / "out"), "has no adapter")


def test_an_export_to_a_disk_that_is_too_small(
    train: Any, qlora: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("output.name=one").code == 0
    usage = shutil.disk_usage(home.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert_refused(
        qlora("export", "one", "--as", "merged", "--out", tmp_path / "out"), "GiB left", "free some space"
    )
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_go_on(train: Any, qlora: Any, home: Path) -> None:
    assert train("output.name=one").code == 0
    assert_refused(qlora("resume", "one"), "is finished", "new run")
    assert_refused(qlora("resume", "none"), "no run 'none'", "qlora runs")


def test_the_starter_with_a_taken_folder_fails_before_it_trains(
    qlora: Any, home: Path, good_rows: Path
) -> None:
    assert_refused(qlora("starter", "--out", good_rows.parent), "not an empty folder")
    assert not (home / "runs").exists()


@pytest.mark.slow
def test_a_refusal_of_the_engine_process_reads_the_same(tiny_model: Path, home: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(f"[model]\nname = {json.dumps(str(tmp_path / 'none'))}\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "QLORA_ENGINE"}
    done = subprocess.run(
        [sys.executable, "-m", "qlora_engine.cli.main", "train", str(job), "--json"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"error: there is no folder {tmp_path / 'none'}; hint: check the path, or choose another model\n"
    )


def test_a_disk_that_is_too_small(train: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(home.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert_refused(train(), "free")


def test_a_refused_run_is_not_running(train: Any, qlora: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    train(data=empty)
    assert {run["state"] for run in qlora("runs", "--json").document["runs"]} == {"failed"}
