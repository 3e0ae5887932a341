"""Saved prompt sets: kept, found, imported; what cannot be read says where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_engine.errors import EngineError
from qlora_engine.evaluate import prompt_sets


def test_the_starters_prompts_come_first_and_cannot_be_changed() -> None:
    prompt_sets.save("a set", ["one"])
    first, second = prompt_sets.all_sets()
    assert (first.name, first.is_builtin, len(first.prompts)) == ("starter", True, 3)
    assert (second.name, second.is_builtin) == ("a set", False)
    for act in (lambda: prompt_sets.delete("starter"), lambda: prompt_sets.save("Starter", ["x"])):
        with pytest.raises(EngineError) as refused:
            act()
        assert refused.value.code == "prompts.builtin"


def test_a_set_is_saved_over_and_deleted() -> None:
    prompt_sets.save(" Größe / 1 ", ["a", " a ", "", "b\nc"])
    assert prompt_sets.find("Größe / 1").prompts == ("a", "b\nc")
    prompt_sets.save("Größe / 1", ["d"])
    prompt_sets.save("größe - 1", ["another with the same file name"])
    assert prompt_sets.find("Größe / 1").prompts == ("d",)
    prompt_sets.delete("Größe / 1")
    assert [s.name for s in prompt_sets.all_sets()] == ["starter", "größe - 1"]


def test_a_broken_file_hides_no_other(home: Path) -> None:
    prompt_sets.save("good", ["a"])
    (home / "prompts" / "bad.json").write_text("{")
    (home / "prompts" / "newer.json").write_text('{"schema_version": 9, "prompts": ["x"]}')
    assert [s.name for s in prompt_sets.all_sets()] == ["starter", "good"]


@pytest.mark.parametrize(
    ("name", "prompts"), [("", ["a"]), ("x" * 61, ["a"]), ("x", []), ("x", [f"a{n}" for n in range(201)])]
)
def test_a_set_without_name_or_prompts_is_refused(name: str, prompts: list[str]) -> None:
    with pytest.raises(EngineError):
        prompt_sets.save(name, prompts)


def test_a_name_that_is_not_there_names_the_closest() -> None:
    with pytest.raises(EngineError) as refused:
        prompt_sets.find("startr")
    assert refused.value.hint == "did you mean 'starter'?"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\ufeffone\n\n  two \none\n"),
        ("a.jsonl", '"one"\n\n{"instruction": "two", "output": "x"}\n'),
        ("a.jsonl", '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "one"}]}\n{"question": "two"}'),
        ("a.json", '["one", {"prompt": "two"}]'),
        ("a.json", '{"schema_version": 1, "name": "n", "prompts": ["one", "two"]}'),
    ],
)  # fmt: skip
def test_files_of_prompts_are_read(name: str, content: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    assert prompt_sets.read_prompts(file) == ("one", "two")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\n \n", "holds no prompt"),
        ("a.txt", b"\xff\xfe\xff", "not UTF-8"),
        ("a.jsonl", b'"one"\n{"label": 3}\n', "line 2 of a.jsonl has no prompt"),
        ("a.jsonl", b'"one"\nnonsense\n', "line 2 of a.jsonl is not JSON"),
        ("a.json", b"[1]", "item 1 of a.json has no prompt"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_files_that_hold_no_prompts_say_why(
    name: str, content: bytes | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EngineError) as refused:
        prompt_sets.read_prompts(tmp_path / name)
    assert words in refused.value.message


def test_the_file_is_plain_json(home: Path) -> None:
    prompt_sets.save("My set", ["a"])
    stored = json.loads((home / "prompts" / "my-set.json").read_text())
    assert stored == {"schema_version": 1, "name": "My set", "prompts": ["a"]}
