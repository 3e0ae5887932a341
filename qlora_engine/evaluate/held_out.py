"""The rows a run never trained on, found again from its data and seed. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine import data
from qlora_engine.config import TrainingConfig
from qlora_engine.control import Control
from qlora_engine.data import pipeline, sources
from qlora_engine.data.formats import RowProblem, read_row
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.errors import EngineError
from qlora_engine.models import spec

Report = Callable[[str, int, int | None, str], None]
TEXT_PROMPT_TOKENS = 32
"""How much of a row that is all answer (plain text) is given as its prompt, at most half of it."""


@dataclass(frozen=True)
class Asked:
    """A row as a question: the tokens before its last answer, and those of the answer."""

    prompt: Sequence[int]
    expected: Sequence[int]
    start: int


def rows_of_run(
    config: TrainingConfig,
    record: Mapping[str, Any],
    base_path: Path,
    tokenizer: Any,
    control: Control,
    report: Report | None = None,
) -> Sequence[TokenRow]:
    """Every held-out row, as the run itself measured them.

    Raises:
        EngineError: the data has changed since (with both hashes), or nothing was held out.
        Cancelled: asked to stop.
    """
    prepared = data.prepare(
        config.data,
        tokenizer,
        seed=config.training.seed,
        model_max_length=spec.facts_of_folder(base_path).max_positions,
        is_offline=True,
        report_progress=report,
        control=control,
    )
    _require_same(prepared, record, config.data.path)
    return prepared.held_out


def _require_same(prepared: data.PreparedData, record: Mapping[str, Any], path: str) -> None:
    """The rows that the run held out, and some at all."""
    trained_on = str((record.get("data") or {}).get("sha256") or "")
    found = prepared.report.sha256
    if trained_on and found != trained_on:
        raise EngineError(
            "held_out.other_data",
            f"the dataset {path} has changed since the run: its hash is {found[:16]}, and it was "
            f"{trained_on[:16]}; which rows were held out is not known any more",
            "put the original data back, or train again on the new",
        )
    measured = (record.get("plan") or {}).get("held_out_rows")
    if measured is not None and measured != len(prepared.held_out):
        raise EngineError(
            "held_out.other_data",
            f"the held-out data has changed since the run: it has {len(prepared.held_out):,} rows, and had {measured:,}",
            "put the original data back, or train again on the new",
        )
    if not prepared.held_out:
        raise EngineError(
            "held_out.none",
            "the run held no rows out",
            "set data.held_out_fraction, or name a data.held_out_path, and train again",
        )


def questions_of(config: TrainingConfig, numbers: Collection[int]) -> dict[int, str]:
    """The last question of each numbered held-out row in its own words; rows that are plain text have none.

    Raises:
        EngineError: the data cannot be read any more.
    """
    settings = config.data
    store = sources.open_held_out(settings) or sources.open_store(settings, is_offline=True)
    found = {}
    detections = pipeline.detections(store, settings)
    for number in numbers:
        try:
            detection = detections[store.source_of(number)]
            messages = read_row(store.row(number), number, detection).messages
        except (RowProblem, sources.UnreadableRow, IndexError):
            continue
        asked = [m.text for m in messages if not m.is_answer]
        if asked:
            found[number] = asked[-1]
    return found


def asked_of(row: TokenRow) -> Asked:
    """The row's last answer as a question. Of a row that is all answer, the beginning is the question."""
    end = max(i for i, is_trained in enumerate(row.trained) if is_trained) + 1
    start = end - 1
    while start > 1 and row.trained[start - 1]:
        start -= 1
    if start <= 1:
        start = max(1, min(TEXT_PROMPT_TOKENS, end // 2))
    return Asked(row.input_ids[:start], row.input_ids[start:end], start)


def short_questions(
    rows: Iterable[TokenRow], longest_answer: int, longest_prompt: int | None
) -> Iterator[Asked]:
    """Rows as questions, in order, whose whole answer has at most `longest_answer` tokens, its end among them. Rows that
    are all answer, or lost part of one, ask nothing."""
    for row in rows:
        asked = asked_of(row)
        is_question = not all(row.trained[1 : asked.start])
        fits = longest_prompt is None or len(asked.prompt) <= longest_prompt
        if is_question and fits and not row.is_answer_cut and len(asked.expected) <= longest_answer:
            yield asked
