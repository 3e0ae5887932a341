"""From a dataset to training rows: read, detect, render, mask, measure, split, cut, pack. Torch-free.

Nothing is dropped, cut or merged without being counted in the report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_engine.config import DataSettings
from qlora_engine.control import Control
from qlora_engine.data import oasst, sources
from qlora_engine.data.conversation import Conversation, RowProblem
from qlora_engine.data.formats import Detection, detect, read_row, require_settled
from qlora_engine.data.packing import pack
from qlora_engine.data.report import DataReport, Drops, build_report
from qlora_engine.data.templates import Template, choose
from qlora_engine.data.tokenize import BATCH_ROWS, Policy, TokenRow, cut, tokenize
from qlora_engine.errors import EngineError

Report = Callable[[str, int, int | None, str], None]
LENGTH_PERCENTILE = 0.99
LENGTH_MULTIPLE = 8


@dataclass(frozen=True, eq=False)
class PreparedData:
    """Rows ready for training. `held_out` shares no row's content with `train` and is never packed."""

    train: list[TokenRow]
    held_out: list[TokenRow]
    report: DataReport
    seq_len: int


def prepare(
    settings: DataSettings,
    tokenizer: Any,
    *,
    seed: int,
    model_max_length: int | None = None,
    is_offline: bool = False,
    report_progress: Report | None = None,
    control: Control | None = None,
) -> PreparedData:
    """Everything between a file and a batch.

    Raises:
        EngineError: missing, empty, unreadable, wrong columns, nothing to train on.
        Cancelled: asked to stop.
    """
    _require_fast(tokenizer)
    raw = sources.load_rows(settings, is_offline=is_offline)
    rows = oasst.conversations(raw.rows) if oasst.is_message_tree(raw.rows) else raw.rows
    detection = detect(rows, settings)
    require_settled(detection)
    template = choose(tokenizer, settings.chat_template, Policy.of(settings))
    drops = Drops()
    examples = _read_examples(rows, detection, settings, drops)
    held_raw = sources.load_held_out(settings)
    train_examples, held_examples, duplicates = _split(examples, held_raw, settings, detection, seed, drops)
    work = _Tokenizing(
        tokenizer,
        template,
        Policy.of(settings),
        drops,
        report_progress,
        control,
        len(train_examples) + len(held_examples),
    )
    train, held_out = work.run(train_examples), work.run(held_examples)
    _refuse_untokenized(len(train_examples) + len(held_examples), len(train) + len(held_out), drops)
    whole_lengths = [len(row.input_ids) for row in (*train, *held_out)]
    seq_len = settings.seq_len or automatic_length(whole_lengths, model_max_length)
    _check_length(seq_len, model_max_length)
    train, held_out = _cut_all(train, seq_len, drops), _cut_all(held_out, seq_len, drops)
    if not train:
        raise EngineError(
            "data.nothing_trained",
            f"no row has a token to train on: {drops.summary()}",
            "raise data.seq_len, or look at the rows with `qlora data --show-mask 5`",
        )
    packed = pack(train, seq_len) if settings.packing else train
    report = build_report(
        raw=raw, row_count=len(rows), detection=detection, template=template, train=train, held_out=held_out,
        packed=len(packed) if settings.packing else None, whole_lengths=whole_lengths, seq_len=seq_len,
        is_automatic_length=settings.seq_len is None, drops=drops, duplicates=duplicates, tokenizer=tokenizer,
    )  # fmt: skip
    return PreparedData(packed, held_out, report, seq_len)


