"""`qlora chat`: ask a run or a model, once or in a conversation; base, tuned and further runs side by side on request."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import click

from qlora_engine.cli import driving, generation, output, progress
from qlora_engine.client import Engine
from qlora_engine.counting import counted
from qlora_engine.errors import EngineError
from qlora_engine.evaluate.called import called
from qlora_engine.events import (
    TERMINAL,
    AnswerFinished,
    Event,
    Noticed,
    SessionReady,
    SidesChanged,
    TokenStreamed,
)
from qlora_engine.jobs import ChatJob

Messages = list[Mapping[str, Any]]
NextPrompt = Callable[[], str | None]
ASKED_AFTER = (SessionReady, SidesChanged, AnswerFinished)
"""The events after which the next question can be asked."""
RESULT = "/result "
"""Begins a line that is what a called tool gave back."""


@click.command()
@click.argument("source", metavar="RUN_OR_MODEL")
@click.option("--prompt", "-p", help="Ask this once and end; without it a conversation begins.")
@click.option("--compare", is_flag=True, help="Answer with the untouched model as well.")
@click.option(
    "--with",
    "others",
    metavar="RUN",
    multiple=True,
    help="Answer with this run of the same base too; repeatable.",
)
@click.option("--system", help="System prompt of the conversation.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 4),
    default=1.0,
    show_default=True,
    help="Multiplies what the adapters add: 0 is the base, 1 as trained.",
)
@click.option(
    "--tools",
    "tools_file",
    metavar="FILE",
    help="JSON with the definitions of tools the model may call; its calls are shown, none is carried out.",
)
@generation.options
@output.json_option
def chat(
    source: str,
    prompt: str | None,
    compare: bool,
    others: tuple[str, ...],
    system: str | None,
    strength: float,
    tools_file: str | None,
    as_json: bool,
    **drawn: Any,
) -> None:
    """Talk to a finished run or to a model."""
    if as_json and prompt is None:
        raise click.UsageError("--json needs --prompt: a conversation is not one document")
    settings = generation.settings(drawn) | ({"adapter_strength": strength} if strength != 1.0 else {})
    session = Session(
        compare=compare,
        system=system,
        settings=settings,
        is_quiet=as_json,
        is_single=prompt is not None,
        others=_run_dirs(others),
        tools=_tools(tools_file) if tools_file else [],
    )
    hold(ChatJob(source, settings), session, once(prompt) if prompt is not None else from_keyboard)
    if prompt is not None and session.problem is not None:
        raise session.problem
    if as_json:
        output.print_json({"source": source, "prompt": prompt, "answers": session.answers})


def _run_dirs(names: tuple[str, ...]) -> tuple[str, ...]:
    """Raises EngineError before anything is loaded when one of them is no run."""
    from qlora_engine.runs.record import RunFolder

    return tuple(str(RunFolder.open(name).path) for name in names)


def _tools(path: str) -> list[Any]:
    """The definitions in a file: an object, or a list of them."""
    from pathlib import Path

    from qlora_engine import parsing

    hint = "write a JSON list of definitions as the OpenAI form has them"
    try:
        found = parsing.from_json(Path(path).expanduser().read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise EngineError("chat.tools", f"the tools in {path} cannot be read: {reason}", hint) from error
    return found if isinstance(found, list) else [found]


@dataclass
class Session:
    """One conversation: what each side has said, and which answers are still awaited."""

    compare: bool
    system: str | None
    settings: dict[str, Any]
    is_quiet: bool
    is_single: bool
    sides: tuple[str, ...] = ("tuned",)
    histories: dict[str, Messages] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    problem: EngineError | None = None
    """Why a question could not be answered; the newest reason."""
    awaited: int = 0
    requests: int = 0
    tools: list[Any] = field(default_factory=list)
    others: tuple[str, ...] = ()
    """Folders of the runs to put beside the first one."""
    joining: int = 0

    @property
    def is_named(self) -> bool:
        """True when several sides answer, so that each answer needs a name."""
        return self.compare or bool(self.others)

    def join(self, engine: Engine) -> None:
        """Have the other runs put on the loaded base."""
        for run_dir in self.others:
            self.joining += 1
            engine.send({"command": "add_adapter", "run_dir": run_dir})

    def begin(self, facts: dict[str, Any]) -> None:
        """Decide the sides: a plain model has only its base."""
        found = tuple(facts.get("sides", ("base",)))
        self.sides = found if self.compare or len(found) == 1 else tuple(s for s in found if s != "base")
        start: Messages = [{"role": "system", "content": self.system}] if self.system else []
        self.histories = {side: list(start) for side in self.sides}

    def ask(self, engine: Engine, prompt: str) -> None:
        """Send the prompt to each side with that side's own history; a tool's result to the sides that wait for one, once
        all of their calls have theirs."""
        self.problem = None
        is_result = prompt.startswith(RESULT)
        turn = {"role": "tool" if is_result else "user", "content": prompt.removeprefix(RESULT)}
        for side in self.sides:
            if is_result and not self.open_calls(side):
                continue
            self.histories[side].append(turn)
            if not self.open_calls(side) or not is_result:
                self._send(engine, side)

    def _send(self, engine: Engine, side: str) -> None:
        self.requests += 1
        self.awaited += 1
        engine.send(
            {
                "command": "ask",
                "request": self.requests,
                "messages": list(self.histories[side]),
                "sides": [side],
                "settings": self.settings,
                "tools": self.tools,
            }
        )

    def open_calls(self, side: str) -> int:
        """How many calls of the last answer have no result yet."""
        for results, turn in enumerate(reversed(self.histories[side])):
            if turn["role"] != "tool":
                return max(0, len(turn.get("tool_calls", ())) - results)
        return 0

    def hear(self, event: AnswerFinished) -> None:
        self.awaited -= 1
        if self.problem is not None and not event.tokens:
            self.histories[event.side].pop()  # so that the next question does not fail for the same reason
            return
        said = event.message or {"role": "assistant", "content": event.text}
        self.histories[event.side].append(said)
        answer = {
            "side": event.side,
            "text": event.text,
            "tokens": event.tokens,
            "seconds": event.seconds,
            "tokens_per_second": event.tokens / event.seconds if event.seconds else None,
            "is_complete": event.is_complete,
            **({"calls": event.calls} if self.tools else {}),
        }
        self.answers.append(answer)


def hold(job: ChatJob, session: Session, next_prompt: NextPrompt) -> None:
    """Load, then ask and print until `next_prompt` has no more.

    Raises:
        EngineError: the source cannot be loaded, or the engine failed.
    """
    engine = driving.make_engine()
    screen = Printer(session)
    with _interrupts(engine, session), driving.clean_stdout(engine):
        with progress.view(is_quiet=session.is_quiet) as shown:
            events = engine.run(job)
            for event in events:
                shown.show(event)
                if isinstance(event, (SessionReady, *TERMINAL)):
                    break
        _converse(engine, events, event, session, screen, next_prompt)


def _converse(
    engine: Engine,
    events: Iterator[Event],
    first: Event,
    session: Session,
    screen: Printer,
    next_prompt: NextPrompt,
) -> None:
    event: Event | None = first
    while event is not None:
        match event:
            case SessionReady() | SidesChanged():
                _take_sides(event, session, engine)
            case TokenStreamed():
                screen.stream(event)
            case Noticed():
                session.problem = EngineError(event.code, event.message, event.hint)
                screen.notice(event)
            case AnswerFinished():
                session.hear(event)
                screen.finish(event)
        if isinstance(event, TERMINAL):
            driving.settled(event)
            return
        if session.awaited == 0 and not session.joining and isinstance(event, ASKED_AFTER):
            if isinstance(event, SessionReady | SidesChanged):
                screen.greet()
            _next(engine, session, next_prompt)
        event = next(events, None)


def _take_sides(event: SessionReady | SidesChanged, session: Session, engine: Engine) -> None:
    """Put the other runs beside the first; a run that cannot join ends the command with its reason."""
    if isinstance(event, SessionReady):
        session.join(engine)
    else:
        session.joining -= 1
        if session.problem is not None:
            problem = session.problem
            engine.request_stop()
            raise problem
    session.begin(dict(event.facts))


def _next(engine: Engine, session: Session, next_prompt: NextPrompt) -> None:
    """Ask until an answer is awaited: a result may have to wait for others."""
    while not session.awaited:
        prompt = next_prompt()
        if prompt is None:
            engine.request_stop()
            return
        session.ask(engine, prompt)
        if not session.awaited:
            is_open = any(session.open_calls(side) for side in session.sides)
            output.note("Another call waits for its result." if is_open else "No call waits for a result.")


class Printer:
    """Answers on stdout as they come, with the side's name where there are two."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._speaking = ""

    def greet(self) -> None:
        """How to leave, for a person at a keyboard."""
        if sys.stdin.isatty() and not self._session.is_single:
            output.note("Type a question. Ctrl+C cuts an answer short, /quit ends.")

    def stream(self, event: TokenStreamed) -> None:
        if self._session.is_quiet:
            return
        if self._speaking != event.side:
            self._speaking = event.side
            if self._session.is_named:
                output.write_piece(f"[{event.side}] ")
        output.write_piece(event.text)

    def finish(self, event: AnswerFinished) -> None:
        if self._session.is_quiet or (self._session.problem and not event.tokens):
            return
        if self._session.is_named and not self._speaking:
            output.write_piece(f"[{event.side}] ")
        self._speaking = ""
        output.say("" if event.is_complete else f"  [cut after {counted(event.tokens, 'token')}]")
        self._show_calls(event)
        if self._session.is_named:
            output.note(f"    {event.side}: {counted(event.tokens, 'token')}, {_speed(event)}")

    def _show_calls(self, event: AnswerFinished) -> None:
        if event.calls is None:
            output.note(
                "    this template's way of calling tools is not known: a call is shown as it was written"
            )
        for call in event.calls or ():
            output.note(f"    calls {called(call)}")
        if event.calls and sys.stdin.isatty() and not self._session.is_single:
            output.note("    /result TEXT tells the model what the tool gave back")

    def notice(self, event: Noticed) -> None:
        """Said in a conversation; with `--prompt` it is the error that the command ends with."""
        if not self._session.is_single:
            output.note(f"{event.message}; {event.hint}")


def _speed(event: AnswerFinished) -> str:
    return f"{event.tokens / event.seconds:.1f} tokens/s" if event.seconds else output.NOT_AVAILABLE


def once(prompt: str) -> NextPrompt:
    """The one prompt, then nothing."""
    left = [prompt]
    return lambda: left.pop() if left else None


def from_keyboard() -> str | None:
    """The next line that is not empty; None at the end of input and for /quit."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return None
        if line in ("/quit", "/exit"):
            return None
        if line:
            return line


@contextlib.contextmanager
def _interrupts(engine: Engine, session: Session) -> Iterator[None]:
    """Ctrl+C ends the answer at hand; where none is being given it ends the chat."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if session.awaited == 0:
            raise KeyboardInterrupt
        engine.send({"command": "interrupt"})

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
