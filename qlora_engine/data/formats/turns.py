"""Turns of a conversation as the usual files have them: roles, text or parts, reasoning, calls, weights. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qlora_engine import parsing
from qlora_engine.data.conversation import Message, RowProblem
from qlora_engine.data.formats import calls as tool_calls
from qlora_engine.data.formats.kind import Keys, is_given
from qlora_engine.data.formats.parts import Parts, read_parts

ROLES = {
    "system": "system", "developer": "developer", "instruction": "system", "user": "user", "human": "user",
    "prompter": "user", "question": "user", "customer": "user", "person": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "answer": "assistant", "ai": "assistant", "chatbot": "assistant", "bing": "assistant", "bard": "assistant",
    "output": "assistant", "assistant_response": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "ipython": "tool", "tool_response": "tool",
    "usuario": "user", "utilisateur": "user", "benutzer": "user", "nutzer": "user", "utente": "user", "usu\u00e1rio": "user",
    "\u043f\u043e\u043b\u044c\u0437\u043e\u0432\u0430\u0442\u0435\u043b\u044c": "user", "\u7528\u6237": "user", "\u7528\u6236": "user",
    "\u30e6\u30fc\u30b6\u30fc": "user", "\uc0ac\uc6a9\uc790": "user",
    "asistente": "assistant", "assistente": "assistant", "assistent": "assistant",
    "\u0430\u0441\u0441\u0438\u0441\u0442\u0435\u043d\u0442": "assistant", "\u52a9\u624b": "assistant",
    "\u30a2\u30b7\u30b9\u30bf\u30f3\u30c8": "assistant", "\uc5b4\uc2dc\uc2a4\ud134\ud2b8": "assistant",
    "sistema": "system", "syst\u00e8me": "system", "\u0441\u0438\u0441\u0442\u0435\u043c\u0430": "system", "\u7cfb\u7edf": "system",
    "\u7cfb\u7d71": "system", "\u30b7\u30b9\u30c6\u30e0": "system", "\uc2dc\uc2a4\ud15c": "system",
    "function_response": "tool", "function_result": "tool", "environment": "tool", "tool_result": "tool",
}  # fmt: skip
CALLING = ("function_call", "tool_call", "tool_calls", "function-call", "action")
"""Roles of a turn that is nothing but calls."""
ROLE_KEYS = ("role", "from", "speaker", "author")
TEXT_KEYS = ("content", "value", "text", "message")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
CALL_ID_KEYS = ("tool_call_id", "call_id", "tool_use_id")
KNOWN = frozenset(
    [*ROLE_KEYS, *TEXT_KEYS, *REASONING_KEYS, *CALL_ID_KEYS, "tool_calls", "function_call", "name"]
)
THOUGHT = re.compile(
    r"\s*<(think|thinking|thought|reasoning)>(.*?)</\1>[ \t]*\n?\n?", re.DOTALL | re.IGNORECASE
)
"""Reasoning written into an answer: only at its very beginning, and only when it is closed; else the tag is text."""
MARKED_THOUGHT = re.compile(
    r"\s*<\|begin_of_thought\|>(.*?)<\|end_of_thought\|>\s*<\|begin_of_solution\|>(.*?)<\|end_of_solution\|>\s*\Z",
    re.DOTALL,
)
"""The same with the answer between marks, too."""


def read_turns(turns: Sequence[Any], keys: Keys | None = None, under: str = "messages[].") -> list[Message]:
    """Every turn as messages; a text and the calls right after it are one turn.

    Raises:
        RowProblem: a turn cannot be read.
    """
    keys = keys or Keys()
    found: list[Message] = []
    for turn in turns:
        for message in _read_turn(turn, keys, under):
            if message.calls and not message.text and found and found[-1].is_answer:
                found[-1] = _joined(found[-1], message)
            else:
                found.append(message)
    return found


def from_json_list(value: Any, what: str) -> list[Any]:
    """A list, also when a table holds it as JSON text.

    Raises:
        RowProblem: it is none.
    """
    if isinstance(value, str):
        try:
            value = parsing.from_json(value)
        except ValueError:
            raise RowProblem(f"its {what} is a text, not a list of turns") from None
    if isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, list) or not value:
        raise RowProblem(f"it has no {what}")
    is_wrapped = len(value) == 1 and isinstance(value[0], list | tuple) and bool(value[0])
    return list(value[0]) if is_wrapped else value


def role_of(turn: Mapping[str, Any]) -> str:
    """The role as the file writes it, in small letters; empty when there is none."""
    for key in ROLE_KEYS:
        value = turn.get(key)
        if isinstance(value, Mapping):
            value = value.get("role")
        if isinstance(value, str):
            return value.strip().lower()
    return ""


def finished(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation fit for training: no empty system turn, nothing after the last answer, an answer and a question.

    Raises:
        RowProblem: it has none (CORRECTNESS 23).
    """
    kept = [m for m in messages if m.role not in ("system", "developer") or m.text.strip()]
    while kept and not kept[-1].is_answer:
        kept.pop()
    answers = [m for m in kept if m.is_answer]
    if not answers:
        raise RowProblem("it has no answer")
    if all(m.is_empty for m in answers):
        raise RowProblem("its answer is empty")
    if all(m.is_empty for m in kept if m.role in ("user", "tool")):
        raise RowProblem("its question is empty")
    if all(m.is_trained is False for m in answers if not m.is_empty):
        raise RowProblem("none of its answers is to be trained (their weight is 0)")
    return tuple(kept)


