"""What is trained: the answers with their end tokens and nothing else, whatever the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_engine import data
from qlora_engine.config import DataSettings
from qlora_engine.data.conversation import Conversation, RowProblem, talk
from qlora_engine.data.templates import NAMED, choose
from qlora_engine.data.tokenize import Policy, TokenRow, tokenize, trained_mask
from qlora_engine.errors import EngineError
from tests.support.tiny import CHATML, instruction_rows, tiny_tokenizer, write_rows

TALK = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "It is 6."},
)
WORD_TEMPLATES = {name for name, named in NAMED.items() if not named.tokens} | {"chatml"}
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1].lstrip() }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trained_text(row: TokenRow, tokenizer: Any) -> str:
    ids = [token for token, is_trained in zip(row.input_ids, row.trained, strict=True) if is_trained]
    return str(tokenizer.decode(ids))


def one(
    tokenizer: Any, template: str, messages: tuple[dict[str, str], ...] = TALK, **options: str
) -> TokenRow:
    conversation = Conversation(1, talk(messages))
    (row,) = tokenize([conversation], tokenizer, choose(tokenizer, template), Policy(**options))
    if isinstance(row, RowProblem):
        raise row
    return row


@pytest.mark.parametrize("name", sorted(WORD_TEMPLATES))
def test_every_answer_is_trained_with_its_end_and_nothing_else(name: str) -> None:
    tokenizer = tiny_tokenizer()
    text = trained_text(one(tokenizer, name), tokenizer)
    assert text.replace(" ", "") == "Itis4.<|im_end|>Itis6.<|im_end|>"


def test_the_whole_row_decodes_to_the_rendered_text() -> None:
    tokenizer = tiny_tokenizer()
    row = one(tokenizer, "auto")
    assert tokenizer.decode(row.input_ids) == row.text


def test_everything_can_be_trained() -> None:
    tokenizer = tiny_tokenizer()
    assert all(one(tokenizer, "auto", train_on="everything").trained)


def test_bos_is_written_once() -> None:
    tokenizer = tiny_tokenizer()
    row = one(tokenizer, "alpaca")
    assert row.input_ids.count(tokenizer.bos_token_id) == 1


def test_a_template_that_drops_earlier_reasoning_still_trains_the_right_tokens() -> None:
    tokenizer = tiny_tokenizer(THINKING)
    messages = (
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>long</think>one"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "two"},
    )
    assert trained_text(one(tokenizer, "auto", messages), tokenizer) == "one<|im_end|>two<|im_end|>"


def test_an_answer_that_repeats_the_question_is_found_in_its_own_turn() -> None:
    tokenizer = tiny_tokenizer()
    messages = ({"role": "user", "content": "echo"}, {"role": "assistant", "content": "echo"})
    row = one(tokenizer, "auto", messages)
    assert trained_text(row, tokenizer) == "echo<|im_end|>"
    first = row.trained.index(True)
    assert "assistant" in tokenizer.decode(row.input_ids[:first])


def test_an_answer_that_cannot_be_found_stops_everything(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(CHATML.replace("message['content']", "message['content'] | upper"))
    rows = write_rows(tmp_path / "a.jsonl", instruction_rows(4))
    with pytest.raises(EngineError, match="cannot be found") as caught:
        data.prepare(DataSettings(path=str(rows)), tokenizer, seed=1)
    assert caught.value.code == "data.columns"


def test_padding_equal_to_the_end_token_does_not_untrain_the_end() -> None:
    from qlora_engine.data.batches import collate

    tokenizer = tiny_tokenizer(pad_token="<|im_end|>")
    rows = [one(tokenizer, "auto"), one(tokenizer, "auto", TALK[1:3])]
    batch = collate(rows, tokenizer.pad_token_id)
    end = tokenizer.eos_token_id
    assert (batch.labels[0] == end).sum() == 2
    assert (batch.labels[1] == end).sum() == 1
    padded = len(rows[1].input_ids)
    assert (batch.labels[1, padded:] == -100).all()


@pytest.mark.parametrize(
    ("offsets", "spans", "expected"),
    [
        ([(0, 3), (3, 6), (6, 9)], [(3, 6)], [False, True, False]),
        ([(0, 4), (4, 6)], [(3, 6)], [False, True]),
        ([(0, 2), (2, 2), (2, 4)], [(0, 4)], [True, False, True]),
        ([(0, 2), (2, 4), (4, 6)], [(0, 2), (4, 6)], [True, False, True]),
    ],
)
def test_the_mask_follows_the_characters(offsets: Any, spans: Any, expected: list[bool]) -> None:
    assert trained_mask(offsets, spans) == expected


@pytest.mark.parametrize(
    ("wanted", "words"), [("llama3", "is no token of this model"), ("chatlm", "did you mean 'chatml'")]
)
def test_a_template_that_does_not_fit_is_refused(wanted: str, words: str) -> None:
    with pytest.raises(EngineError) as caught:
        choose(tiny_tokenizer(), wanted)
    assert words in str(caught.value)


def test_a_model_without_template_gets_a_plain_one_and_it_is_said(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", instruction_rows(20))
    prepared = data.prepare(DataSettings(path=str(rows)), tiny_tokenizer(None), seed=1)
    assert prepared.report.template == "alpaca"
    assert any("no chat template" in notice for notice in prepared.report.notices)


def test_a_template_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML, encoding="utf-8")
    assert choose(tiny_tokenizer(None), str(file)).name == "mine.jinja"
    file.write_text("{% for %}", encoding="utf-8")
    with pytest.raises(EngineError, match="cannot be used"):
        choose(tiny_tokenizer(None), str(file))


def test_a_template_without_system_role_gets_it_in_the_question() -> None:
    strict = CHATML.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    )
    tokenizer = tiny_tokenizer(strict)
    row = one(tokenizer, "auto")
    assert "Be brief.\n\nWhat is 2 + 2?" in row.text
