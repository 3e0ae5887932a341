"""A chat with the base model and the tuned one, side by side: events in, turns out. Without Qt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.presenters.words import duration_text, plural
from qlora_engine import events as ev

SIDES = ("base", "tuned")
SIDE_TITLES = {"base": "Base model", "tuned": "Tuned"}


@dataclass
class Exchange:
    """One question and what each side answered so far."""

    request: int
    prompt: str
    answers: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)


class Conversation:
    """`state`: closed, loading, ready, answering, failed. Each side has its own history."""

    def __init__(self) -> None:
        self.state = "closed"
        self.status_text = ""
        self.error_text = ""
        self.error_hint = ""
        self.sides: tuple[str, ...] = SIDES
        self.exchanges: list[Exchange] = []
        self.facts: dict[str, Any] = {}
        self.version = 0

    @property
    def can_ask(self) -> bool:
        return self.state == "ready"

    def begin(self) -> None:
        self.state, self.status_text, self.error_text = "loading", "Loading the model", ""
        self.exchanges, self.facts = [], {}
        self.version += 1

    def clear(self) -> None:
        self.exchanges = []
        self.version += 1

    def ask(self, prompt: str, sides: tuple[str, ...]) -> int:
        """Note a question; its number."""
        request = (self.exchanges[-1].request if self.exchanges else 0) + 1
        self.exchanges.append(Exchange(request, prompt, dict.fromkeys(sides, "")))
        self.state, self.status_text = "answering", "Answering"
        self.version += 1
        return request

    def messages(self, side: str, system: str = "") -> list[dict[str, str]]:
        """What is sent for `side`: its own history and the newest question."""
        found = [{"role": "system", "content": system}] if system else []
        for exchange in self.exchanges:
            if side not in exchange.answers:
                continue
            found.append({"role": "user", "content": exchange.prompt})
            if exchange is not self.exchanges[-1]:
                found.append({"role": "assistant", "content": exchange.answers[side]})
        return found

    def fold(self, event: ev.Event) -> None:
        self.version += 1
        match event:
            case ev.SessionReady(facts):
                self.state, self.status_text, self.facts = "ready", "Ready", dict(facts)
                self.sides = tuple(facts.get("sides") or SIDES)
            case ev.PhaseChanged(_, text) if self.state == "loading":
                self.status_text = text
            case ev.TokenStreamed(request, side, text):
                exchange = self._exchange(request)
                if exchange is not None:
                    exchange.answers[side] = exchange.answers.get(side, "") + text
            case ev.AnswerFinished():
                self._finish(event)
            case ev.Noticed(_, _, message, hint):
                self.status_text = f"{message}. {hint}" if hint else message
            case ev.RunFailed(_, message, hint):
                self.state, self.status_text = "failed", ""
                self.error_text, self.error_hint = message, hint
            case ev.RunFinished() | ev.RunStopped():
                self.state, self.status_text = "closed", ""
            case _:
                pass

    def _finish(self, event: ev.AnswerFinished) -> None:
        exchange = self._exchange(event.request)
        if exchange is None:
            return
        exchange.answers[event.side] = event.text
        exchange.done.add(event.side)
        end = "" if event.is_complete else ", cut"
        exchange.notes[event.side] = f"{plural(event.tokens, 'token')} in {duration_text(event.seconds)}{end}"
        if exchange.done >= set(exchange.answers) and self.state == "answering":
            self.state, self.status_text = "ready", "Ready"

    def _exchange(self, request: int) -> Exchange | None:
        return next((e for e in self.exchanges if e.request == request), None)
