"""Turns of a chat as its commands and events carry them: the OpenAI form, with calls of tools and their results. Torch-free."""

from __future__ import annotations

from typing import Any

from qlora_engine.data.conversation import Message, ToolCall
from qlora_engine.data.wording import THINK_CLOSE, THINK_OPEN

Turn = dict[str, Any]


def as_turn(message: Message) -> Turn:
    """One message; of an answer also what it thought and called."""
    found: Turn = {"role": message.role, "content": message.text}
    named = {"reasoning_content": message.reasoning, "tool_call_id": message.call_id, "name": message.name}
    found |= {key: value for key, value in named.items() if value}
    if message.calls:
        found["tool_calls"] = [_call(call) for call in message.calls]
    return found


def in_words(message: Message) -> str:
    """What an answer says, with its thought between marks before it."""
    thought = f"{THINK_OPEN}{message.reasoning}{THINK_CLOSE}" if message.reasoning else ""
    return thought + message.text


def _call(call: ToolCall) -> Turn:
    identity = {} if call.id is None else {"id": call.id}
    return {**identity, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
