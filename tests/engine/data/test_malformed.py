"""Malformed files by the thousand: never a traceback, never a hang, good rows kept, bad ones named."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
import random
import time
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from qlora_engine import data
from qlora_engine.config import DataSettings
from qlora_engine.data import cache, formats
from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.sources import BadRow, open_store
from qlora_engine.errors import EngineError
from tests.support.tiny import tiny_tokenizer

GOOD = [{"instruction": f"question {n} \u00fc", "output": f"answer {n}"} for n in range(30)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in GOOD).encode()
DOCUMENT = json.dumps(GOOD, ensure_ascii=False, indent=1).encode()
TABLE = ("instruction,output\n" + "".join(f'"{r["instruction"]}",{r["output"]}\n' for r in GOOD)).encode()
TSV = ("instruction\toutput\n" + "".join(f"{r['instruction']}\t{r['output']}\n" for r in GOOD)).encode()


def rows_of(path: Path, **settings: Any) -> list[Any]:
    return [
        row
        for block in open_store(DataSettings(path=str(path), **settings)).blocks(7)
        for _, row in block.rows()
    ]


def columnar(kind: str) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(GOOD)
    if kind == "parquet":
        parquet.write_table(table, sink, row_group_size=10)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=10)
    return sink.getvalue().to_pybytes()


SEEDS = {
    "a.jsonl": LINES, "a.json": DOCUMENT, "a.csv": TABLE, "a.tsv": TSV, "a.parquet": columnar("parquet"),
    "a.arrow": columnar("arrow"), "a.txt": LINES, "a.jsonl.gz": gzip.compress(LINES), "a.jsonl.bz2": bz2.compress(LINES),
    "a.jsonl.xz": lzma.compress(LINES), "u.jsonl": LINES.decode().encode("utf-16"),
}  # fmt: skip
DAY = "%Y-%m-%d"
NAMES = st.sampled_from(
    ["messages", "role", "content", "conversations", "from", "value", "instruction", "output", "prompt", "completion", "chosen",
     "rejected", "text", "tool_calls", "function", "name", "arguments", "tools", "reasoning_content", "weight", "type", "id",
     "history", "system", "message_id", "parent_id"]
)  # fmt: skip
SPLICES = (
    b"\0",
    b"\xff\xfe",
    b'"',
    b"{",
    b"}",
    b"[" * 200,
    b"\n",
    b"\\",
    b"\xc3",
    b"1" * 6000,
    b"\xef\xbb\xbf",
    b",",
    b"\r",
)


def damaged(seed: bytes, rng: random.Random) -> bytes:
    """One to three accidents: cut short, a byte changed, something put in, a piece lost or doubled."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(1, len(data)))
        match rng.randrange(5):
            case 0:
                del data[at:]
            case 1 if data:
                data[at] = rng.randrange(256)
            case 2:
                data[at:at] = rng.choice(SPLICES)
            case 3:
                del data[at : at + rng.randint(1, 40)]
            case _:
                data[at:at] = data[at : at + rng.randint(1, 200)]
    return bytes(data)


ACCIDENTS = int(os.environ.get("QLORA_ACCIDENTS", "40"))
"""Damaged files of each kind: some a day here, thousands in `make test-data`."""
IS_CAMPAIGN = "QLORA_ACCIDENTS" in os.environ


def tried(path: Path) -> tuple[list[Any], EngineError | None]:
    try:
        return rows_of(path), None
    except EngineError as error:
        return [], error


