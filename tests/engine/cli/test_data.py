"""`qlora data`: what it found, what it left out, and the mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.cli import failures, output
from qlora_engine.cli.commands.data import rendered


def test_the_report_in_words(qlora: Any, tiny_model: Path, good_rows: Path) -> None:
    result = qlora("data", good_rows, "--model", tiny_model, "--show-mask", 2)
    assert result.code == 0, result.err
    assert "alpaca: it has the columns instruction and output" in result.out
    assert "24 read" in result.out
    assert result.out.count("\nrow ") == 2
    assert "what colour is" in result.out
    assert any(f"[{colour}" in result.out for colour in ("red", "green", "blue"))


def test_the_report_as_a_document(qlora: Any, tiny_model: Path, good_rows: Path) -> None:
    document = qlora("data", good_rows, "--model", tiny_model, "--show-mask", 1, "--json").document
    assert document["report"]["format"] == "alpaca"
    assert 0 < document["report"]["trained_tokens"] < document["report"]["train_tokens"]
    (row,) = document["rows"]
    trained = "".join(token["text"] for token in row["tokens"] if token["state"] == "trained")
    assert trained.startswith(("red", "green", "blue"))
    assert trained.endswith("<|im_end|>")


def test_columns_can_be_mapped(qlora: Any, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("question,reply\n" + "".join(f"q{n},a{n}\n" for n in range(6)), encoding="utf-8")
    arguments = ("--format", "alpaca", "--column", "instruction=question", "--column", "output=reply")
    result = qlora("data", file, "--model", tiny_model, *arguments, "--json")
    assert result.code == 0, result.err
    assert result.document["report"]["columns"]["instruction"] == "question"


def test_an_empty_mapping_is_refused(qlora: Any, good_rows: Path) -> None:
    result = qlora("data", good_rows, "--column", "instruction")
    assert result.code == 2
    assert result.error.endswith("hint: write it as --column instruction=question")


@pytest.mark.parametrize(
    ("states", "text"),
    [(("masked", "trained", "trained"), "a[bc]"), (("trained", "masked", "cut"), "[a]b~c~")],
)
def test_the_mask_reads_without_colour(states: tuple[str, ...], text: str) -> None:
    tokens = [{"text": letter, "state": state} for letter, state in zip("abc", states, strict=True)]
    assert rendered(tokens) == text


def test_openassistant_turns_may_share_a_line(qlora: Any, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "guanaco.jsonl"
    row = {
        "text": "### Human: Who was it?### Assistant: Ada. #### Human: is no turn### Human: When?### Assistant: 1843."
    }
    file.write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    document = qlora("data", file, "--model", tiny_model, "--show-mask", 1, "--json").document
    assert document["report"]["format"] == "oasst"
    states = {}
    for token in document["rows"][0]["tokens"]:
        states[token["state"]] = states.get(token["state"], "") + token["text"]
    assert "Ada. #### Human: is no turn" in states["trained"]
    assert "1843." in states["trained"]
    assert "When?" in states["masked"]


HOSTILE = "\x1b]0;owned\x07 \x1b]52;c;AAAA\x07 \x1b[2J \x9b31m \r\x08\x7f \u202e"
WRITERS = {
    "say": lambda: output.say(HOSTILE),
    "note": lambda: output.note(HOSTILE),
    "piece": lambda: output.write_piece(HOSTILE),
    "table": lambda: output.table(["a"], [[HOSTILE]]),
    "fields": lambda: output.fields([(HOSTILE, HOSTILE)]),
    "json": lambda: output.print_json({HOSTILE: HOSTILE}),
    "line": lambda: output.print_line({HOSTILE: [HOSTILE]}),
    "error": lambda: failures.say(HOSTILE, HOSTILE),
}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_nothing_that_a_terminal_obeys_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    WRITERS[name]()
    shown = "".join(capsys.readouterr())
    assert "owned" in shown
    assert not output.CONTROL.search(shown)
    if name in ("json", "line"):
        assert HOSTILE in json.loads(shown)


def test_every_command_prints_through_that_door() -> None:
    root = Path(output.__file__).parent
    allowed = {"output.py": 1, "failures.py": 2}
    for file in root.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        direct = text.count("print(") - text.count("_print(") - text.count("console.print(output.quoted(")
        written = sum(
            text.count(word) for word in ("stdout.write(", "stderr.write(", "click.echo(", "click.secho(")
        )
        assert written == 0, file
        assert direct <= allowed.get(file.name, 0), file


def test_rows_are_shown_by_number_by_search_and_at_their_worst(
    qlora: Any, tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"{HOSTILE} ask {n}", "output": "word " * (n + 1)} for n in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n", encoding="utf-8")
    clean = tmp_path / "clean.jsonl"
    result = qlora(
        "data", file, "--model", tiny_model, "--row", 2, "--row", 9, "--worst", "longest", "--count", 1, "--search", "ask 5",
        "--write-clean", clean,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert not output.CONTROL.search(result.out + result.err)
    assert "row 2 (rows.jsonl, row 2" in result.out
    assert "left out: broken JSON" in result.out
    assert "found in 1 row: 6" in result.out
    assert "wrote 8 rows" in result.out
    assert len(clean.read_text(encoding="utf-8").splitlines()) == 8


def test_rows_are_listed_with_what_becomes_of_them_and_policies_are_shown(
    qlora: Any, tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Say {n}", "output": str(n) if n != 2 else ""} for n in range(1, 6)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = qlora("data", file, "--model", tiny_model, "--list", "left_out", "--show-reasoning")
    assert "2: left out, its output is empty: " in result.out
    assert "\n1 row\n" in result.out
    for policy in ("train", "context", "remove"):
        assert f"data.reasoning = {policy}: " in result.out


def test_a_held_out_file_is_listed_and_searched(qlora: Any, tiny_model: Path, tmp_path: Path) -> None:
    places = []
    for name, said in (("train", "ask"), ("held", "needle")):
        places.append(tmp_path / f"{name}.jsonl")
        rows = [{"instruction": f"{said} {n}", "output": str(n)} for n in range(1, 5)]
        places[-1].write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    own = ("--set", f"data.held_out_path={places[1]}", "--held-out")
    result = qlora("data", places[0], "--model", tiny_model, *own, "--list", "all", "--search", "needle 3")
    assert result.code == 0, result.err
    assert "found in 1 row: 3" in result.out
    assert "row 3 (held.jsonl, row 3; held out)" in result.out
    assert "\n4 rows\n1: held out, " in result.out


def test_a_first_look_needs_no_model(qlora: Any, tmp_path: Path) -> None:
    file = tmp_path / "fragen.csv"
    file.write_text("Frage;Antwort;Quelle\nWie viel ist 1 + 1?;2;Kopf\n", encoding="utf-8")
    result = qlora("data", file, "--model", "/nowhere", "--first-look")
    assert (result.code, "fit no known format" in result.out) == (0, True)
    columns = ("--column", "instruction=Frage", "--column", "output=Antwort")
    found = qlora("data", file, "--model", "/nowhere", "--first-look", *columns, "--json").document
    assert (found["format"], found["detection"]["unused"]) == ("alpaca", ["Quelle"])


def test_check_says_of_the_data_what_the_start_would(qlora: Any, tiny_model: Path, tmp_path: Path) -> None:
    file, job = tmp_path / "rows.jsonl", tmp_path / "job.toml"
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    lines = [json.dumps(row), *['{"conversations": "text"}'] * 3]
    file.write_text("\n".join(lines), encoding="utf-8")
    job.write_text(f'[model]\nname = "{tiny_model}"\n[data]\npath = "{file}"\n', encoding="utf-8")
    result = qlora("check", job)
    assert result.code == 2
    assert "3 of 4 rows cannot be read as sharegpt" in result.err
    assert "rows 2, 3, 4" in result.err
