"""What the model will see, before a run: the data as a run would read it, and its first rows token by token.

Torch-free but for the job, which loads a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from qlora_engine import config_io
from qlora_engine.bridge import Emit, events_while
from qlora_engine.control import Control
from qlora_engine.data import pipeline
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.events import Event, PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import DataReportJob
from qlora_engine.models import prepare, spec


def shown_rows(rows: Sequence[TokenRow], tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """The first rows as tokens with a state each: trained, masked, special, cut."""
    special = set(tokenizer.all_special_ids)
    shown = []
    for row in rows[:count]:
        whole = tokenizer(row.text, add_special_tokens=False)["input_ids"]
        states = [_state(index, token, row, special) for index, token in enumerate(whole)]
        tokens = [
            {"text": tokenizer.decode([token]), "id": token, "state": state}
            for token, state in zip(whole, states, strict=True)
        ]
        shown.append(
            {
                "row": row.source_row,
                "tokens": tokens,
                "cut_tokens": row.cut_tokens,
                "is_answer_cut": row.is_answer_cut,
            }
        )
    return shown


def _state(index: int, token: int, row: TokenRow, special: set[int]) -> str:
    if index >= len(row.input_ids):
        return "cut"
    if row.trained[index]:
        return "trained"
    return "special" if token in special else "masked"


def report_job(job: DataReportJob, control: Control) -> Iterator[Event]:
    """Read and tokenize as a run would; result: {"report", "rows"}."""
    from qlora_engine.models import loading

    config = config_io.from_dict(job.config)

    def ready(emit: Emit) -> Any:
        def report(phase: str, done: int, total: int | None, unit: str) -> None:
            emit(Progressed(phase, done, total, unit))

        path = prepare.ensure_ready(
            config.model.name, config.model.revision, config.model.offline, control, report
        )
        tokenizer = loading.load_tokenizer(path, trust_remote_code=config.model.trust_remote_code)
        longest = spec.facts_of_folder(path).max_positions
        unpacked = replace(config.data, packing=False)
        found = pipeline.prepare(
            unpacked, tokenizer, seed=config.training.seed, model_max_length=longest,
            is_offline=config.model.offline, report_progress=report, control=control,
        )  # fmt: skip
        return found, tokenizer

    yield PhaseChanged("tokenizing", f"Reading the dataset {config.data.path}")
    found, tokenizer = yield from events_while(ready)
    rows = shown_rows(found.train, tokenizer, job.show_rows)
    yield RunFinished({"report": found.report.to_json(), "rows": rows})
