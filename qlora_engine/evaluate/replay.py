"""The replay job: a set of prompts asked of many runs in one go, one base in memory at a time. Imports the ML stack."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.evaluate import answers, generate, session
from qlora_engine.evaluate.answers import StoredAnswer
from qlora_engine.evaluate.chat import question_for
from qlora_engine.evaluate.generate import GenerationSettings
from qlora_engine.evaluate.origin import BASE, BaseKey, Origin, base_key, origin_of_run
from qlora_engine.events import AnswerFinished, Event, PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import ReplayJob
from qlora_engine.runs.record import RunFolder

SETTINGS = tuple(field.name for field in fields(GenerationSettings))


@dataclass(frozen=True, eq=False)
class Column:
    """Who answers. `side`: the run's folder, or `base` and the hash of its weights; `origin` keeps the answers."""

    side: str
    origin: Origin
    key: BaseKey
    is_base: bool

    @property
    def run(self) -> RunFolder:
        assert self.origin.run is not None
        return self.origin.run

    def to_json(self) -> dict[str, Any]:
        return {
            "side": self.side,
            "is_base": self.is_base,
            "run_id": None if self.is_base else self.run.run_id,
            "run_dir": None if self.is_base else str(self.run.path),
            "model": self.origin.config.model.name,
        }


@dataclass(frozen=True, eq=False)
class Cell:
    """One prompt for one column; `place` is the prompt's."""

    place: int
    prompt: str
    column: Column
    key: str


def replay_job(job: ReplayJob, control: Control) -> Iterator[Event]:
    """Answers that a run keeps come at once; then each base is loaded once for what is missing.

    Raises:
        EngineError: a run cannot answer (it is named), or an answer cannot be kept.
        Cancelled: asked to stop; the answers given so far are kept.
    """
    session.require_known(job.settings, (*SETTINGS, "device"))
    settings = GenerationSettings(**{k: v for k, v in job.settings.items() if k != "device"})
    columns = columns_of(job)
    cells = _cells(job.prompts, columns, settings)
    known = {} if job.again else _known(columns)
    found: dict[str, StoredAnswer] = {}
    for cell in cells:
        if cell.key in known:
            found[cell.key] = known[cell.key]
            yield _told(cell, known[cell.key])
    kept = len(found)
    missing = [cell for cell in cells if cell.key not in found]
    for key in dict.fromkeys(cell.column.key for cell in missing):
        group = [cell for cell in missing if cell.column.key == key]
        for event, answer in _ask_group(group, settings, control):
            if answer is not None:
                found[answer.key] = answer
            yield event
            if answer is not None:
                yield Progressed("generating", len(found), len(cells), "answers")
    yield RunFinished(
        {
            "columns": [column.to_json() for column in columns],
            "answers": [_row(cell, found[cell.key], is_kept=cell.key in known) for cell in cells],
            "kept": kept,
            "asked": len(missing),
        }
    )


def columns_of(job: ReplayJob) -> list[Column]:
    """The base of each group of runs that share one, then the runs, in the order asked for.

    Raises:
        EngineError: a run is not there, or has nothing that could answer.
    """
    if not job.run_dirs or not job.prompts:
        raise EngineError("replay.empty", "there is nothing to ask", "choose a run and a prompt set")
    runs = []
    for run_dir in dict.fromkeys(job.run_dirs):
        run = RunFolder.open(run_dir)
        origin, key = origin_of_run(run, job.settings.get("device")), base_key(run.record())
        if key is None:
            raise EngineError(
                "run.unreadable", f"the record of run {run.run_id!r} names no base", "train it again"
            )
        runs.append(Column(str(run.path), origin, key, is_base=False))
    groups = {column.key: column for column in reversed(runs)}
    bases = [
        Column(BASE if len(groups) == 1 else f"{BASE} {key.hash_text}", first.origin, key, is_base=True)
        for key, first in reversed(groups.items())
    ]
    return [*(bases if job.with_base else ()), *runs]


def _cells(prompts: Sequence[str], columns: Sequence[Column], settings: GenerationSettings) -> list[Cell]:
    """Prompt by prompt, so that the first row of the table is whole first."""
    speakers = {c.side: answers.speaker_of(c.origin, is_base=c.is_base) for c in columns}
    found = []
    for place, prompt in enumerate(prompts):
        for column in columns:
            messages = _messages(prompt, column.origin)
            key = answers.key_of(speakers[column.side], messages, asdict(settings))
            found.append(Cell(place, prompt, column, key))
    return found


def _messages(prompt: str, origin: Origin) -> list[dict[str, str]]:
    system = origin.config.data.system_prompt
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": prompt}]


def _known(columns: Sequence[Column]) -> dict[str, StoredAnswer]:
    found: dict[str, StoredAnswer] = {}
    for column in columns:
        found |= answers.read(column.run)
    return found


def _ask_group(
    cells: Sequence[Cell], settings: GenerationSettings, control: Control
) -> Iterator[tuple[Event, StoredAnswer | None]]:
    """Load the base that `cells` share, put each run's adapter on it, and ask; each answer is kept as it comes."""
    chat = None
    for event in _loading(cells[0].column.origin, control):
        if isinstance(event, session.ChatModel):
            chat = event
        else:
            yield event, None
    assert chat is not None
    sides = {}
    for column in {cell.column.side: cell.column for cell in cells}.values():
        sides[column.side] = BASE if column.is_base else chat.add_run(column.run)
    yield PhaseChanged("generating", f"Asking {len(cells):,} questions"), None
    for cell in cells:
        control.check()
        answer = _ask(chat, cell, sides[cell.column.side], settings, control)
        answers.keep(cell.column.run, answer)
        yield _told(cell, answer), answer
    del chat
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _loading(origin: Origin, control: Control) -> Iterator[Any]:
    """The events of loading, then the loaded model."""
    yield (yield from session.load_chat_model(origin, control))


def _ask(
    chat: session.ChatModel, cell: Cell, side: str, settings: GenerationSettings, control: Control
) -> StoredAnswer:
    config = cell.column.origin.config
    question = question_for(chat, side, _messages(cell.prompt, cell.column.origin), settings, config=config)
    with session.memory_told(), chat.speaking(side) as model:
        answer = generate.answer(
            model,
            chat.tokenizer,
            question.messages,
            question.settings,
            control=control,
            chat_template=config.data.chat_template,
        )
    control.check()
    return StoredAnswer(
        cell.key, cell.prompt, answer.text, answer.tokens, answer.seconds, answer.is_complete,
        cell.column.is_base, time.time(),
    )  # fmt: skip


def _told(cell: Cell, answer: StoredAnswer) -> AnswerFinished:
    return AnswerFinished(
        cell.place, cell.column.side, answer.text, answer.tokens, answer.seconds, answer.is_complete
    )


def _row(cell: Cell, answer: StoredAnswer, *, is_kept: bool) -> Mapping[str, Any]:
    return {
        "prompt": cell.prompt,
        "side": cell.column.side,
        "text": answer.text,
        "tokens": answer.tokens,
        "seconds": answer.seconds,
        "is_complete": answer.is_complete,
        "is_kept": is_kept,
    }
