"""What a row of data means: one conversation, or one text, whatever file and format it came from. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")


class RowProblem(Exception):  # noqa: N818 - carries a reason, is counted, never seen by a person as an error
    """A row that cannot be used; its text is the reason. `number` is the row's place in the data, where known."""

    def __init__(self, reason: str, number: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.number = number

    def __reduce__(self) -> tuple[type[RowProblem], tuple[str, int | None]]:
        return RowProblem, (self.reason, self.number)


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool. `arguments` is an object wherever the data gave one, also as JSON text."""

    name: str
    arguments: Mapping[str, Any] | str
    id: str | None = None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name, "arguments": self.arguments}
        return found if self.id is None else {**found, "id": self.id}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ToolCall:
        return cls(stored["name"], stored["arguments"], stored.get("id"))


@dataclass(frozen=True)
class Message:
    """One turn. `text` is what is said, `reasoning` what was thought before it, `calls` what is asked of tools after it.

    `is_trained`: what the data says of an answer; None leaves it to the run (answers are). `call_id` and `name` of a
    tool's result say which call it answers.
    """

    role: str
    text: str
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None
    is_trained: bool | None = None

    @property
    def is_answer(self) -> bool:
        return self.role == "assistant"

    @property
    def is_empty(self) -> bool:
        """Nothing is said, thought or called."""
        return not self.text.strip() and not (self.reasoning or "").strip() and not self.calls

    @property
    def is_plain(self) -> bool:
        """A role and a text, nothing else."""
        return not (self.reasoning or self.calls or self.call_id or self.name) and self.is_trained is None

    def to_json(self) -> dict[str, Any]:
        """Only what is set, so that plain turns stay short."""
        found: dict[str, Any] = {"role": self.role, "text": self.text}
        for name in ("reasoning", "call_id", "name", "is_trained"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.calls:
            found["calls"] = [call.to_json() for call in self.calls]
        return found

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Message:
        calls = tuple(ToolCall.from_json(call) for call in stored.get("calls", ()))
        return cls(**{**stored, "calls": calls})


@dataclass(frozen=True)
class Conversation:
    """One row as a conversation, or as plain text. `number` is its place in the data, from 1.

    `tools` are the definitions, each an object as the OpenAI form has them. `unused` names the keys of the row that
    were not used, such as `score` or `messages[].date`.
    """

    number: int
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None
    unused: tuple[str, ...] = ()

    @property
    def has_answer(self) -> bool:
        """Whether something in it can be trained."""
        return any(m.is_answer and m.is_trained is not False and not m.is_empty for m in self.messages)

    def with_system(self, prompt: str | None) -> Conversation:
        """The same with `prompt` as its system turn, unless it has one."""
        is_given = bool(self.messages) and self.messages[0].role in ("system", "developer")
        if not prompt or not self.messages or is_given:
            return self
        return replace(self, messages=(Message("system", prompt), *self.messages))

    def content_key(self) -> str:
        """A hash of what it says: rows of one key are duplicates. Its number is no part of it."""
        if self.text is None and not self.tools and all(m.is_plain for m in self.messages):
            stored = "\0".join(f"{m.role}\0{len(t)}\0{t}" for m in self.messages for t in [m.text.strip()])
        else:
            stored = json.dumps(self._said(), sort_keys=True, default=str)
        return hashlib.blake2b(stored.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()

    def _said(self) -> Any:
        if self.text is not None:
            return self.text
        said = [
            {k: v.strip() if isinstance(v, str) else v for k, v in m.to_json().items()} for m in self.messages
        ]
        return [said, list(self.tools)] if self.tools else said

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"number": self.number}
        if self.text is not None:
            found["text"] = self.text
        if self.messages:
            found["messages"] = [message.to_json() for message in self.messages]
        if self.tools:
            found["tools"] = [dict(tool) for tool in self.tools]
        if self.unused:
            found["unused"] = list(self.unused)
        return found

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Conversation:
        return cls(
            stored["number"],
            tuple(Message.from_json(m) for m in stored.get("messages", ())),
            tuple(stored.get("tools", ())),
            stored.get("text"),
            tuple(stored.get("unused", ())),
        )


def talk(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages from `{"role", "content"}` objects of our own making (prompts, chats), with the keys of the OpenAI form."""
    from qlora_engine.data.formats.turns import read_turns

    return tuple(read_turns(messages))
