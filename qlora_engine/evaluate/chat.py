"""The chat job: loads once, then answers until stopped, each side word by word. Imports the ML stack."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_engine import out_of_memory
from qlora_engine.bridge import Emit, events_while
from qlora_engine.config import DataSettings, TrainingConfig
from qlora_engine.control import Control
from qlora_engine.data.answer_reading import as_message
from qlora_engine.data.call_reading import form_of
from qlora_engine.data.conversation import Message, RowProblem, talk
from qlora_engine.data.formats.calls import definitions
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import chosen
from qlora_engine.errors import EngineError
from qlora_engine.evaluate import generate, session
from qlora_engine.evaluate.generate import Answer, GenerationSettings
from qlora_engine.evaluate.origin import BASE, LOADING_SETTINGS, TUNED, find_origin
from qlora_engine.evaluate.session import ChatModel, no_room
from qlora_engine.evaluate.turns import Turn, as_turn, in_words
from qlora_engine.events import (
    AnswerFinished,
    Event,
    Noticed,
    RunFinished,
    SessionReady,
    SidesChanged,
    TokenStreamed,
)
from qlora_engine.jobs import ChatJob
from qlora_engine.out_of_memory import is_out_of_memory
from qlora_engine.runs.record import RunFolder

Command = Mapping[str, Any]
STRENGTH = "adapter_strength"
MAX_STRENGTH = 4.0
ASK_SETTINGS = (*(f.name for f in dataclasses.fields(GenerationSettings)), STRENGTH)
CARRIED_OUT = ("ask", "add_adapter", "remove_adapter")
ROLES = ("system", "user", "assistant", "tool")
RANGES: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, 1_048_576),
    "temperature": (0.01, 100.0),
    "top_p": (0.0001, 1.0),
    "top_k": (0, 1_000_000),
    "repetition_penalty": (0.01, 100.0),
    "seed": (0, 2**63 - 1),
    STRENGTH: (0.0, MAX_STRENGTH),
}


@dataclass(frozen=True)
class Question:
    """What one side is asked, checked. The system prompt is the side's own where the asker gave none."""

    side: str
    messages: tuple[Turn, ...]
    settings: GenerationSettings
    strength: float
    tools: tuple[Mapping[str, Any], ...] = ()


def chat_job(job: ChatJob, control: Control) -> Iterator[Event]:
    """Load `job.source`, say SessionReady, then carry out commands until `stop`; result: {"answers": number}.

    `ask`: {"request", "messages", "sides", "settings", "tools"}; each side streams TokenStreamed and ends with exactly one
    AnswerFinished, also when it could not answer (then empty, after a Noticed that says why). `interrupt` cuts the
    answer at hand and those asked before it. `add_adapter`: {"run_dir"} puts another run's adapter on the loaded base,
    `remove_adapter`: {"side"} takes one off; both end with SidesChanged, after a Noticed when nothing changed. Settings
    of the job hold for every `ask` that does not set them: the fields of GenerationSettings and `adapter_strength`,
    which multiplies the scaling of every asked adapter.

    Raises:
        EngineError: no such run or model, or it cannot be loaded.
        Cancelled: stopped while loading.
    """
    session.require_known(job.settings, (*ASK_SETTINGS, *LOADING_SETTINGS))
    loading = {k: v for k, v in job.settings.items() if k in LOADING_SETTINGS}
    chat = yield from session.load_chat_model(find_origin(job.source, loading), control)
    yield SessionReady(chat.facts)
    defaults = {k: v for k, v in job.settings.items() if k in ASK_SETTINGS}
    inbox, answers = Inbox(control), 0
    while (command := inbox.next_command()) is not None:
        if command.get("command") == "ask":
            answers += yield from _carry_out(chat, command, defaults, inbox)
        else:
            yield from _change_sides(chat, command)
    yield RunFinished({"answers": answers})


