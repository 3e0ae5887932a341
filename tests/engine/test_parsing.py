"""Every reader of text that others wrote answers the worst of it with a sentence, or goes without; none with a bug."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import config_io, errors, events, jobs, parsing
from qlora_engine.config import DataSettings, TrainingConfig, with_value
from qlora_engine.data import sources
from qlora_engine.errors import EngineError
from qlora_engine.models import files, gguf_header
from qlora_engine.monitor import trace
from qlora_engine.runs.record import RunFolder, is_complete
from qlora_engine.runs.summary import list_runs

ROOT = Path(__file__).resolve().parents[2]
DIRECT = re.compile(r"\bjson\.loads?\(|\btomllib\b|\btomlkit\.(parse|loads?)\(|JSONDecoder")

DEEP, DIGITS = 100_000, 6_000
JSON_TEXTS = {
    "nested lists": "[" * DEEP + "]" * DEEP,
    "nested objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "nested in an object": '{"data": ' + "[" * DEEP + "]" * DEEP + "}",
    "just too deep": '{"data": ' + "[" * 500 + "]" * 500 + "}",
    "a long number": '{"schema_version": ' + "9" * DIGITS + ', "data": 1}',
    "a number beyond floats": '{"schema_version": ' + "9" * 400 + "}",
    "a long fraction": '{"schema_version": 0.' + "9" * DIGITS + "}",
    "nothing": "",
    "null": "null",
    "a list": "[]",
    "an empty object": "{}",
    "a text": '"text"',
    "not UTF-8": b"\xff\xfe{}".decode("latin-1"),
}
TOML_TEXTS = {
    "nested lists": "a = " + "[" * DEEP + "]" * DEEP,
    "nested tables": "a = " + "{b=" * DEEP + "1" + "}" * DEEP,
    "nested keys": "[lora]\nrank." + "a." * 2_000 + "b = 1",
    "a long number": "[lora]\nrank = " + "9" * DIGITS,
    "a number beyond floats": "[lora]\nalpha = " + "9" * 400,
    "a long fraction": "[lora]\nalpha = 0." + "9" * DIGITS + "e9999",
}


def run_folder(tmp_path: Path) -> RunFolder:
    config = with_value(TrainingConfig(), "output.runs_dir", str(tmp_path / "runs"))
    return RunFolder.create(config)


def record(text: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder.path / "run.json").write_text(text, encoding="utf-8")
    list_runs(tmp_path / "runs")
    folder.record()


def mark(text: str, tmp_path: Path) -> None:
    checkpoint = run_folder(tmp_path).checkpoints_dir / "step-1"
    checkpoint.mkdir()
    (checkpoint / "checkpoint.json").write_text(text, encoding="utf-8")
    assert not is_complete(checkpoint)


def lines(text: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for path in (folder.metrics_path, folder.memory_path):
        path.write_text(text + "\n", encoding="utf-8")
    assert list(folder.metrics()) == []
    assert all(isinstance(sample, dict) for sample in trace.read(folder.memory_path).samples)


def model_file(name: str, read: Callable[[Path], Any]) -> Callable[[str, Path], None]:
    def reading(text: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(text, encoding="utf-8")
        read(tmp_path)

    return reading


def weights(text: str, tmp_path: Path) -> None:
    raw = text.encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    files.read_header(tmp_path / "model.safetensors")


def data(suffix: str) -> Callable[[str, Path], None]:
    def reading(text: str, tmp_path: Path) -> None:
        (tmp_path / f"rows.{suffix}").write_text(text, encoding="utf-8")
        sources.open_store(DataSettings(path=str(tmp_path / f"rows.{suffix}"))).sample(0, 5)

    return reading


def line_of(decode: Callable[[str], Any]) -> Callable[[str, Path], None]:
    def reading(text: str, _: Path) -> None:
        with pytest.raises(ValueError):
            decode(text)

    return reading


READERS: dict[str, Callable[[str, Path], None]] = {
    "the record of a run": record,
    "the mark of a checkpoint": mark,
    "the lines of a run": lines,
    "a model's config": model_file("config.json", files.read_config),
    "a model's index": model_file("model.safetensors.index.json", files.weight_files),
    "a model's template": model_file("tokenizer_config.json", files.read_chat_template),
    "a model's origin": model_file("origin.json", files.read_licence),
    "a header of weights": weights,
    "rows in JSON": data("json"),
    "rows in JSON lines": data("jsonl"),
    "an event": line_of(events.decode),
    "a job": line_of(jobs.decode),
}


@pytest.mark.parametrize("text", JSON_TEXTS.values(), ids=JSON_TEXTS)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_no_json_is_too_bad_for_a_sentence(
    read: Callable[[str, Path], None], text: str, tmp_path: Path
) -> None:
    said = "nothing"
    try:
        read(text, tmp_path)
    except EngineError as error:
        said = error.message
    assert 0 < len(said) < 1_000


@pytest.mark.parametrize("text", TOML_TEXTS.values(), ids=TOML_TEXTS)
def test_no_job_file_is_too_bad_for_a_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(EngineError) as caught:
        config_io.load(file)
    assert len(caught.value.message) < 1_000


@pytest.mark.parametrize("value", ["[" * DEEP, "9" * DIGITS, "{a=" * DEEP])
@pytest.mark.parametrize("option", ["lora.rank", "lora.alpha", "data.columns", "lora.targets"])
def test_no_override_is_too_bad_for_a_sentence(option: str, value: str) -> None:
    with pytest.raises(EngineError):
        config_io.with_overrides(TrainingConfig(), [f"{option}={value}", "lora.rank=0"])


@pytest.mark.parametrize("depth", [9, 900, DEEP])
def test_a_gguf_header_nested_deep_is_a_sentence(tmp_path: Path, depth: int) -> None:
    array = struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 4, 1) + struct.pack("<I", 7)
    entry = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + array
    file = tmp_path / "deep.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry)
    with pytest.raises(EngineError, match="nested more than 8 levels deep"):
        gguf_header.read_header(file)


@pytest.mark.parametrize("place", ["qlora_engine", "app"])
def test_nothing_else_parses(place: str) -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / place).rglob("*.py"))
        if path.name != "parsing.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if DIRECT.search(line.split("#")[0])
    ]
    assert offenders == [], "use qlora_engine.parsing"


@pytest.mark.parametrize("read", [parsing.from_json, parsing.row_from_json, parsing.object_from_json])
def test_what_python_reads_but_other_code_would_fall_over_is_too_deep(read: Callable[[str], Any]) -> None:
    """Python's own limit is thousands of levels above what walks a value by recursion can bear."""
    assert read('{"a": ' + "[" * 100 + "]" * 100 + "}")
    with pytest.raises(parsing.Malformed, match="nested more than 128 levels"):
        read('{"a": ' + "[" * 200 + "]" * 200 + "}")