def through_everything(file: Path) -> None:
    """Read, understood, tokenized and reported, or refused in a sentence; every row left out has a reason."""
    prepared = None
    with contextlib.suppress(EngineError):
        prepared = data.prepare(DataSettings(path=str(file)), tiny_tokenizer(), seed=1, is_look=True)
    if prepared is None:
        return
    kept = len(prepared.whole) + len(prepared.held_out)
    assert kept + sum(drop["count"] for drop in prepared.report.drops) >= len(prepared.store)
    assert all(drop["reason"] and drop["first_rows"] for drop in prepared.report.drops)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["user", "assistant", "tool", "system", '[{"role": "user", "content": "x"}]', "{", "<think>", "text", "image"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(row=st.dictionaries(NAMES, VALUES, max_size=5), name=st.sampled_from(sorted(formats.FORMATS)))
@settings(max_examples=25 * ACCIDENTS if IS_CAMPAIGN else 150, deadline=None)
def test_any_row_is_a_conversation_or_has_a_reason(row: dict[str, Any], name: str) -> None:
    kind = formats.FORMATS[name]
    detection = formats.Detection(
        name, {field: usual[0] for field, usual in kind.fields.items()}, "as chosen"
    )
    found, problem = None, None
    try:
        found = formats.read_row(row, 3, detection)
    except RowProblem as error:
        problem = error
    if found is None:
        assert problem is not None
        assert problem.reason
        assert problem.number == 3
    else:
        assert found.has_answer or found.text is not None
        assert found.content_key()


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_damaged_files_end_in_rows_or_a_sentence(name: str, tmp_path: Path) -> None:
    is_columnar = name in ("a.parquet", "a.arrow")  # read by native code, which is not to end the suite
    rng = random.Random(name if is_columnar and not IS_CAMPAIGN else f"{name} {time.strftime(DAY)}")
    for number in range(ACCIDENTS):
        (tmp_path / str(number)).mkdir()
        file = tmp_path / str(number) / name
        file.write_bytes(damaged(SEEDS[name], rng))
        if number % 20 == 0:
            through_everything(file)
        found, problem = tried(file)
        if problem is not None:
            assert problem.message
            assert problem.hint
            assert len(problem.message) < 500
        assert all(isinstance(row, dict) or (isinstance(row, BadRow) and row.reason) for row in found)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_one_accident_costs_few_rows(name: str, tmp_path: Path) -> None:
    seed = SEEDS[name]
    place = seed.index(b"question 15")
    for number, splice in enumerate((b"\0", b"\xff", b"}", b"{", b"\\q")):
        file = tmp_path / f"{number}-{name}"
        file.write_bytes(seed[:place] + splice + seed[place:])
        kept = [row for row in rows_of(file) if isinstance(row, dict) and row in GOOD]
        assert len(kept) >= len(GOOD) - 2, (splice, name)


BAD_LINES = {
    "a number with too many digits": '{"a": ' + "9" * 6000 + "}",
    "nested 100,000 deep": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a key twice": '{"a": 1, "a": 2}',
    "cut": '{"a": "b',
    "zero bytes": "\0\0\0\0",
    "half a surrogate pair": '{"a": "\\ud800"}',
    "a list of numbers": "[1, 2]",
    "nothing but null": "null",
    "two values": '{"a": 1} {"a": 2}',
}


@pytest.mark.parametrize("kind", sorted(BAD_LINES))
@pytest.mark.parametrize("shape", ["lines", "document"])
def test_a_bad_row_is_named_and_its_neighbours_are_kept(kind: str, shape: str, tmp_path: Path) -> None:
    bad = BAD_LINES[kind]
    before, after = '{"a": "one"}', '{"a": "three"}'
    if shape == "lines":
        file, text = tmp_path / "a.jsonl", f"{before}\n{bad}\n{after}\n"
    else:
        file, text = tmp_path / "a.json", f"[{before},\n{bad},\n{after}]"
    file.write_text(text, encoding="utf-8")
    found = rows_of(file)
    assert found[0] == {"a": "one"}
    assert found[-1] == {"a": "three"}
    if (kind, shape) != ("two values", "document"):
        assert [row.reason for row in found if isinstance(row, BadRow)]


def test_a_gigantic_cell_is_read_and_a_larger_row_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"a": "x" * 5_000_000}) + '\n{"a": "b"}\n', encoding="utf-8")
    assert [len(row["a"]) for row in rows_of(file)] == [5_000_000, 1]
    monkeypatch.setattr("qlora_engine.data.sources.store.MAX_ROW_BYTES", 1_000_000)
    large, small = rows_of(file)
    assert "larger than" in large.reason
    assert small == {"a": "b"}


def test_symlink_loops_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.jsonl").write_bytes(LINES)
    (tmp_path / "inner" / "up").symlink_to(tmp_path)
    (tmp_path / "self.jsonl").symlink_to(tmp_path / "self.jsonl")
    (tmp_path / "README.md").write_text("about", encoding="utf-8")
    store = open_store(DataSettings(path=str(tmp_path)))
    assert len(store) == len(GOOD)
    assert any("README.md" in note for note in store.notes)


def test_a_file_that_vanishes_or_changes_while_it_is_read_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(LINES)
    store = open_store(DataSettings(path=str(file)))
    blocks = store.blocks(10)
    list(next(blocks).rows())
    file.write_bytes(LINES[:500])
    with pytest.raises(EngineError, match="changed while it was read"):
        store.require_unchanged()
    file.unlink()
    with pytest.raises(EngineError, match="cannot be read"):
        list(next(blocks).rows())


def test_a_file_without_permission_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(LINES)
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(EngineError, match="cannot be read"):
        rows_of(file)