class Inbox:
    """The commands in their order. An interrupt counts for every question asked before it.

    Used by the job's thread and, while an answer is made, by the thread that makes it; never by both at once.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._waiting: deque[tuple[int, Command]] = deque()
        self._asked = 0
        self._at_hand = 0
        self._interrupted_through = 0

    def next_command(self) -> Command | None:
        """Wait for the next question or change of sides; None once asked to stop."""
        self._read_waiting()
        while not self._control.is_stop_requested:
            if self._waiting:
                self._at_hand, command = self._waiting.popleft()
                return command
            self._take(self._control.commands.get())
        return None

    def is_interrupted(self) -> bool:
        """True when the question at hand is to be answered no further."""
        self._read_waiting()
        return self._control.is_stop_requested or self._at_hand <= self._interrupted_through

    def _read_waiting(self) -> None:
        while True:
            try:
                self._take(self._control.commands.get_nowait())
            except queue.Empty:
                return

    def _take(self, command: Command) -> None:
        if command.get("command") in CARRIED_OUT:
            self._asked += 1
            self._waiting.append((self._asked, command))
        elif command.get("command") == "interrupt":
            self._interrupted_through = self._asked


def _change_sides(chat: ChatModel, command: Command) -> Iterator[Event]:
    """Put a run's adapter beside the others, or take one off; the sides are told anew either way."""
    try:
        if command.get("command") == "add_adapter":
            chat.add_run(RunFolder.open(str(command.get("run_dir"))))
        else:
            side = str(command.get("side"))
            if side == BASE or side not in chat.sides:
                raise EngineError(
                    "chat.side",
                    f"there is no adapter {side!r} to take off",
                    f"loaded: {', '.join(chat.sides)}",
                )
            chat.voices.remove(side)
    except EngineError as error:
        yield Noticed("warning", error.code, error.message, error.hint)
    yield SidesChanged(chat.facts)


def _carry_out(
    chat: ChatModel, command: Command, defaults: Mapping[str, Any], inbox: Inbox
) -> Generator[Event, None, int]:
    """Answer one `ask` on each of its sides; the number of answers given."""
    request = _request_of(command)
    try:
        questions = read_questions(command, defaults, chat)
    except EngineError as error:
        yield from _refused(request, _sides_of(command, chat), error)
        return 0
    for number, question in enumerate(questions):
        try:
            answer = yield from _answer(chat, request, question, inbox)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            out_of_memory.release()
            yield from _refused(request, tuple(q.side for q in questions[number:]), no_room(error))
            return number
        said = _said(chat, question, answer)
        yield AnswerFinished(
            request, question.side, in_words(said), answer.tokens, answer.seconds, answer.is_complete,
            _calls(chat, question, said), as_turn(said),
        )  # fmt: skip
    return len(questions)


def _said(chat: ChatModel, question: Question, answer: Answer) -> Message:
    """What a side said, as its later turns are told it."""
    template = chosen(chat.tokenizer, chat.config_of(question.side).data)
    return as_message(chat.tokenizer, template, answer.text, answer.marked, question.tools)


def _calls(chat: ChatModel, question: Question, said: Message) -> tuple[Mapping[str, Any], ...] | None:
    """What an answer calls of the tools it was given; None where this template's way of calling is not known."""
    if not question.tools:
        return ()
    form = form_of(chat.tokenizer, chosen(chat.tokenizer, chat.config_of(question.side).data))
    return None if form is None else tuple(call.to_json() for call in said.calls)


def _answer(
    chat: ChatModel, request: int, question: Question, inbox: Inbox
) -> Generator[Event, None, Answer]:
    if inbox.is_interrupted():
        return Answer("", 0, 0.0, is_complete=False)
    abandoned = threading.Event()

    def work(emit: Emit) -> Answer:
        with chat.speaking(question.side, question.strength) as model:
            return generate.answer(
                model,
                chat.tokenizer,
                question.messages,
                question.settings,
                on_text=lambda text: emit(TokenStreamed(request, question.side, text)),
                should_stop=lambda: abandoned.is_set() or inbox.is_interrupted(),
                chat_template=chat.config_of(question.side).data.chat_template,
                policy=Policy.of(chat.config_of(question.side).data),
                tools=question.tools,
            )

    try:
        return (yield from events_while(work))
    finally:
        abandoned.set()  # a reader that left must not leave a thread talking to itself


def _refused(request: int, sides: tuple[str, ...], error: EngineError) -> Iterator[Event]:
    """Say why there is no answer, and end each awaited one: nobody waits for ever."""
    yield Noticed("warning", error.code, error.message, error.hint)
    for side in sides:
        yield AnswerFinished(request, side, "", 0, 0.0, is_complete=False)


def read_questions(command: Command, defaults: Mapping[str, Any], chat: ChatModel) -> list[Question]:
    """The `ask` as one checked question for each of its sides; the longest answer is what the context has left.

    Raises:
        EngineError: one of them cannot be answered, with the reason.
    """
    values = {**defaults, **dict(command.get("settings") or {})}
    session.require_known(values, ASK_SETTINGS)
    for name, value in values.items():
        _require_range(name, value)
    strength = float(values.pop(STRENGTH, 1.0))
    settings, tools = GenerationSettings(**values), _tools(command.get("tools"))
    return [
        question_for(chat, side, command.get("messages"), settings, strength, tools=tools)
        for side in _known_sides(command, chat)
    ]