def automatic_length(lengths: Sequence[int], model_max_length: int | None) -> int:
    """The 99th percentile of the rows' lengths, rounded up to a multiple of 8, at most what the model can see."""
    if not lengths:
        return LENGTH_MULTIPLE
    ordered = sorted(lengths)
    wanted = ordered[min(len(ordered) - 1, int(LENGTH_PERCENTILE * len(ordered)))]
    rounded = -(-wanted // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return min(rounded, model_max_length) if model_max_length else rounded


class _Tokenizing:
    """Tokenizes with progress, an ear for Stop, and a sentence when an answer cannot be found."""

    def __init__(
        self, tokenizer: Any, template: Template, policy: Policy, drops: Drops, report: Report | None,
        control: Control | None, total: int,
    ) -> None:  # fmt: skip
        self._tokenizer, self._template, self._policy, self._drops = tokenizer, template, policy, drops
        self._report, self._control, self._total, self._done = report, control, total, 0

    def run(self, examples: Sequence[Conversation]) -> list[TokenRow]:
        rows: list[TokenRow] = []
        for start in range(0, len(examples), BATCH_ROWS):
            if self._control is not None:
                self._control.check()
            group = examples[start : start + BATCH_ROWS]
            rows.extend(self._group(group))
            self._done += len(group)
            if self._report is not None:
                self._report("tokenizing", self._done, self._total, "rows")
        return rows

    def _group(self, group: Sequence[Conversation]) -> list[TokenRow]:
        kept = []
        for row in tokenize(group, self._tokenizer, self._template, self._policy):
            if isinstance(row, RowProblem):
                self._drops.add(row.reason, row.number or 0)
            else:
                kept.append(row)
        return kept


def _read_examples(
    rows: Sequence[Any], detection: Detection, settings: DataSettings, drops: Drops
) -> list[Conversation]:
    examples = []
    for number, row in enumerate(rows, 1):
        try:
            example = read_row(row, number, detection)
        except RowProblem as problem:
            drops.add(str(problem), number)
            continue
        examples.append(example.with_system(settings.system_prompt))
    _refuse_nonsense(len(rows), len(examples), detection, drops)
    return examples


def _refuse_nonsense(total: int, kept: int, detection: Detection, drops: Drops) -> None:
    """More bad rows than good ones means a wrong mapping, not bad rows (CORRECTNESS 23).

    Raises:
        EngineError: it is so.
    """
    if kept * 2 >= total and kept:
        return
    raise EngineError(
        "data.columns",
        f"{total - kept} of {total} rows cannot be read as {detection.format}: {drops.summary()}",
        "check data.format and data.columns",
    )


def _refuse_untokenized(total: int, kept: int, drops: Drops) -> None:
    """A template that fits fewer than half of the rows is the wrong one (CORRECTNESS 17).

    Raises:
        EngineError: it is so.
    """
    if kept * 2 < total:
        raise EngineError(
            "data.mask",
            f"{total - kept} of {total} rows cannot be trained rightly with this chat template: {drops.summary()}",
            "choose another data.chat_template, or correct those rows",
        )


def _split(
    examples: list[Conversation],
    held_raw: sources.RawRows | None,
    settings: DataSettings,
    detection: Detection,
    seed: int,
    drops: Drops,
) -> tuple[list[Conversation], list[Conversation], int]:
    """(train, held out, duplicates). Rows of the same content are always on the same side."""
    keys = [example.content_key() for example in examples]
    duplicates = len(keys) - len(set(keys))
    if held_raw is not None:
        held = _read_examples(held_raw.rows, detection, settings, Drops())
        held_keys = {example.content_key() for example in held}
        for example, key in zip(examples, keys, strict=True):
            if key in held_keys:
                drops.add("it is also in the held-out data", example.number)
        return [e for e, k in zip(examples, keys, strict=True) if k not in held_keys], held, duplicates
    chosen = _held_out_keys(keys, settings.held_out_fraction, seed)
    train = [e for e, k in zip(examples, keys, strict=True) if k not in chosen]
    held = [e for e, k in zip(examples, keys, strict=True) if k in chosen]
    return train, held, duplicates


def _held_out_keys(keys: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Keys whose hash with the seed is smallest: a row keeps its side when others are added."""
    unique = list(dict.fromkeys(keys))
    count = round(fraction * len(unique))
    if fraction > 0 and len(unique) > 1:
        count = max(1, min(count, len(unique) - 1))
    ranked = sorted(unique, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    return set(ranked[:count])


def _cut_all(rows: Sequence[TokenRow], seq_len: int, drops: Drops) -> list[TokenRow]:
    kept = []
    for row in rows:
        shorter = cut(row, seq_len)
        if shorter.trained_count == 0:
            drops.add("no trained token is left within the sequence length", row.source_row)
        else:
            kept.append(shorter)
    return kept


def _check_length(seq_len: int, model_max_length: int | None) -> None:
    if model_max_length and seq_len > model_max_length:
        raise EngineError(
            "data.seq_len", f"the sequence length is {seq_len} tokens, and the model sees at most {model_max_length}",
            "lower data.seq_len",
        )  # fmt: skip


def _require_fast(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise EngineError(
            "data.tokenizer", "this model's tokenizer has no fast version, which the answer mask needs",
            "convert it with transformers to tokenizer.json first",
        )  # fmt: skip
