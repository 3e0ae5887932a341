"""A row whose answers a template loses, mixes or moves is refused with what it does, and never trained as something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers

from qlora_engine import data
from qlora_engine.config import DataSettings
from qlora_engine.data import answers, byte_masks, layout, skeleton, tokenize, working
from qlora_engine.data.conversation import Conversation, Message, RowProblem
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import choose
from qlora_engine.data.tokenize import TokenRow
from tests.support.mechanisms import MECHANISMS
from tests.support.template_tokenizer import tokenizer_for
from tests.support.tiny import instruction_rows, tiny_tokenizer, write_rows

TALK = (
    Message("user", "uone"), Message("assistant", "aone"), Message("user", "utwo"), Message("assistant", "atwo"),
)  # fmt: skip
EACH = "{% for m in messages %}"
ASK = "{% if add_generation_prompt %}<|open|>assistant\n{% endif %}"
REFUSED = {
    "leaves the text of an answer out": EACH
    + "<|open|>{{ m.role }}\n{{ '' if loop.index0 == 1 and messages | length == 4 else m.content }}<|close|>{% endfor %}"
    + ASK,
    "changes an answer's text": EACH
    + "<|open|>{{ m.role }}\n{{ m.content | upper if messages | length == 4 else m.content }}<|close|>{% endfor %}" + ASK,
    "writes parts of an answer in other places": EACH
    + "<|open|>{{ m.role }}\n{% if m.role == 'assistant' %}{{ m.content[:2] }}{{ messages[0].content }}{{ m.content[2:] }}"
    "{% else %}{{ m.content }}{% endif %}<|close|>{% endfor %}" + ASK,
    "writes the prompt of an answer in another order": "{% set all = messages | reverse if add_generation_prompt "
    "else messages %}{% for m in all %}<|open|>{{ m.role }}\n{{ m.content }}<|close|>{% endfor %}" + ASK,
}  # fmt: skip
MORE = (Message("system", "be kind"), *TALK[:2])


def encoded(jinja: str, talk: tuple[Message, ...] = TALK) -> Any:
    tokenizer = tokenizer_for(jinja)
    (found,) = tokenize.tokenize([Conversation(3, talk)], tokenizer, choose(tokenizer, "auto"), Policy())
    return found


@pytest.mark.parametrize("words", sorted(REFUSED))
def test_a_template_that_spoils_answers_is_refused_by_what_it_does(words: str) -> None:
    found = encoded(REFUSED[words], MORE if "order" in words else TALK)
    assert isinstance(found, RowProblem), found
    assert words in found.reason
    assert found.number == 3


def test_a_span_with_another_turn_inside_is_refused() -> None:
    """Whoever computed it: what is trained is one message's own."""
    tokenizer = tokenizer_for(MECHANISMS["one marker closes every turn"])
    template = choose(tokenizer, "auto")
    shown = layout.render(template.source, template.layout.shape, TALK)
    work = answers._Work(
        shown,
        TALK,
        template.source,
        template.layout,
        Policy(),
        lambda _: shown,
        lambda _, __: shown,
        answers.Memory(),
    )
    extent = shown.extent(1)
    assert extent is not None
    answers._require_alone(work, 1, *extent)
    with pytest.raises(answers.MaskProblem, match="mixes an answer with other text"):
        answers._require_alone(work, 1, 0, extent[1])


def test_an_answer_that_nothing_can_end_is_refused() -> None:
    tokenizer = tokenizer_for("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    tokenizer.eos_token = None
    (found,) = tokenize.tokenize([Conversation(3, TALK)], tokenizer, choose(tokenizer, "auto"), Policy())
    assert isinstance(found, RowProblem)
    assert "names a token that ends an answer" in found.reason


@pytest.mark.parametrize(
    ("with_end", "words"),
    [(0, "No row trains a token that ends the answer"), (4, "2 rows train no token that ends"), (6, "")],
)
def test_rows_without_an_end_are_told(
    with_end: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))  # nothing of this is for anyone's cache
    whole = working._ends_trained
    monkeypatch.setattr(
        working, "_ends_trained", lambda *a: whole(*a) & (np.arange(len(a[3]) - 1) < with_end)
    )
    file = write_rows(tmp_path / "rows.jsonl", instruction_rows(6))
    settings = DataSettings(path=str(file))
    report = data.prepare(settings, tiny_tokenizer(), seed=1, is_look=True, processes=1).report
    told = [f["text"] for f in report.findings if f["code"] == "data.no_end"]
    assert (len(told), report.rows_without_end) == (int(bool(words)), 6 - with_end)
    assert words in " ".join(told)


def test_by_offsets_a_quoted_marker_is_text() -> None:
    """The slower way of rows: a marker that an answer only quotes ends nothing and is no marker's token."""
    tokenizer = tokenizer_for(MECHANISMS["one marker closes every turn"])
    template = choose(tokenizer, "auto")
    work = tokenize._Work(tokenizer, template, Policy(), tokenize._ids_of(template.source.markers, tokenizer))
    said = "Write <|close|> and go on."
    (row,) = tokenize._by_offsets([Conversation(1, (TALK[0], Message("assistant", said)))], work)
    assert not isinstance(row, RowProblem)
    close = tokenizer.convert_tokens_to_ids("<|close|>")
    assert row.ids.tolist().count(close) == 2  # the template's own two
    assert tokenizer.decode(row.ids[row.trained]) == f"{said}<|close|>"


def test_tokens_whose_bytes_do_not_add_up_are_left_to_offsets() -> None:
    """A normalizer that writes more than it reads: by bytes, every token behind it would stand elsewhere."""
    tokenizer = tokenizer_for(MECHANISMS["one marker closes every turn"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("ß", "sss")
    template = choose(tokenizer, "auto")
    lengths = byte_masks.byte_lengths(tokenizer)
    assert lengths is not None
    text = "<|open|>aß<|close|>"
    row = skeleton.Filled(text, len(text.encode()), [(8, 11)], [(8, 11)])
    assert byte_masks.masked([row], tokenizer, lengths, frozenset()) == [None]
    talk = (Message("user", "Straße"), Message("assistant", "Gruß"))
    (found,) = tokenize.tokenize([Conversation(1, talk)], tokenizer, template, Policy())
    assert isinstance(found, TokenRow)
    trained = [t for t, is_trained in zip(found.input_ids, found.trained, strict=True) if is_trained]
    assert tokenizer.decode(trained) == "Grusss<|close|>"