def _tools(given: Any) -> tuple[Mapping[str, Any], ...]:
    try:
        return definitions(given)
    except RowProblem as problem:
        raise EngineError(
            "chat.tools",
            f"the tools cannot be used: {problem.reason}",
            "write them as the OpenAI form has them",
        ) from problem


def question_for(
    chat: ChatModel,
    side: str,
    messages: Any,
    settings: GenerationSettings,
    strength: float = 1.0,
    config: TrainingConfig | None = None,
    tools: tuple[Mapping[str, Any], ...] = (),
) -> Question:
    """What `side` is asked; its own system prompt is put first, and its context bounds the answer. `config` holds
    instead of the side's own.

    Raises:
        EngineError: it cannot be answered, with the reason.
    """
    voice = chat.voices.of(side)
    if strength != 1.0 and voice is not None and not voice.can_scale:
        raise EngineError(
            "chat.strength",
            "the strength of a DoRA adapter cannot be changed: its weights are scaled by their own length",
            f"set {STRENGTH} to 1",
        )
    data = (config or chat.config_of(side)).data
    asked = _messages(messages, data.system_prompt)
    room = _room(chat, asked, data, tools)
    if room is not None:
        settings = dataclasses.replace(settings, max_new_tokens=min(settings.max_new_tokens, room))
    return Question(side, asked, settings, strength, tools)


def _messages(given: Any, system_prompt: str | None) -> tuple[Turn, ...]:
    """The conversation, with the system prompt the run was trained with unless it has one of its own."""
    hint = "type one"
    is_list = isinstance(given, list | tuple) and all(isinstance(turn, Mapping) for turn in given)
    is_asking = is_list and bool(given) and all(turn.get("role") in ROLES for turn in given)
    if not is_asking or given[-1]["role"] == "assistant":
        raise EngineError(
            "chat.messages", "there is nothing to answer: the conversation has no question at its end", hint
        )
    try:
        messages = [as_turn(message) for turn in given for message in talk([turn])]
    except RowProblem as problem:
        raise EngineError(
            "chat.messages", f"the conversation cannot be read: {problem.reason}", hint
        ) from problem
    if system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return tuple(messages)


def _room(
    chat: ChatModel,
    messages: tuple[Turn, ...],
    data: DataSettings,
    tools: tuple[Mapping[str, Any], ...],
) -> int | None:
    """Tokens that the answer may have; None when the model names no limit.

    Raises:
        EngineError: the conversation leaves none, or the template refuses it.
    """
    try:
        prompt = generate.prompt_ids(chat.tokenizer, messages, data.chat_template, Policy.of(data), tools)
    except EngineError:
        raise
    except Exception as error:  # a template raises whatever its author chose
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EngineError(
            "chat.template",
            f"the chat template refuses this conversation: {lines[0][:160]}",
            "start a new conversation, or leave the system prompt out",
        ) from error
    if chat.max_positions is None:
        return None
    room = chat.max_positions - prompt.shape[1]
    if room < 1:
        raise EngineError(
            "chat.too_long",
            f"the conversation has {prompt.shape[1]:,} tokens, and the model sees at most {chat.max_positions:,}",
            "start a new conversation",
        )
    return room


def _known_sides(command: Command, chat: ChatModel) -> tuple[str, ...]:
    sides = _sides_of(command, chat)
    for side in sides:
        if side not in chat.sides:
            raise EngineError(
                "chat.side",
                f"there is no {side!r} side here: {chat.origin.config.model.name} was loaded without an adapter"
                if side == TUNED
                else f"there is no side {side!r}",
                f"ask {' or '.join(chat.sides)}",
            )
    return sides


def _sides_of(command: Command, chat: ChatModel) -> tuple[str, ...]:
    given = command.get("sides") or chat.sides
    return tuple(dict.fromkeys(str(side) for side in ([given] if isinstance(given, str) else given)))


def _request_of(command: Command) -> int:
    request = command.get("request", 0)
    return request if isinstance(request, int) else 0


def _require_range(name: str, value: Any) -> None:
    if name not in RANGES:
        return
    lo, hi = RANGES[name]
    kind = (int,) if isinstance(hi, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not lo <= value <= hi:
        what = "a whole number" if kind == (int,) else "a number"
        raise EngineError(
            "chat.setting", f"{name} must be {what} from {lo:g} to {hi:g}, not {value!r}", f"change {name}"
        )
