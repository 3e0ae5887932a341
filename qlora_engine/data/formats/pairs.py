"""Conversations as a list of rounds, `{"human": ..., "assistant": ...}`, or as a list of texts said in turn. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_engine.data.conversation import Message, RowProblem
from qlora_engine.data.formats import turns
from qlora_engine.data.formats.kind import Keys, is_given

SAID_BY = {
    "system": "system",
    "human": "user", "user": "user", "input": "user", "question": "user", "prompt": "user", "query": "user",
    "instruction": "user",
    "assistant": "assistant", "bot": "assistant", "gpt": "assistant", "output": "assistant", "answer": "assistant",
    "response": "assistant", "model": "assistant",
}  # fmt: skip
ORDER = ("system", "user", "assistant")


def kind_of(listed: Sequence[Any]) -> str:
    """What such a list holds, in words; empty where its turns are of another form."""
    if len(listed) > 1 and all(isinstance(one, str) for one in listed):
        return "texts said by user and assistant in turn"
    if listed and all(_is_round(one) for one in listed):
        return f"rounds of {' and '.join(_keys_of(listed[0]))}"
    return ""


def read(listed: Sequence[Any], keys: Keys, under: str) -> list[Message]:
    """The messages of a list that `kind_of` names.

    Raises:
        RowProblem: a round holds something that is no text.
    """
    if isinstance(listed[0], str):
        return [
            turns.answer(one) if number % 2 else Message("user", one) for number, one in enumerate(listed)
        ]
    return [message for one in listed for message in _messages(one, keys, under)]


def _is_round(turn: Any) -> bool:
    """Every key that is given says who speaks, and a question and an answer are among them."""
    if not isinstance(turn, Mapping) or turns.role_of(turn):
        return False
    given = [str(key).lower() for key in _keys_of(turn)]
    said_by = [SAID_BY.get(key) for key in given]
    return None not in said_by and {"user", "assistant"} <= set(said_by) and len(set(said_by)) == len(given)


def _keys_of(turn: Mapping[str, Any]) -> list[str]:
    return [key for key, value in turn.items() if is_given(value)]


def _messages(turn: Mapping[str, Any], keys: Keys, under: str) -> list[Message]:
    by_role = {SAID_BY[str(key).lower()]: key for key in _keys_of(turn)}
    keys.use(*[f"{under}{key}" for key in by_role.values()])
    return [_message(role, turn[by_role[role]]) for role in ORDER if role in by_role]


def _message(role: str, text: Any) -> Message:
    if not isinstance(text, str):
        raise RowProblem(f"a turn of {role} is no text")
    return turns.answer(text) if role == "assistant" else Message(role, text)
