"""`qlora chat` keeps what a model called, and sends a tool's result to the sides that wait for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_engine.cli.commands.chat import RESULT, Session
from qlora_engine.client import InlineEngine
from qlora_engine.events import AnswerFinished

CALL = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": {}}}


class Heard(InlineEngine):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Mapping[str, Any]] = []

    def send(self, command: Mapping[str, Any]) -> None:
        self.sent.append(command)


def _calling(side: str, *calls: Mapping[str, Any]) -> AnswerFinished:
    told = tuple({"name": call["function"]["name"], "arguments": {}} for call in calls)
    return AnswerFinished(
        1, side, "", 3, 0.1, True, told, {"role": "assistant", "content": "", "tool_calls": calls}
    )


def test_results_go_to_who_called_once_there_is_one_for_each_call() -> None:
    engine = Heard()
    session = Session(
        compare=True, system=None, settings={}, is_quiet=True, is_single=False, tools=[{"name": "tide"}]
    )
    session.begin({"sides": ["base", "tuned"]})
    session.ask(engine, "Tides?")
    session.hear(AnswerFinished(1, "base", "I do not know", 3, 0.1, True))
    session.hear(_calling("tuned", CALL, CALL))
    assert (session.open_calls("base"), session.open_calls("tuned")) == (0, 2)
    session.ask(engine, f"{RESULT}high")
    assert session.awaited == 0
    session.ask(engine, f"{RESULT}low")
    assert session.awaited == 1
    asked = engine.sent[-1]
    assert asked["sides"] == ["tuned"]
    assert [turn["role"] for turn in asked["messages"]] == ["user", "assistant", "tool", "tool"]
    assert asked["messages"][1]["tool_calls"] == (CALL, CALL)
    session.hear(AnswerFinished(2, "tuned", "At six", 3, 0.1, True))
    session.ask(engine, f"{RESULT}too late")
    assert session.awaited == 0
    assert session.histories["base"][-1]["content"] == "I do not know"
