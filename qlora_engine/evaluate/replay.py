"""The replay job: a set of prompts asked of many runs in one go, one base in memory at a time. Imports the ML stack."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from qlora_engine.control import Control
from qlora_engine.data.policy import Policy
from qlora_engine.evaluate import answers, generate, session
from qlora_engine.evaluate.answers import StoredAnswer
from qlora_engine.evaluate.chat import question_for
from qlora_engine.evaluate.drawing import GenerationSettings
from qlora_engine.evaluate.origin import BASE
from qlora_engine.evaluate.replay_plan import Cell, messages_of, plan_of
from qlora_engine.events import AnswerFinished, Event, PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import ReplayJob


def replay_job(job: ReplayJob, control: Control) -> Iterator[Event]:
    """Answers that a run keeps come at once; then each base is loaded once for what is missing.

    Raises:
        EngineError: a run cannot answer (it is named), or an answer cannot be kept.
        Cancelled: asked to stop; the answers given so far are kept.
    """
    plan = plan_of(job)
    cells, known = plan.cells, plan.known
    found: dict[str, StoredAnswer] = {}
    for cell in cells:
        if cell.key in known:
            found[cell.key] = known[cell.key]
            yield _told(cell, known[cell.key])
    missing = [cell for cell in cells if cell.key not in found]
    for key in dict.fromkeys(cell.column.key for cell in missing):
        group = [cell for cell in missing if cell.column.key == key]
        for event in _ask_group(group, plan.settings, control, found):
            yield event
            if isinstance(event, AnswerFinished):
                yield Progressed("generating", len(found), len(cells), "answers")
    yield RunFinished(
        {
            "columns": [column.to_json() for column in plan.columns],
            "answers": [_row(cell, found[cell.key], is_kept=cell.key in known) for cell in cells],
            "kept": len(cells) - len(missing),
            "asked": len(missing),
        }
    )


def _ask_group(
    cells: Sequence[Cell], settings: GenerationSettings, control: Control, found: dict[str, StoredAnswer]
) -> Iterator[Event]:
    """Load the base that `cells` share, put each run's adapter on it, and ask; each answer is kept as it comes."""
    chat = yield from session.load_chat_model(cells[0].column.origin, control)
    sides = {}
    for column in {cell.column.side: cell.column for cell in cells}.values():
        sides[column.side] = BASE if column.is_base else chat.add_run(column.run)
    yield PhaseChanged("generating", f"Asking {len(cells):,} questions")
    for cell in cells:
        control.check()
        answer = _ask(chat, cell, sides[cell.column.side], settings, control)
        answers.keep(cell.column.run, answer)
        found[cell.key] = answer
        yield _told(cell, answer)
    del chat
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ask(
    chat: session.ChatModel, cell: Cell, side: str, settings: GenerationSettings, control: Control
) -> StoredAnswer:
    config = cell.column.origin.config
    question = question_for(chat, side, messages_of(cell.prompt, cell.column.origin), settings, config=config)
    with session.memory_told(), chat.speaking(side) as model:
        answer = generate.answer(
            model,
            chat.tokenizer,
            question.messages,
            question.settings,
            control=control,
            chat_template=config.data.chat_template,
            policy=Policy.of(config.data),
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