def test_what_is_good_comes_back() -> None:
    value = {"a": [[[1, 2.5, None, True, "x" * 1000]]], "big": 2**64, "[[[": "[" * 1000}
    assert parsing.from_json(json.dumps(value)) == value
    assert parsing.from_toml('a = [[1], ["[[["]]\n[b]\nc = 1e3') == {"a": [[1], ["[[["]], "b": {"c": 1000.0}}
    with pytest.raises(parsing.Malformed, match="a list, not an object"):
        parsing.object_from_json("[]")


@pytest.mark.parametrize(
    ("word", "known", "guess"),
    [
        ("rnak", ["rank", "alpha"], "rank"),
        ("lora.rnak", ["lora.rank", "lora.alpha"], "lora.rank"),
        ("gradient_checkpoint", ["gradient_checkpointing"], "gradient_checkpointing"),
        ("startr", ["starter"], "starter"),
        ("foo_proj", ["o_proj", "q_proj"], None),
        ("lora.rank", ["data.rank", "lora.alpha"], None),
        ("mystery", ["history", "master"], None),
        ("data", ["date_of_birth"], None),
    ],
)
def test_a_guess_is_made_only_where_it_is_near(word: str, known: list[str], guess: str | None) -> None:
    hint = errors.did_you_mean(word, known)
    assert hint == (f"did you mean {guess!r}?" if guess else "known: " + ", ".join(sorted(known)))