@pytest.mark.parametrize("cut", [0.3, 0.9])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz"])
def test_a_packed_file_cut_short_keeps_what_is_there(name: str, cut: float, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(SEEDS[name][: int(len(SEEDS[name]) * cut)])
    with contextlib.suppress(EngineError):  # nothing at all may have come out of it
        store = open_store(DataSettings(path=str(file)))
        assert any("ends early" in note for note in store.notes)


def test_an_archive_is_read_without_unpacking_to_disk(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../evil.jsonl", LINES)
        archive.writestr("b.csv", TABLE)
    assert len(rows_of(file)) == 2 * len(GOOD)
    assert not (tmp_path.parent.parent / "evil.jsonl").exists()


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_engine.data.sources.opening.BOMB_BYTES", 1 << 20)
    monkeypatch.setattr("qlora_engine.data.sources.opening.BOMB_RATIO", 100)
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b"x" * (8 << 20)))
    with pytest.raises(EngineError, match="unpacks to more than"):
        rows_of(file)


def test_the_part_of_a_dataset_is_used_or_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(LINES)
    (tmp_path / "test.jsonl").write_text('{"instruction": "t", "output": "u"}\n', encoding="utf-8")
    assert len(rows_of(tmp_path)) == len(GOOD)
    assert len(rows_of(tmp_path, split="test")) == 1
    with pytest.raises(EngineError, match="no part 'dev'"):
        rows_of(tmp_path, split="dev")
    with pytest.raises(EngineError, match="single file"):
        rows_of(tmp_path / "train.jsonl", split="test")


ENCODINGS = {
    "latin1.csv": ("Frage,Antwort\nGr\u00fc\u00dfe,Sch\u00f6ne Gr\u00fc\u00dfe\n", "latin-1", "Windows-1252"),
    "u16.jsonl": (
        '{"Frage": "Gr\u00fc\u00dfe", "Antwort": "Sch\u00f6ne Gr\u00fc\u00dfe"}\n',
        "utf-16",
        "UTF-16",
    ),
    "u16le.jsonl": (
        '{"Frage": "Gr\u00fc\u00dfe", "Antwort": "Sch\u00f6ne Gr\u00fc\u00dfe"}\n',
        "utf-16-le",
        "UTF-16",
    ),
    "bom.csv": ("Frage,Antwort\nGr\u00fc\u00dfe,Sch\u00f6ne Gr\u00fc\u00dfe\n", "utf-8-sig", ""),
    "semi.csv": ("Frage;Antwort\nGr\u00fc\u00dfe;Sch\u00f6ne Gr\u00fc\u00dfe\n", "utf-8", "semicolon"),
    "quotes.csv": ("Frage|Antwort\n'Gr\u00fc\u00dfe'|'Sch\u00f6ne Gr\u00fc\u00dfe'\n", "utf-8", "bar"),
}


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_encodings_and_separators_are_found_and_said(name: str, tmp_path: Path) -> None:
    text, encoding, words = ENCODINGS[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    store = open_store(DataSettings(path=str(tmp_path / name)))
    assert store.row(1) == {"Frage": "Gr\u00fc\u00dfe", "Antwort": "Sch\u00f6ne Gr\u00fc\u00dfe"}
    assert any(words in note for note in store.notes) or not words


def test_what_cannot_be_told_is_refused_with_its_name_or_read_as_said(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    text = "\u0432\u043e\u043f\u0440\u043e\u0441,\u043e\u0442\u0432\u0435\u0442\n\u041a\u0430\u043a \u0434\u0435\u043b\u0430,\u0425\u043e\u0440\u043e\u0448\u043e\n"
    file.write_bytes(text.encode("cp1251"))
    with pytest.raises(EngineError, match="not UTF-8 text; it looks like"):
        rows_of(file)
    assert rows_of(file, encoding="cp1251") == [
        {
            "\u0432\u043e\u043f\u0440\u043e\u0441": "\u041a\u0430\u043a \u0434\u0435\u043b\u0430",
            "\u043e\u0442\u0432\u0435\u0442": "\u0425\u043e\u0440\u043e\u0448\u043e",
        }
    ]
    with pytest.raises(EngineError, match="no encoding 'klingon'"):
        rows_of(file, encoding="klingon")


def test_a_conversion_is_kept_and_a_damaged_entry_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    file = tmp_path / "a.csv"
    file.write_bytes(TABLE)
    os.utime(file, (1_000_000_000, 1_000_000_000))
    first = rows_of(file)
    (entry,) = (cache.folder() / "rows").glob("[0-9a-f]*")
    stamp = (entry / "rows.jsonl").stat().st_mtime_ns
    assert rows_of(file) == first == GOOD
    assert (entry / "rows.jsonl").stat().st_mtime_ns == stamp
    (entry / "meta.json").write_text("{", encoding="utf-8")
    assert rows_of(file) == GOOD


def test_the_cache_stays_within_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    for number in range(4):
        entry = cache.keep(
            "rows", f"{number:040x}", lambda folder: (folder / "x").write_bytes(b"x" * 1000) and None
        )
        os.utime(entry / cache.MARK, (number, number))
    assert cache.trim(2500) == 2000
    assert cache.find("rows", f"{0:040x}") is None
    assert cache.find("rows", f"{3:040x}") is not None
