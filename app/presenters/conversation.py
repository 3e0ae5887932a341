"""A chat with the base model and any number of tuned ones, side by side: events in, turns out. Without Qt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.presenters.in_window import in_window
from app.presenters.tried import speed_text
from app.presenters.words import capital, count_text, plural
from qlora_engine import events as ev
from qlora_engine.evaluate.called import called

BASE, TUNED = "base", "tuned"
SIDES = (BASE, TUNED)


@dataclass
class Exchange:
    """One question and what each side answered so far."""

    request: int
    prompt: str
    answers: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    turns: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """What each side said, as the engine wants it told again."""
    calls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    results: tuple[str, ...] = ()
    """What called tools gave back, where this is no question."""


@dataclass(frozen=True)
class Voices:
    """Who speaks at each side, as the engine told; empty until it has."""

    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def can_scale(self) -> bool:
        """True when the strength of some adapter can be turned."""
        return not self.told or any(voice.get("can_scale") for voice in self.told.values())

    def title(self, side: str) -> str:
        """`Base model`, or the run that speaks."""
        if side == BASE:
            return "Base model"
        run_id = (self.told.get(side) or {}).get("run_id")
        return str(run_id or (side if side != TUNED else "Tuned"))

    def detail(self, side: str) -> str:
        """What is loaded there: `rsLoRA, step 60`."""
        voice = self.told.get(side) or {}
        step = voice.get("adapter_step")
        words = [voice.get("variant"), None if step is None else f"checkpoint of step {count_text(step)}"]
        return ", ".join(str(word) for word in words if word)

    def side_of(self, run_dir: str) -> str | None:
        """The side that speaks for a run."""
        return next((side for side, voice in self.told.items() if voice.get("run_dir") == run_dir), None)

    def scales(self, side: str) -> bool:
        voice = self.told.get(side)
        return side != BASE and (voice is None or bool(voice.get("can_scale")))


class Conversation:
    """`state`: closed, loading, ready, answering, failed. Each side has its own history; `hidden` ones are not asked."""

    def __init__(self) -> None:
        self.state = "closed"
        self.status_text = ""
        self.error_text = ""
        self.error_hint = ""
        self.sides: tuple[str, ...] = SIDES
        self.hidden: frozenset[str] = frozenset()
        self.exchanges: list[Exchange] = []
        self.voices = Voices()
        self.version = 0
        self._has_problem = False
        self._results: list[str] = []

    @property
    def can_ask(self) -> bool:
        return self.state == "ready" and bool(self.shown)

    @property
    def is_open(self) -> bool:
        return self.state in ("ready", "answering")

    @property
    def shown(self) -> tuple[str, ...]:
        """The sides that are asked and seen."""
        return tuple(side for side in self.sides if side not in self.hidden)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Everything that was asked, each once."""
        return tuple(dict.fromkeys(exchange.prompt for exchange in self.exchanges if not exchange.results))

    def begin(self) -> None:
        self.state, self.status_text, self.error_text = "loading", "Loading the model", ""
        self.exchanges, self._results = [], []
        self.voices, self.hidden = Voices(), frozenset()
        self.version += 1

    def clear(self) -> None:
        self.exchanges, self._results = [], []
        self.version += 1

    def hide(self, side: str, is_hidden: bool) -> None:
        self.hidden = self.hidden | {side} if is_hidden else self.hidden - {side}
        self.version += 1

    def ask(self, prompt: str, sides: tuple[str, ...], results: tuple[str, ...] = ()) -> int:
        """Note a question, or results of called tools; its number."""
        request = (self.exchanges[-1].request if self.exchanges else 0) + 1
        self.exchanges.append(Exchange(request, prompt, dict.fromkeys(sides, ""), results=results))
        self.state, self.status_text = "answering", "Answering"
        self._results = []
        self.version += 1
        return request

    @property
    def calling(self) -> tuple[str, ...]:
        """The sides that are asked and whose last answer calls tools."""
        calls = self.exchanges[-1].calls if self.exchanges else {}
        return tuple(side for side in self.shown if calls.get(side))

    def with_result(self, text: str) -> tuple[str, ...]:
        """The results so far, once every call has one; empty while some are missing."""
        self._results.append(text)
        most = max((len(self.exchanges[-1].calls[side]) for side in self.calling), default=0)
        given = len(self._results)
        if given < most:
            self.status_text = f"{count_text(given)} of {count_text(most)} results given"
            self.version += 1
            return ()
        return tuple(self._results)

    def fold(self, event: ev.Event) -> None:
        self.version += 1
        match event:
            case ev.SessionReady(facts):
                self.state, self.status_text = "ready", "Ready"
                self._take_facts(facts)
            case ev.SidesChanged(facts):
                if not self._has_problem and self.state == "ready":
                    self.status_text = "Ready"
                self._has_problem = False
                self._take_facts(facts)
            case ev.PhaseChanged(_, text) if self.state == "loading":
                self.status_text = text
            case ev.TokenStreamed(request, side, text):
                exchange = self._exchange(request)
                if exchange is not None:
                    exchange.answers[side] = exchange.answers.get(side, "") + text
            case ev.AnswerFinished():
                self._finish(event)
            case ev.Noticed(_, _, message, hint):
                self.status_text, self._has_problem = (
                    capital(in_window(f"{message}. {capital(hint)}" if hint else message)),
                    True,
                )
            case ev.RunFailed(_, message, hint):
                self.state, self.status_text = "failed", ""
                self.error_text, self.error_hint = capital(message), capital(hint)
            case ev.RunFinished() | ev.RunStopped():
                self.state, self.status_text = "closed", ""
            case _:
                pass

    def _take_facts(self, facts: Any) -> None:
        self.voices = Voices(dict(facts.get("voices") or {}))
        self.sides = tuple(facts.get("sides") or SIDES)

    def _finish(self, event: ev.AnswerFinished) -> None:
        exchange = self._exchange(event.request)
        if exchange is None:
            return
        exchange.answers[event.side] = event.text
        exchange.turns[event.side] = event.message
        exchange.calls[event.side] = tuple(called(call) for call in event.calls or ())
        exchange.done.add(event.side)
        parts = [
            plural(event.tokens, "token"),
            speed_text(event.tokens, event.seconds),
            "" if event.is_complete else "cut",
        ]
        exchange.notes[event.side] = " \u00b7 ".join(part for part in parts if part)
        if exchange.done >= set(exchange.answers) and self.state == "answering":
            self.state = "ready"
            self.status_text = self.status_text if self._has_problem else "Ready"
            self._has_problem = False

    def _exchange(self, request: int) -> Exchange | None:
        return next((e for e in self.exchanges if e.request == request), None)


def messages_of(exchanges: Sequence[Exchange], side: str, system: str = "") -> list[Mapping[str, Any]]:
    """What is sent for `side`: its own history and the newest question."""
    found: list[Mapping[str, Any]] = [{"role": "system", "content": system}] if system else []
    calls = 0
    for exchange in exchanges:
        if side not in exchange.answers:
            continue
        found += [{"role": "tool", "content": result} for result in exchange.results[:calls]]
        if not exchange.results:
            found.append({"role": "user", "content": exchange.prompt})
        if exchange is not exchanges[-1]:
            said = {"role": "assistant", "content": exchange.answers[side]}
            found.append(exchange.turns.get(side) or said)
        calls = len(exchange.calls.get(side, ()))
    return found
