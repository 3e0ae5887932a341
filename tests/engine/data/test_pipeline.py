"""Splitting, cutting, packing and the report: nothing is lost without being counted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from qlora_engine import data
from qlora_engine.config import DataSettings, TrainingSettings
from qlora_engine.data import batches
from qlora_engine.data.inspection import shown_rows
from qlora_engine.data.packing import pack
from qlora_engine.data.pipeline import automatic_length
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.errors import EngineError
from qlora_engine.paths import resources_dir
from qlora_engine.training import loss, schedule
from tests.support.tiny import instruction_rows, tiny_config, tiny_tokenizer, write_rows

PACKING_FAMILIES = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "gpt_neox",
]


def prepare(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> data.PreparedData:
    file = write_rows(tmp_path / "rows.jsonl", rows)
    return data.prepare(DataSettings(path=str(file), **settings), tiny_tokenizer(), seed=3)


def row(ids: list[int], trained: list[bool] | None = None) -> TokenRow:
    return TokenRow(ids, trained or [True] * len(ids), 1, (len(ids),))


def test_the_split_shares_no_content_and_is_stable(tmp_path: Path) -> None:
    rows = instruction_rows(60) + instruction_rows(10)
    one, two = prepare(tmp_path, rows, held_out_fraction=0.2), prepare(tmp_path, rows, held_out_fraction=0.2)
    train, held = {tuple(r.input_ids) for r in one.train}, {tuple(r.input_ids) for r in one.held_out}
    assert not train & held
    assert len(held) == 12
    assert [tuple(r.input_ids) for r in one.held_out] == [tuple(r.input_ids) for r in two.held_out]
    assert one.report.duplicate_rows == 10


def test_a_row_keeps_its_side_when_others_come(tmp_path: Path) -> None:
    few, many = prepare(tmp_path, instruction_rows(50)), prepare(tmp_path, instruction_rows(52))
    assert {tuple(r.input_ids) for r in few.held_out} & {tuple(r.input_ids) for r in many.held_out}


def test_nothing_held_out_is_said(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, instruction_rows(10), held_out_fraction=0.0)
    assert len(prepared.held_out) == 0
    assert any("Nothing is held out" in notice for notice in prepared.report.notices)


def test_rows_of_the_held_out_file_are_not_trained_on(tmp_path: Path) -> None:
    held = write_rows(tmp_path / "held.jsonl", instruction_rows(5))
    prepared = prepare(tmp_path, instruction_rows(20), held_out_path=str(held))
    assert len(prepared.held_out) == 5
    assert len(prepared.train) == 15
    assert prepared.report.rows_dropped == 5


def test_truncation_is_counted_to_the_token(tmp_path: Path) -> None:
    rows = [*instruction_rows(19), {"instruction": "long", "output": "word " * 200}]
    whole = prepare(tmp_path, rows, held_out_fraction=0.0, seq_len=2000)
    short = prepare(tmp_path, rows, held_out_fraction=0.0, seq_len=80)
    lost = sum(len(r.input_ids) for r in whole.train) - sum(len(r.input_ids) for r in short.train)
    assert short.report.cut_tokens == lost > 0
    assert short.report.truncated_rows == 1
    assert short.report.answer_ends_cut == 1
    assert any("answer's end is cut" in notice for notice in short.report.notices)
    assert any(f"longer than 80 tokens; {lost:,} tokens are cut" in notice for notice in short.report.notices)
    (shortened,) = [row for row in short.train if row.cut_tokens]
    assert (shortened.cut_tokens, shortened.is_answer_cut) == (lost, True)


def test_rows_without_a_trained_token_are_dropped_counted_and_shown(tmp_path: Path) -> None:
    rows = [*instruction_rows(10), {"instruction": "word " * 100, "output": "late"}]
    prepared = prepare(tmp_path, rows, held_out_fraction=0.0, seq_len=60)
    assert len(prepared.train) == 10
    (drop,) = prepared.report.drops
    assert drop["first_rows"] == [11]
    assert "no trained token" in drop["reason"]


def test_a_run_with_nothing_to_train_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no row has a token to train on") as caught:
        prepare(tmp_path, instruction_rows(10), seq_len=8)
    assert caught.value.code == "data.nothing_trained"


def test_a_first_token_alone_is_nothing_to_train(tmp_path: Path) -> None:
    """Nothing stands before it from which it could be predicted."""
    with pytest.raises(EngineError, match="no row has a token to train on"):
        prepare(tmp_path, instruction_rows(4), seq_len=1, train_on="everything")
    assert len(prepare(tmp_path, instruction_rows(4), seq_len=2, train_on="everything").train)


def test_a_role_mapped_to_the_wrong_column_is_refused(tmp_path: Path) -> None:
    rows = [{**r, "empty": ""} for r in instruction_rows(10)]
    with pytest.raises(EngineError, match="10 of 10 rows cannot be read"):
        prepare(tmp_path, rows, columns={"output": "empty", "instruction": "instruction"})


def test_earlier_reasoning_that_the_template_drops_is_said(tmp_path: Path) -> None:
    from tests.engine.data.test_mask import THINKING

    rows = [
        {"messages": [
            {"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "<think>x</think>answer"},
            {"role": "user", "content": "more"}, {"role": "assistant", "content": "done"},
        ]} for n in range(20)
    ]  # fmt: skip
    file = write_rows(tmp_path / "rows.jsonl", rows)
    prepared = data.prepare(DataSettings(path=str(file)), tiny_tokenizer(THINKING), seed=1)
    assert prepared.report.reasoning_rows_dropped == 20
    told = [
        n
        for n in prepared.report.notices
        if "20 rows" in n and "leaves the reasoning of earlier answers out" in n
    ]
    assert told


def test_bad_rows_are_counted_with_their_numbers(tmp_path: Path) -> None:
    rows = instruction_rows(10)
    rows[2]["output"] = ""
    rows[7]["output"] = ""
    report = prepare(tmp_path, rows).report
    assert report.rows_dropped == 2
    assert report.drops[0]["first_rows"] == [3, 8]


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [([10] * 99 + [500], None, 504), ([10] * 200 + [500], None, 16), ([100], 64, 64)],
)
def test_the_length_is_the_99th_percentile(lengths: list[int], limit: int | None, expected: int) -> None:
    assert automatic_length(lengths, limit) == expected


def test_a_length_beyond_the_model_is_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", instruction_rows(4))
    with pytest.raises(EngineError, match="sees at most 64"):
        data.prepare(DataSettings(path=str(file), seq_len=100), tiny_tokenizer(), seed=1, model_max_length=64)


def test_shown_tokens_have_states(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, instruction_rows(20), held_out_fraction=0.0, seq_len=60)
    (shown,) = shown_rows(prepared.train, tiny_tokenizer(), 1)
    states = [token["state"] for token in shown["tokens"]]
    assert {"trained", "masked", "special"} <= set(states)
    assert len(states) == len(prepared.train[0].input_ids) + prepared.train[0].cut_tokens


rows_of_tokens = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20), min_size=1, max_size=25)


@given(rows_of_tokens, st.integers(20, 64))
def test_packing_keeps_every_token_exactly_once(ids: list[list[int]], seq_len: int) -> None:
    packed = pack([row(r) for r in ids], seq_len)
    assert all(len(p.input_ids) <= seq_len for p in packed)
    pieces = []
    for p in packed:
        position = 0
        for size in p.lengths:
            pieces.append(p.input_ids[position : position + size])
            assert not p.trained[position]
            position += size
        assert position == len(p.input_ids)
    assert sorted(pieces) == sorted(ids)


@given(rows_of_tokens)
def test_positions_restart_at_every_boundary(ids: list[list[int]]) -> None:
    packed = pack([row(r) for r in ids], 64)
    batch = batches.collate(packed, 0)
    if batch.position_ids is None:
        assert all(len(p.lengths) == 1 for p in packed)
        return
    for p, positions in zip(packed, batch.position_ids.tolist(), strict=True):
        expected = [n for size in p.lengths for n in range(size)]
        assert positions[: len(expected)] == expected


@pytest.mark.parametrize("family", PACKING_FAMILIES)
def test_packed_loss_equals_unpacked_loss_per_row(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family)).eval()
    generator = torch.Generator().manual_seed(7)
    ids = [torch.randint(5, 300, (size,), generator=generator).tolist() for size in (9, 30, 17, 24)]
    rows = [row(r, [False] + [True] * (len(r) - 1)) for r in ids]
    packed = batches.collate(pack(rows, 48), 0)
    assert packed.position_ids is not None
    together, count = loss.token_losses(model, packed)
    alone = [loss.token_losses(model, batches.collate([r], 0)) for r in rows]
    assert count == sum(n for _, n in alone)
    assert together == pytest.approx(sum(value for value, _ in alone), rel=1e-4)
    padded = loss.row_losses(model, batches.collate(rows, 0))
    for (value, n), (padded_value, padded_n) in zip(alone, padded, strict=True):
        assert n == padded_n
        assert padded_value == pytest.approx(value, rel=1e-4)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert batches.order(50, 1, 0) == batches.order(50, 1, 0)
    assert batches.order(50, 1, 0) != batches.order(50, 1, 1)
    assert batches.order(50, 1, 0) != batches.order(50, 2, 0)
    assert sorted(batches.order(50, 1, 3)) == list(range(50))


def test_the_order_of_an_epoch_is_made_once_and_not_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a million rows are shuffled in some milliseconds, which is half of a small model's step."""
    made: list[int] = []
    shuffled = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda rows, **more: made.append(rows) or shuffled(rows, **more))
    settings = TrainingSettings(epochs=2.0, effective_batch=4)
    plan = schedule.plan(settings, 4_001, batches.order)
    visited = [row for step in range(plan.total_steps) for row in plan.rows_of(step)]
    assert made == [4_001, 4_001]
    assert sorted(visited) == sorted([*range(4_001)] * 2)
    assert visited[:4_001] != visited[4_001:]


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location(
        "make_dataset", resources_dir() / "starter" / "make_dataset.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_starter_dataset_is_what_its_script_writes() -> None:
    train, held_out = load_generator().rows()
    folder = resources_dir() / "starter"
    stored = [[json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()] for name in ("train.jsonl", "held_out.jsonl")]  # fmt: skip
    assert stored == [train, held_out]


def test_the_starter_dataset_shares_no_row_between_its_parts() -> None:
    train, held_out = load_generator().rows()
    asked = {r["instruction"] for r in train}
    assert len(asked) == len(train) == 360
    assert len({r["instruction"] for r in held_out}) == len(held_out) == 40
    assert not asked & {r["instruction"] for r in held_out}
    assert all(json.loads(r["output"])["do"] for r in train)
    prompts = json.loads((resources_dir() / "starter" / "prompts.json").read_text(encoding="utf-8"))[
        "prompts"
    ]
    assert not asked & set(prompts)


def test_the_starter_dataset_is_prepared_with_its_own_held_out_part() -> None:
    prepared = data.prepare(DataSettings(), tiny_tokenizer(), seed=1)
    assert (len(prepared.train), len(prepared.held_out)) == (360, 40)