def split_reasoning(text: str) -> tuple[str | None, str]:
    """(reasoning, the rest) of an answer that begins with a closed `<think>` block; (None, the text) otherwise."""
    marked = MARKED_THOUGHT.match(text)
    if marked is not None:
        return marked[1].strip() or None, marked[2].strip()
    found = THOUGHT.match(text)
    if found is None:
        return None, text
    return found[2].strip() or None, text[found.end() :]


def answer(text: str, *, is_trained: bool | None = None) -> Message:
    """An answer whose reasoning may stand in its text."""
    reasoning, said = split_reasoning(text)
    return Message("assistant", said, reasoning, is_trained=is_trained)


def _read_turn(turn: Any, keys: Keys, under: str) -> Iterator[Message]:
    if not isinstance(turn, Mapping):
        raise RowProblem("a turn is not an object")
    written = role_of(turn)
    if written not in ROLES and written not in CALLING:
        raise RowProblem(f"a turn has the unknown role {written!r}" if written else "a turn has no role")
    keys.use(*[f"{under}{key}" for key in turn if key in KNOWN])
    is_trained = _weight(turn, keys, under)
    keys.left(turn, under=under)
    if written in CALLING:
        yield Message("assistant", "", calls=tool_calls.from_text(_text(turn)), is_trained=is_trained)
        return
    role = ROLES[written]
    parts = read_parts(_content(turn), keys, under)
    for result in parts.results:
        yield Message("tool", result.text, call_id=result.call_id)
    if parts.results and not parts.text:
        return
    yield _message(role, turn, parts, is_trained)


def _message(role: str, turn: Mapping[str, Any], parts: Parts, is_trained: bool | None) -> Message:
    if role == "assistant":
        return _answer(turn, parts, is_trained)
    if parts.text is None:
        raise RowProblem(f"a turn of {role} has no text")
    call_id = next((str(turn[key]) for key in CALL_ID_KEYS if is_given(turn.get(key))), None)
    name = turn.get("name")
    return Message(
        role, parts.text, call_id=call_id if role == "tool" else None, name=name if isinstance(name, str) and name else None
    )  # fmt: skip


def _answer(turn: Mapping[str, Any], parts: Parts, is_trained: bool | None) -> Message:
    calls = (*parts.calls, *tool_calls.of_turn(turn))
    stated = next((turn[key] for key in REASONING_KEYS if is_given(turn.get(key))), parts.reasoning)
    if stated is not None and not isinstance(stated, str):
        raise RowProblem("the reasoning of an answer is no text")
    inline, text = split_reasoning(parts.text or "")
    if parts.text is None and not calls and stated is None:
        raise RowProblem("a turn of assistant has no text")
    reasoning = "\n\n".join(t for t in (stated, inline) if t and t.strip()) or None
    return Message("assistant", text, reasoning, calls, is_trained=is_trained)


def _joined(first: Message, calls: Message) -> Message:
    is_trained = calls.is_trained if first.is_trained is None else first.is_trained
    return Message("assistant", first.text, first.reasoning, (*first.calls, *calls.calls), is_trained=is_trained)  # fmt: skip


def _content(turn: Mapping[str, Any]) -> Any:
    return next((turn[key] for key in TEXT_KEYS if turn.get(key) is not None), None)


def _text(turn: Mapping[str, Any]) -> Any:
    return _content(turn)


def _weight(turn: Mapping[str, Any], keys: Keys, under: str) -> bool | None:
    """What `weight` (0 or 1) or `train` (true or false) say of a turn; None when neither does."""
    for key in ("weight", "train"):
        value = turn.get(key)
        if isinstance(value, bool | int | float) and value in (0, 1):
            keys.use(f"{under}{key}")
            return bool(value)
    return None
