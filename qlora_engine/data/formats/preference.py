"""Preference pairs: a wanted and an unwanted answer. Only the wanted one can be trained, and only once a person said so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_engine.data.conversation import Message, RowProblem
from qlora_engine.data.formats import context, transcript, turns
from qlora_engine.data.formats.columns import text_of, usual_column
from qlora_engine.data.formats.kind import Detection, Format, Keys, Question, Row, Said

FIELDS = {
    "prompt": ("prompt", "question", "instruction", "input", "conversations", "messages"),
    "chosen": ("chosen", "chosen_response", "preferred"),
    "rejected": ("rejected", "rejected_response", "dispreferred"),
}
OPTIONAL = ("prompt",)
QUESTION = Question(
    "data.preference",
    "these rows are pairs of a wanted and an unwanted answer, which this program does not compare: it can train the wanted one",
    "data.preference",
    ("chosen",),
)


def test(rows: Sequence[Row], columns: Sequence[str], chosen: Mapping[str, str]) -> str:
    found = [
        chosen.get(field) or usual_column(FIELDS[field], columns, ()) for field in ("chosen", "rejected")
    ]
    if None in found or found[0] == found[1]:
        return ""
    return f"it has the columns {found[0]} and {found[1]}: pairs of a wanted and an unwanted answer"


def read(row: Row, detection: Detection, keys: Keys) -> Said:
    columns = detection.columns
    keys.use(columns["chosen"], columns["rejected"])
    prompt = row.get(columns.get("prompt", ""))
    asked = _turns(prompt, columns.get("prompt", ""), "user", keys)
    wanted = row.get(columns["chosen"])
    if isinstance(wanted, str):
        said = _written(text_of(row, columns["chosen"], "wanted answer"), has_question=bool(asked))
    else:
        said = _turns(wanted, columns["chosen"], "assistant", keys)
    if not said:
        raise RowProblem("its wanted answer is missing")
    talk = said if _begins_with(said, asked) else [*asked, *said]
    return Said(tuple(context.with_system(row, talk, keys)), context.tools_of(row, keys))


def _written(wanted: str, *, has_question: bool) -> list[Message]:
    """A wanted answer; without a question beside it, it may be the whole conversation written out."""
    if not has_question and transcript.style_of(wanted) is not None:
        return transcript.read_text(wanted)
    return [turns.answer(wanted)]


def _turns(value: Any, column: str, role: str, keys: Keys) -> list[Message]:
    if value is None or column == "":
        return []
    keys.use(column)
    if isinstance(value, str):
        return [Message(role, value)]
    if isinstance(value, Mapping):
        value = [value]
    return turns.read_turns(turns.from_json_list(value, column), keys, f"{column}[].")


def _begins_with(said: Sequence[Message], asked: Sequence[Message]) -> bool:
    """Whether the answer repeats the whole question, as some sets have it."""
    return bool(asked) and len(said) > len(asked) and list(said[: len(asked)]) == list(asked)


FORMAT = Format("preference", "Preference pairs (chosen, rejected)", FIELDS, test, read, OPTIONAL)
