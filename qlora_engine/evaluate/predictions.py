"""Held-out predictions: every row's loss, and what the best and the worst were expected to say and say. Imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional

from qlora_engine.bridge import Emit, events_while
from qlora_engine.control import Control
from qlora_engine.data.batches import IGNORED, collate
from qlora_engine.data.tokenize import Policy, TokenRow
from qlora_engine.errors import EngineError
from qlora_engine.evaluate import generate, held_out, prediction_file
from qlora_engine.evaluate.answers import adapter_sha256
from qlora_engine.evaluate.generate import GenerationSettings
from qlora_engine.evaluate.held_out import Asked, asked_of
from qlora_engine.evaluate.origin import TUNED, Origin, origin_of_run
from qlora_engine.evaluate.session import ChatModel, load_chat_model, memory_told
from qlora_engine.events import Event, PhaseChanged, Progressed, RunFinished
from qlora_engine.export import source as export_source
from qlora_engine.jobs import PredictionsJob
from qlora_engine.models import loading
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import loss as losses

CHUNK_TOKENS = 256
"""Tokens whose logits are in memory at once."""
LONGEST_ANSWER = 256
SHORTEST_LIMIT = 16


@dataclass(frozen=True)
class RowScore:
    """One held-out row. `loss`: nats per trained token; `wrong_at`: the place, from 0, in the last answer of the first
    token that is not the likeliest one, which is where a greedy answer leaves the expected one; None when there is
    none. `likeliest` is the token that was likelier there."""

    row: int
    loss: float
    tokens: int
    answer_tokens: int
    wrong_at: int | None
    likeliest: int | None


def predictions_job(job: PredictionsJob, control: Control) -> Iterator[Event]:
    """Score, answer, keep both with the run, and give the document back.

    Raises:
        EngineError: no adapter, the base or the data is another one, nothing was held out.
        Cancelled: asked to stop; nothing is written.
    """
    began = time.perf_counter()
    run = RunFolder.open(job.run_dir)
    origin = origin_of_run(run, job.device)
    rows = yield from _rows(run, origin, control)
    chat = yield from load_chat_model(origin, control)
    yield PhaseChanged("evaluating", f"Scoring {len(rows):,} held-out rows")
    kind = str(run.record().get("loss_kind") or "chunked")
    scores = yield from events_while(lambda emit: _score_all(chat, rows, kind, control, emit))
    yield PhaseChanged("generating", "Answering the best and the worst rows")
    ranked = sorted(scores, key=lambda score: -score.loss)
    by_number = {row.source_row: row for row in rows}
    same = sorted(by_number)[: job.same]
    shown = list(dict.fromkeys([*_shown(ranked, max(1, job.rows)), *same]))
    questions = held_out.questions_of(origin.config, shown)
    told = yield from events_while(
        lambda emit: _answer_all(chat, [by_number[n] for n in shown], scores, questions, control, emit)
    )
    summary = {
        **_summary(run, origin, scores),
        "seconds": time.perf_counter() - began,
        "unix_time": time.time(),
    }
    ends = {
        "worst": [told[s.row] for s in ranked[: job.rows]],
        "best": [told[s.row] for s in reversed(ranked[-job.rows :])],
        "same": [told[number] for number in same],
    }
    prediction_file.write(run, {**summary, **ends}, [asdict(score) for score in ranked])
    yield RunFinished({**summary, **ends})


def _rows(run: RunFolder, origin: Origin, control: Control) -> Generator[Event, None, Sequence[TokenRow]]:
    """Before the model is loaded: changed data is refused at once."""
    yield PhaseChanged("tokenizing", "Finding the held-out rows again")
    record = run.record()
    base = export_source.base_path(record)
    export_source.check_base(record, base)

    def work(emit: Emit) -> Sequence[TokenRow]:
        tokenizer = loading.load_tokenizer(base, trust_remote_code=origin.config.model.trust_remote_code)
        return held_out.rows_of_run(
            origin.config,
            record,
            base,
            tokenizer,
            control,
            lambda phase, done, total, unit: emit(Progressed(phase, done, total, unit)),
        )

    return (yield from events_while(work))


def _score_all(
    chat: ChatModel, rows: Sequence[TokenRow], kind: str, control: Control, emit: Emit
) -> list[RowScore]:
    found = []
    with memory_told(), chat.speaking(TUNED) as model:
        for number, row in enumerate(rows, start=1):
            control.check()
            score = score_row(model, row, kind=kind)
            if not math.isfinite(score.loss):
                raise EngineError(
                    "held_out.not_finite",
                    f"the loss of held-out row {row.source_row} is not a number: the adapter or the compute type is broken",
                    "train again with bf16 or fp32 as compute type",
                    is_input_error=False,
                )
            found.append(score)
            emit(Progressed("evaluating", number, len(rows), "rows"))
    return found


@torch.no_grad()
def score_row(model: Any, row: TokenRow, *, kind: str = "chunked") -> RowScore:
    """Loss and first wrong token of one row; never more than `CHUNK_TOKENS` logits in memory where the model allows it."""
    causal = losses.causal_of(model)
    batch = collate([row], 0).to(str(next(model.parameters()).device))
    if kind == "chunked":
        states, wanted = losses.predicting_states(causal, batch)
    else:
        targets = batch.labels[0, 1:]
        places = (targets != IGNORED).nonzero()[:, 0]
        states = causal(input_ids=batch.input_ids, logits_to_keep=places, use_cache=False).logits[0]
        wanted = targets[places]
    total, likeliest = 0.0, []
    for part, target in zip(states.split(CHUNK_TOKENS), wanted.split(CHUNK_TOKENS), strict=True):
        logits = losses.logits_of(causal, part) if kind == "chunked" else part.float()
        total += float(functional.cross_entropy(logits, target, reduction="sum"))
        likeliest.append(logits.argmax(-1).cpu())
    return _scored(row, total, wanted.cpu(), torch.cat(likeliest))


def _scored(row: TokenRow, total: float, wanted: torch.Tensor, likeliest: torch.Tensor) -> RowScore:
    """`wanted` and `likeliest` (T,): of each trained token, in order. The last answer's are at their end."""
    size = len(asked_of(row).expected)
    last_wanted, last_likeliest = wanted[-size:], likeliest[-size:]
    wrong = (last_wanted != last_likeliest).nonzero()[:, 0]
    at = int(wrong[0]) if len(wrong) else None
    return RowScore(
        row=row.source_row,
        loss=total / len(wanted),
        tokens=len(wanted),
        answer_tokens=size,
        wrong_at=at,
        likeliest=None if at is None else int(last_likeliest[at]),
    )


