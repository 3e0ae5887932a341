"""The doctor, the inspector, the split and the cache, on small data of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_engine import data
from qlora_engine.config import DataSettings
from qlora_engine.control import Control
from qlora_engine.data import batches, cache, clean, inspection, near, pipeline, reading_check, splitting
from qlora_engine.data.packing import pack
from qlora_engine.data.preview import preview
from qlora_engine.data.rectangle import IGNORED
from qlora_engine.errors import Cancelled, EngineError
from tests.support.mechanisms import MECHANISMS
from tests.support.template_tokenizer import tokenizer_for
from tests.support.tiny import instruction_rows, tiny_tokenizer, write_rows

LONG = "The river rose in the night and stood at the third step by morning; nobody had seen it so high since the old bridge fell. "


def prepare(path: Path | str, **settings: Any) -> data.PreparedData:
    options = {name: settings.pop(name) for name in ("processes", "is_look", "control") if name in settings}
    return data.prepare(DataSettings(path=str(path), **settings), tiny_tokenizer(), seed=3, **options)


def codes(prepared: data.PreparedData) -> dict[str, dict[str, Any]]:
    return {finding["code"]: dict(finding) for finding in prepared.report.findings}


def sharegpt(count: int, bad: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"Count to {n}."},
                {"from": "gpt", "value": f"One to {n}."},
            ]
        }
        for n in range(1, count + 1)
    ]
    for number, row in bad.items():
        rows[number - 1] = row  # type: ignore[assignment]
    return rows


def test_one_bad_row_never_blocks_a_set(tmp_path: Path) -> None:
    bad = {5: {"conversations": [{"from": "narrator", "value": "x"}]}, 9: {"conversations": "text"}}
    prepared = prepare(write_rows(tmp_path / "a.jsonl", sharegpt(40, bad)))
    assert len(prepared.train) + len(prepared.held_out) == 38
    assert sorted(n for drop in prepared.report.drops for n in drop["first_rows"]) == [5, 9]
    assert codes(prepared)["data.left_out"]["repair"] == {"action": "write_clean"}


def test_more_bad_rows_than_allowed_block_the_start_and_the_check_alike(tmp_path: Path) -> None:
    bad = {n: {"conversations": "text"} for n in range(1, 5)}
    file = write_rows(tmp_path / "a.jsonl", sharegpt(10, bad))
    assert len(prepare(file).train) > 0
    with pytest.raises(EngineError, match="4 of 10 rows cannot be read") as caught:
        prepare(file, bad_rows=0.3)
    seen = prepare(file, bad_rows=0.3, is_look=True).report.findings[0]
    (checked,) = reading_check.check(DataSettings(path=str(file), bad_rows=0.3))
    assert seen["grade"] == checked["grade"] == "blocks"
    assert caught.value.message == seen["text"] == checked["text"]


def test_secrets_addresses_copies_and_short_answers_are_named_by_row(tmp_path: Path) -> None:
    rows = instruction_rows(20)
    rows[3]["output"] = "the key is ghp_" + "a1B2" * 9
    rows[4]["output"] = "write to someone@example.org please"
    rows[6] = dict(rows[5])
    rows[7] = {"instruction": rows[8]["instruction"].upper() + " ", "output": rows[8]["output"]}
    rows[9] = {"instruction": "A?", "output": "B"}
    found = codes(prepare(write_rows(tmp_path / "a.jsonl", rows), held_out_fraction=0.0))
    assert found["data.secrets"]["rows"] == (4,)
    assert found["data.secrets"]["grade"] == "look"
    assert found["data.emails"]["rows"] == (5,)
    assert found["data.duplicates"]["rows"] == (7,)
    assert found["data.near_duplicates"]["rows"] == (9,)
    assert 10 in found["data.short_answers"]["rows"]


def test_a_template_that_begins_every_turn_with_the_beginning_token_is_no_fault(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(bos_token="<|im_start|>")
    settings = DataSettings(path=str(write_rows(tmp_path / "a.jsonl", instruction_rows(8))))
    report = data.prepare(settings, tokenizer, seed=3).report
    assert report.bos_per_row[1] > 1
    assert "data.bos" not in [finding["code"] for finding in report.findings]


def test_rows_whose_images_would_be_lost_block_until_a_person_says_so(tmp_path: Path) -> None:
    rows = instruction_rows(20)
    for place in (3, 7, 11):
        rows[place]["image"] = "cat.png"  # type: ignore[index]
    file = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(EngineError, match="3 rows carry images") as caught:
        prepare(file)
    assert "train these rows without their images" in caught.value.hint
    found = codes(prepare(file, is_look=True))["data.meaning"]
    assert (list(found["rows"]), found["repair"]["value"]) == ([4, 8, 12], ["images"])
    assert len(prepare(file, ignore=("images",), held_out_fraction=0.0).train) == 20


def test_nearly_equal_long_rows_share_a_side_and_different_ones_do_not_group(tmp_path: Path) -> None:
    texts = [f"{word} " * 3 + LONG * 3 for word in ("first", "second")]
    other = (
        "Nothing of this was written by the same hand, and no window of it recurs in the others at all, as far as we know. "
        * 2
    )
    hashes = np.array([1, 2, 3], np.uint64)
    groups = near.groups(hashes, hashes, near.signatures([near.loose(text) for text in [*texts, other]]))
    assert groups[0] == groups[1] != groups[2]
    short = near.signatures([b"12 + 13", b"12 + 14"])
    assert not short.any()


def test_a_shared_template_is_no_copy() -> None:
    texts = [LONG * 5 + str(n) for n in range(300)]
    hashes = np.arange(300, dtype=np.uint64)
    assert (
        len(set(near.groups(hashes, hashes, near.signatures([near.loose(text) for text in texts])).tolist()))
        >= 290
    )


def test_no_copy_stands_on_both_sides_of_an_own_file_either(tmp_path: Path) -> None:
    train = [
        {"instruction": f"{LONG} {n}", "output": f"{LONG[::-1]} {n * 7}"} for n in range(6)
    ] + instruction_rows(10)
    held = [{"instruction": train[0]["instruction"].upper(), "output": train[0]["output"]}]
    prepared = prepare(
        write_rows(tmp_path / "a.jsonl", train), held_out_path=str(write_rows(tmp_path / "b.jsonl", held))
    )
    assert 1 not in prepared.whole.numbers.tolist()
    assert len(prepared.held_out) == 1


@pytest.mark.parametrize(("tree_paths", "answers"), [("best", ["good"]), ("all", ["bad", "good"])])
def test_a_message_tree_gives_its_best_path_or_all_of_them(
    tree_paths: str, answers: list[str], tmp_path: Path
) -> None:
    def message(text: str, parent: str | None, role: str, rank: int | None) -> dict[str, Any]:
        return {"message_id": text, "parent_id": parent, "role": role, "text": text, "rank": rank}

    tree = [
        message("question", None, "prompter", None),
        message("bad", "question", "assistant", 1),
        message("good", "question", "assistant", 0),
    ]
    prepared = prepare(write_rows(tmp_path / "a.jsonl", tree), tree_paths=tree_paths, held_out_fraction=0.0)
    shown = [tiny_tokenizer().decode(row.input_ids) for row in prepared.train]
    assert sorted(answer for answer in ("bad", "good") if any(answer in text for text in shown)) == answers


def test_sources_are_mixed_by_weight_each_with_its_own_format_and_share(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "a.jsonl", instruction_rows(40))
    two = write_rows(tmp_path / "b.jsonl", sharegpt(40, {}))
    three = write_rows(tmp_path / "c.jsonl", [{"instruction": f"x{n}", "output": f"y{n}"} for n in range(40)])
    prepared = prepare(one, more={str(two): 2.0, str(three): 0.5}, held_out_fraction=0.25)
    assert [source["format"] for source in prepared.report.sources] == ["alpaca", "sharegpt", "alpaca"]
    source = prepared.whole.store.column("source")
    assert np.bincount(source[prepared.held_out.places]).tolist() == [10, 10, 10]
    trained = np.bincount(source[prepared.whole.places]).tolist()
    assert trained[:2] == [30, 60]
    assert 5 <= trained[2] <= 25
    assert prepare(
        one, more={str(two): 2.0, str(three): 0.5}, held_out_fraction=0.25
    ).whole.numbers.tolist() == (prepared.whole.numbers.tolist())


@pytest.mark.parametrize("overlap", [0, 7])
def test_a_long_text_becomes_rows_that_lose_and_double_nothing(tmp_path: Path, overlap: int) -> None:
    paragraphs = [f"Chapter {n}\n\n{LONG * 3}\n\n" for n in range(12)]
    (tmp_path / "a.txt").write_text("".join(paragraphs), encoding="utf-8")
    (tmp_path / "b.txt").write_text("Another document.", encoding="utf-8")
    tokenizer = tiny_tokenizer()
    prepared = prepare(tmp_path, seq_len=200, overlap=overlap, held_out_fraction=0.0)
    by_document: dict[int, list[list[int]]] = {}
    for row in prepared.whole:
        assert len(row.input_ids) <= 200
        by_document.setdefault(row.source_row, []).append(row.input_ids)
    joined = by_document[1][0] + [t for ids in by_document[1][1:] for t in ids[overlap:]]
    assert tokenizer.decode(joined).removesuffix("<|im_end|>") == "".join(paragraphs)
    assert tokenizer.decode(by_document[2][0]) == "Another document.<|im_end|>"
    assert prepared.report.cut_tokens == 0


def test_rows_of_a_text_end_at_paragraphs_then_sentences() -> None:
    text = "One two. Three four.\n\nFive six. Seven."
    starts = [
        place
        for place, char in enumerate(text)
        if place == 0 or (text[place - 1] in " \n" and char not in " \n")
    ]
    found = [
        text[starts[a] : starts[b] if b < len(starts) else len(text)]
        for a, b in splitting.pieces(text, starts, 5, 0)
    ]
    assert found == ["One two. Three four.\n\n", "Five six. Seven."]
    assert next(iter(splitting.pieces(text, starts, 3, 0))) == (0, 2)


def test_the_inspector_shows_what_training_is_fed(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    prepared = prepare(write_rows(tmp_path / "a.jsonl", instruction_rows(12)), packing=True, seq_len=200)
    for index, row in enumerate(prepared.train):
        batch = batches.collate([row], tokenizer.pad_token_id)
        shown = inspection.shown_row(prepared.train, index, tokenizer)["tokens"]
        assert [token["id"] for token in shown] == batch.input_ids[0].tolist()
        assert [token["state"] == "trained" for token in shown] == (batch.labels[0] != IGNORED).tolist()
        if batch.position_ids is not None:
            assert [token["position"] for token in shown] == batch.position_ids[0].tolist()


def test_every_row_can_be_looked_at_good_or_bad(tmp_path: Path) -> None:
    bad = {2: {"conversations": "text"}}
    file = write_rows(tmp_path / "a.jsonl", sharegpt(6, bad))
    file.write_text(file.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    prepared = prepare(file, held_out_fraction=0.2)
    inspector = inspection.Inspector(prepared, tiny_tokenizer())
    rows = inspector.rows(1, 10)
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert rows[1]["side"] == "left_out"
    assert "not a list of turns" in rows[1]["problem"]
    assert rows[6]["raw"] == "{broken"
    assert "broken JSON" in rows[6]["problem"]
    places = {int(number): place for place, number in enumerate(prepared.whole.numbers)}
    for number, place in places.items():
        (rendered,) = inspector.row(number)["rendered"]
        assert [t["id"] for t in rendered["tokens"]] == prepared.whole[place].input_ids
    assert inspector.search("COUNT TO 4") == [4]
    json.dumps(rows)
    with pytest.raises(EngineError, match="no row 8"):
        inspector.row(8)


@pytest.mark.parametrize("kind", ["longest", "most_cut", "fewest_trained", "most_unknown"])
def test_the_worst_rows_come_first(tmp_path: Path, kind: str) -> None:
    rows = [
        *instruction_rows(8),
        {"instruction": "long", "output": "word " * 60},
        {"instruction": "s", "output": "t"},
    ]
    prepared = prepare(write_rows(tmp_path / "a.jsonl", rows), held_out_fraction=0.0, seq_len=80)
    found = inspection.Inspector(prepared, tiny_tokenizer()).worst(kind, 3)
    expected = {"longest": 9, "most_cut": 9, "fewest_trained": 10}
    assert [row["row"] for row in found][:1] == ([expected[kind]] if kind in expected else [])


def test_any_maximum_says_what_it_keeps(tmp_path: Path) -> None:
    prepared = prepare(
        write_rows(tmp_path / "a.jsonl", instruction_rows(30)), held_out_fraction=0.0, seq_len=2000
    )
    trained = [row.trained for row in prepared.whole]
    for maximum, whole, tokens in prepared.report.lengths["curve"]:
        kept = sum(sum(t[1:maximum]) for t in trained) / sum(sum(t[1:]) for t in trained)
        assert whole == pytest.approx(sum(len(t) <= maximum for t in trained) / len(trained), abs=1e-5)
        assert tokens == pytest.approx(kept, abs=1e-5)


def test_clean_rows_are_written_once_and_read_again(tmp_path: Path) -> None:
    rows = sharegpt(8, {2: {"conversations": "text"}})
    rows[5] = rows[4]
    prepared = prepare(write_rows(tmp_path / "a.jsonl", rows))
    written = clean.write(prepared, str(tmp_path / "clean.jsonl"))
    assert written["rows"] == 6
    assert prepare(tmp_path / "clean.jsonl").report.rows_dropped == 0
    with pytest.raises(EngineError, match="exists already"):
        clean.write(prepared, str(tmp_path / "clean.jsonl"))
    with pytest.raises(EngineError, match="JSON lines"):
        clean.write(prepared, str(tmp_path / "clean.csv"))


def test_other_processes_make_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_rows(tmp_path / "a.jsonl", sharegpt(40, {7: {"conversations": "text"}}))
    monkeypatch.setattr(pipeline, "BLOCK_ROWS", 8)
    found = []
    for processes in (1, 2):
        monkeypatch.setenv("QLORA_HOME", str(tmp_path / f"home{processes}"))
        prepared = prepare(file, processes=processes)
        found.append(([row.input_ids for row in prepared.train], prepared.report))
    assert found[0] == found[1]


def test_what_was_tokenized_is_kept_and_anything_that_matters_makes_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    file = write_rows(tmp_path / "a.jsonl", instruction_rows(10))
    calls = []
    real = pipeline._tokenize_all
    monkeypatch.setattr(pipeline, "_tokenize_all", lambda *a: calls.append(1) or real(*a))
    prepare(file)
    prepare(file, seq_len=100, held_out_fraction=0.3)
    assert len(calls) == 1
    prepare(file, system_prompt="Be brief.")
    write_rows(file, instruction_rows(11))
    prepare(file)
    assert len(calls) == 3


def test_a_damaged_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    file = write_rows(tmp_path / "a.jsonl", instruction_rows(10))
    first = [row.input_ids for row in prepare(file).train]
    for kept in (cache.folder() / "tokens").glob("*/tokens.arrow"):
        os.truncate(kept, kept.stat().st_size // 2)
    for kept in (cache.folder() / "prepared").glob("*/report.json"):
        kept.write_text("{", encoding="utf-8")
    assert [row.input_ids for row in prepare(file).train] == first


def test_stop_is_heard_while_tokenizing(tmp_path: Path) -> None:
    control = Control()
    control.request_stop()
    with pytest.raises(Cancelled):
        prepare(write_rows(tmp_path / "a.jsonl", [{"instruction": "stop", "output": "now"}]), control=control)


def test_the_first_look_reads_only_the_beginning(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", sharegpt(60, {2: {"conversations": "text"}}))
    with file.open("ab") as out:
        out.truncate(4 << 30)  # a hole of four gigabytes, which nobody has time to read
    found = preview(DataSettings(path=str(file)))
    assert found["format"] == "sharegpt"
    assert found["rows"][1]["problem"]
    assert found["rows"][0]["read"]["messages"][0]["text"] == "Count to 1."
    json.dumps(found)


def test_packing_a_hundred_thousand_rows_takes_seconds() -> None:
    class Sized(list[Any]):
        lengths = np.random.default_rng(1).integers(5, 900, 100_000)

    bins = pack(Sized(), 1024)
    assert np.bincount(np.diff(bins.edges)).sum() == len(bins)
    assert sorted(bins.members.tolist()) == list(range(100_000))
    assert bins.lengths.max() <= 1024
    assert bins.lengths.mean() > 950


def test_thoughts_that_the_template_begins_and_no_row_has_are_found(tmp_path: Path) -> None:
    """In use such a model would be asked otherwise than it was trained; one click asks without."""
    tokenizer = tokenizer_for(MECHANISMS["the prompt opens a thought"])
    plain = write_rows(tmp_path / "plain.jsonl", sharegpt(12, {}))
    thinking = sharegpt(12, {})
    for row in thinking:
        row["conversations"][1]["value"] = "<think>\nHm.\n</think>\n\n" + row["conversations"][1]["value"]

    def found(file: Path, reasoning: str = "train", of: Any = tokenizer) -> dict[str, Any] | None:
        prepared = data.prepare(DataSettings(path=str(file), reasoning=reasoning), of, seed=3)
        return codes(prepared).get("data.opened_thought")

    finding = found(plain)
    assert finding is not None
    assert finding["repair"] == {"setting": "data.reasoning", "value": "remove"}
    assert found(plain, "context") is not None
    assert found(plain, "remove") is None
    assert found(write_rows(tmp_path / "thinking.jsonl", thinking)) is None
    assert found(plain, of=tiny_tokenizer()) is None
