"""After training: whether the model ends its answers by itself, tried on held-out questions. Imports torch.

Greedy, one question at a time, and leaves the random generators alone. It begins when the adapter is saved, and whatever
happens to it, the run has finished.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Generator
from itertools import islice
from typing import Any

import torch

from qlora_engine.control import Control
from qlora_engine.data.policy import Policy
from qlora_engine.evaluate import generate
from qlora_engine.evaluate.held_out import Asked, short_questions
from qlora_engine.events import EndingsCounted, Event, Noticed, PhaseChanged
from qlora_engine.models import spec
from qlora_engine.training import finish, recovery
from qlora_engine.training.checkpoint import TrainState

log = logging.getLogger(__name__)
SHARE_OF_TRAINING = 0.05
SHORTEST_SECONDS = 5.0
"""What it may take, as a share of the training time, and what it may always take: an answer or two of a small model."""


def counted(parts: Any, state: TrainState, control: Control) -> Generator[Event, None, dict[str, Any] | None]:
    """The key `endings` of `run.json`; None where nothing was tried. A Stop ends it, not the run. Never raises."""
    if not parts.config.training.end_rows or not parts.data.held_out or control.is_stop_requested:
        return None
    yield PhaseChanged("generating", "Counting the answers that end by themselves")
    try:
        found = _tried(parts, state, control)
    except Exception as error:
        log.exception("counting the answers that end by themselves failed")
        words = (str(error).splitlines() or [type(error).__name__])[0][:200]
        found = Noticed(
            "warning", "endings.failed", f"Whether answers end by themselves could not be tried: {words}",
            "the adapter is saved and whole; training.end_rows=0 leaves this out",
        )  # fmt: skip
    if isinstance(found, Noticed):
        recovery.release()
    if found is not None:
        yield found
    return dataclasses.asdict(found) if isinstance(found, EndingsCounted) else None


def _tried(parts: Any, state: TrainState, control: Control) -> EndingsCounted | Noticed | None:
    """None: asked to stop before the first answer."""
    settings = parts.config.training
    questions = _questions(parts)
    if not questions:
        return Noticed(
            "info", "endings.no_rows",
            f"Whether answers end by themselves was not tried: no held-out row is a question with an answer of at most "
            f"{settings.end_tokens // 2} tokens", "training.end_tokens is twice that",
        )  # fmt: skip
    began = time.perf_counter()
    allowed = max(SHORTEST_SECONDS, SHARE_OF_TRAINING * state.elapsed_seconds)
    ends = _ends(parts)
    answers, unfinished = _answers(
        parts, questions, ends, lambda: control.is_stop_requested or time.perf_counter() - began > allowed
    )
    if not answers:
        words = f"the first answer was at token {unfinished} without an end when {allowed:.0f} s were up"
        told = Noticed("info", "endings.no_time", f"Whether answers end by themselves is not known: {words}")
        return None if control.is_stop_requested else told
    return EndingsCounted(
        step=finish.kept_step(parts, state),
        asked=len(answers),
        ended=sum(answer.is_complete for answer in answers),
        taught=sum(any(token in ends for token in asked.expected) for asked in questions[: len(answers)]),
        limit=settings.end_tokens,
        seconds=time.perf_counter() - began,
    )


def _questions(parts: Any) -> list[Asked]:
    """The first held-out rows that can be asked; none whose answer would go past the model's positions."""
    settings = parts.config.training
    positions = spec.facts_of_folder(parts.base_path).max_positions
    longest_prompt = positions - settings.end_tokens if positions else None
    rows = islice(parts.data.held_out, settings.eval_rows)
    return list(islice(short_questions(rows, settings.end_tokens // 2, longest_prompt), settings.end_rows))


def _ends(parts: Any) -> tuple[int, ...]:
    data = parts.config.data
    return generate.end_ids(parts.model, parts.tokenizer, data.chat_template, Policy.of(data))


def _answers(
    parts: Any, questions: list[Asked], ends: tuple[int, ...], should_stop: Callable[[], bool]
) -> tuple[list[generate.Answer], int]:
    """Whole answers alone, in order: ended, or as long as the limit; and the tokens of the one that was broken off."""
    limit = parts.config.training.end_tokens
    found: list[generate.Answer] = []
    for asked in questions:
        answer = generate.continued(
            parts.model,
            parts.tokenizer,
            torch.tensor([list(asked.prompt)], dtype=torch.int64),
            ends,
            generate.GenerationSettings(max_new_tokens=limit, do_sample=False),
            should_stop=should_stop,
        )
        if not answer.is_complete and answer.tokens < limit:
            return found, answer.tokens
        found.append(answer)
    return found, 0
