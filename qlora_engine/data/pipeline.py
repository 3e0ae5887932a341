"""From a dataset to training rows: read, detect, render, mask, measure, split, cut, pack. Torch-free.

Nothing is dropped, cut or merged without being counted in the report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_engine.config import DataSettings
from qlora_engine.control import Control
from qlora_engine.data import oasst, sources
from qlora_engine.data.formats import Detection, Example, RowProblem, detect, read_row
from qlora_engine.data.packing import pack
from qlora_engine.data.report import DataReport, Drops, build_report
from qlora_engine.data.templates import Template, choose
from qlora_engine.data.tokenize import BATCH_ROWS, MaskProblem, TokenRow, cut, tokenize
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
    template = choose(tokenizer, settings.chat_template)
    drops = Drops()
    examples = _read_examples(rows, detection, settings, drops)
    held_raw = sources.load_held_out(settings)
    train_examples, held_examples, duplicates = _split(examples, held_raw, settings, detection, seed, drops)
    train_on = "everything" if detection.format == "text" else settings.train_on
    work = _Tokenizing(
        tokenizer,
        template,
        train_on,
        drops,
        report_progress,
        control,
        len(train_examples) + len(held_examples),
    )
    train, held_out = work.run(train_examples), work.run(held_examples)
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
        self, tokenizer: Any, template: Template, train_on: str, drops: Drops, report: Report | None,
        control: Control | None, total: int,
    ) -> None:  # fmt: skip
        self._tokenizer, self._template, self._train_on, self._drops = tokenizer, template, train_on, drops
        self._report, self._control, self._total, self._done = report, control, total, 0

    def run(self, examples: Sequence[Example]) -> list[TokenRow]:
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

    def _group(self, group: Sequence[Example]) -> list[TokenRow]:
        try:
            return list(tokenize(group, self._tokenizer, self._template, train_on=self._train_on))
        except MaskProblem as problem:
            raise EngineError(
                "data.mask",
                f"the answers cannot be found in the rendered rows {group[0].number} to {group[-1].number}: {problem}",
                "choose another data.chat_template, or train on everything with data.train_on",
            ) from problem
        except EngineError:
            raise
        except Exception as error:  # a template raises whatever its author chose
            lines = str(error).strip().splitlines()
            raise EngineError(
                "data.template",
                f"the chat template refuses a row between {group[0].number} and {group[-1].number}: {lines[0][:160] if lines else error}",
                "choose another data.chat_template, or correct those rows",
            ) from error


def _read_examples(
    rows: Sequence[Any], detection: Detection, settings: DataSettings, drops: Drops
) -> list[Example]:
    examples = []
    for number, row in enumerate(rows, 1):
        try:
            example = read_row(row, number, detection)
        except RowProblem as problem:
            drops.add(str(problem), number)
            continue
        examples.append(_with_system(example, settings.system_prompt))
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


def _with_system(example: Example, system_prompt: str | None) -> Example:
    if not system_prompt or not example.messages or example.messages[0]["role"] == "system":
        return example
    return replace(example, messages=({"role": "system", "content": system_prompt}, *example.messages))


def _split(
    examples: list[Example],
    held_raw: sources.RawRows | None,
    settings: DataSettings,
    detection: Detection,
    seed: int,
    drops: Drops,
) -> tuple[list[Example], list[Example], int]:
    """(train, held out, duplicates). Rows of the same content are always on the same side."""
    keys = [_content_key(example) for example in examples]
    duplicates = len(keys) - len(set(keys))
    if held_raw is not None:
        held = _read_examples(held_raw.rows, detection, settings, Drops())
        held_keys = {_content_key(example) for example in held}
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


def _content_key(example: Example) -> str:
    content = (
        example.text
        if example.text is not None
        else json.dumps([(m["role"], m["content"].strip()) for m in example.messages])
    )
    return hashlib.sha256(content.encode()).hexdigest()


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