def _shown(ranked: Sequence[RowScore], count: int) -> list[int]:
    """Rows that are answered: the worst first, then the best; each once."""
    worst, best = ranked[:count], list(reversed(ranked[-count:]))
    return list(dict.fromkeys(score.row for score in [*worst, *best]))


def _answer_all(
    chat: ChatModel,
    rows: Sequence[TokenRow],
    scores: Sequence[RowScore],
    questions: dict[int, str],
    control: Control,
    emit: Emit,
) -> dict[int, dict[str, Any]]:
    by_number = {score.row: score for score in scores}
    data = chat.config_of(TUNED).data
    told = {}
    with memory_told(), chat.speaking(TUNED) as model:
        ends = generate.end_ids(model, chat.tokenizer, data.chat_template, Policy.of(data))
        for number, row in enumerate(rows, start=1):
            asked = asked_of(row)
            longest = min(LONGEST_ANSWER, max(SHORTEST_LIMIT, 2 * len(asked.expected)))
            answer = generate.continued(
                model,
                chat.tokenizer,
                torch.tensor([list(asked.prompt)], dtype=torch.int64),
                ends,
                GenerationSettings(max_new_tokens=longest),
                should_stop=lambda: control.is_stop_requested,
            )
            control.check()
            told[row.source_row] = _told(chat.tokenizer, by_number[row.source_row], asked, answer, questions)
            emit(Progressed("generating", number, len(rows), "answers"))
    return told


def _told(
    tokenizer: Any, score: RowScore, asked: Asked, answer: generate.Answer, questions: dict[int, str]
) -> dict[str, Any]:
    wrong = score.wrong_at

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    return {
        **asdict(score),
        "question": questions.get(score.row, text(asked.prompt).strip()),
        "prompt": tokenizer.decode(list(asked.prompt)),
        "expected": text(asked.expected).strip(),
        "got": answer.text,
        "is_complete": answer.is_complete,
        "wrong_token": None if wrong is None else tokenizer.decode([asked.expected[wrong]]),
        "likeliest_token": None if score.likeliest is None else tokenizer.decode([score.likeliest]),
    }


def _summary(run: RunFolder, origin: Origin, scores: Sequence[RowScore]) -> dict[str, Any]:
    tokens = sum(score.tokens for score in scores)
    if not tokens:
        raise EngineError("held_out.none", "no held-out row has a trained token", "look at the data")
    return {
        "run_id": run.run_id,
        "run_dir": str(run.path),
        "adapter_sha256": adapter_sha256(origin),
        "adapter_step": origin.step,
        "data_sha256": (run.record().get("data") or {}).get("sha256"),
        "scored_rows": len(scores),
        "trained_tokens": tokens,
        "loss": sum(score.loss * score.tokens for score in scores) / tokens,
        "faultless_rows": sum(score.wrong_at is None for score in scores),
    }
