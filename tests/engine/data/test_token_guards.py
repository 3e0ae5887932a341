"""Beginnings and ends of rows: a beginning token once, the end that stops a model trained, padding known by its length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from qlora_engine import data
from qlora_engine.config import DataSettings
from qlora_engine.data import batches, inspection, tokenize
from qlora_engine.data.conversation import Conversation, Message
from qlora_engine.data.plain_tokenizer import PlainTokenizer
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import choose
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.evaluate import generate
from qlora_engine.export import verify_child
from tests.support.mechanisms import MECHANISMS
from tests.support.template_tokenizer import EOS, tokenizer_for
from tests.support.tiny import CHATML, instruction_rows, tiny_tokenizer, write_rows

TALK = (Message("user", "What is 2 + 2?"), Message("assistant", "It is 4."))
QUOTING = (Message("user", "Quote <|im_end|>."), Message("assistant", "Here: <|im_end|>"))


def adding(jinja: str = CHATML) -> Any:
    """A tokenizer that puts a beginning and an end around every text, as those of most models do."""
    tokenizer = tiny_tokenizer(jinja)
    ends = [("<s>", tokenizer.bos_token_id), ("<|im_end|>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|im_end|>", special_tokens=ends
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


def rows_by_offsets(tokenizer: Any, folder: Path) -> Any:
    template = choose(tokenizer, "auto")
    work = tokenize._Work(tokenizer, template, Policy(), tokenize._ids_of(template.source.markers, tokenizer))
    found = tokenize._by_offsets([Conversation(1, TALK), Conversation(2, QUOTING)], work)
    return [row.ids.tolist() for row in found]  # type: ignore[union-attr]


def rows_by_bytes(tokenizer: Any, folder: Path) -> Any:
    rows = tokenize.tokenize([Conversation(1, TALK)], tokenizer, choose(tokenizer, "auto"), Policy())
    return [row.input_ids for row in rows if isinstance(row, TokenRow)]


def prepared_rows(content: list[dict[str, Any]]) -> Any:
    def rows(tokenizer: Any, folder: Path) -> Any:
        file = write_rows(folder / "rows.jsonl", content)
        prepared = data.prepare(DataSettings(path=str(file), held_out_fraction=0.0), tokenizer, seed=1)
        shown = inspection.shown_rows(prepared.train, tokenizer, 1)
        return [row.input_ids for row in prepared.train], shown

    return rows


def tokens_of_another_process(tokenizer: Any, folder: Path) -> Any:
    plain = PlainTokenizer.of(tokenizer)
    return plain("It rained.")["input_ids"], plain(["It rained.", "Once."])["input_ids"]


def chat_prompt(tokenizer: Any, folder: Path) -> Any:
    return generate.prompt_ids(tokenizer, [{"role": "user", "content": "hi"}]).tolist()


def prompt_of_a_proof(tokenizer: Any, folder: Path) -> Any:
    request = {"chat_template": "auto", "policy": {}}
    return verify_child._prompt(request, tokenizer, "hi").tolist()


PLACES = {
    "rows by offsets": rows_by_offsets, "rows by bytes": rows_by_bytes, "prepared rows": prepared_rows(instruction_rows(3)),
    "plain texts": prepared_rows([{"text": "Once upon a time."}, {"text": "It rained."}]), "a chat": chat_prompt,
    "rows in another process": tokens_of_another_process,
    "the proof of an export": prompt_of_a_proof,
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_what_a_tokenizer_adds_of_its_own_stands_in_no_row_and_no_prompt(place: str, tmp_path: Path) -> None:
    """The template has written it already: a second beginning is what no base has ever seen."""
    assert PLACES[place](adding(), tmp_path) == PLACES[place](tiny_tokenizer(), tmp_path)


@pytest.mark.parametrize("text", ["Once.", "<s>Once.", "<s>Once.<|im_end|>", "Once.<|im_end|>"])
def test_a_plain_text_has_one_beginning_and_one_end(text: str) -> None:
    tokenizer = adding()
    tokenizer.add_bos_token = True
    assert tokenize.with_ends(text, tokenizer) == "<s>Once.<|im_end|>"


def test_rows_with_two_beginnings_are_told(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": f"<s><s>Row {n}."} for n in range(4)])
    report = data.prepare(DataSettings(path=str(file)), tiny_tokenizer(), seed=1).report
    (found,) = [f for f in report.findings if f["code"] == "data.bos"]
    assert "up to 2 beginning tokens" in found["text"]


def test_padding_equal_to_the_end_hides_no_end() -> None:
    """What attention may look at is told by lengths: the end inside a row is looked at, the same token behind it is not."""
    end = tiny_tokenizer().eos_token_id
    rows = [TokenRow(ids, [True] * len(ids), 1, (len(ids),)) for ids in ([5, end, 6, 7, 8, end], [5, end, 6])]
    mask = batches.collate(rows, end).attention_mask
    assert mask is not None
    assert mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]


def test_the_first_token_of_each_row_laid_end_to_end_is_predicted_from_nothing() -> None:
    rows = [TokenRow(ids, [True] * len(ids), 1, (len(ids),)) for ids in ([5, 6, 7], [8, 9])]
    batch = batches.join(rows)
    assert batch.labels.tolist() == [[-100, 6, 7, -100, 9]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.targets is not None
    assert batch.targets.tolist() == [6, 7, 9]


def test_the_end_that_generation_stops_at_is_the_one_that_is_trained(tmp_path: Path) -> None:
    """Of two markers that close a turn, the model's generation config says which; the last one where nothing says it."""
    tokenizer = tokenizer_for(MECHANISMS["two markers close"])
    assert choose(tokenizer, "auto").layout.ends.said == ("<|close|>",)
    done = tokenizer.convert_tokens_to_ids("<|done|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [done]}), encoding="utf-8")
    tokenizer.name_or_path = str(tmp_path)
    template = choose(tokenizer, "auto")
    (row,) = tokenize.tokenize([Conversation(1, TALK)], tokenizer, template, Policy())
    assert isinstance(row, TokenRow)
    assert row.input_ids[len(row.trained) - 1 - row.trained[::-1].index(True)] == done
    assert "<|done|>" in template.end_tokens


def test_an_end_that_also_closes_thoughts_is_no_stop_and_another_is_trained_behind_it() -> None:
    """A model that stopped at it would stop before its answer."""
    tokenizer = tokenizer_for(MECHANISMS["the end also closes thoughts"])
    template = choose(tokenizer, "auto")
    said = (TALK[0], Message("assistant", "It is 4.", "Two and two."))
    (row,) = tokenize.tokenize([Conversation(1, said)], tokenizer, template, Policy())
    assert isinstance(row, TokenRow)
    assert tokenizer.convert_ids_to_tokens(row.input_ids[-2:]) == ["<|close|>", EOS]
    assert row.trained[-2:] == [True, True]
    assert template.end_tokens == (EOS,)
