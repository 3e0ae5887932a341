"""What the model will see, in numbers. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qlora_engine.data.formats import Detection
from qlora_engine.data.sources import RawRows
from qlora_engine.data.templates import Template
from qlora_engine.data.tokenize import TokenRow

EXAMPLES_NAMED = 5


class Drops:
    """Rows left out, by reason, with their numbers."""

    def __init__(self) -> None:
        self._rows: dict[str, list[int]] = {}

    def add(self, reason: str, number: int) -> None:
        self._rows.setdefault(reason, []).append(number)

    @property
    def count(self) -> int:
        return sum(len(rows) for rows in self._rows.values())

    def summary(self) -> str:
        """`12 rows: its output is empty (rows 3, 8, 9 ...)`."""
        if not self._rows:
            return "no row was left out"
        return "; ".join(
            f"{len(rows)} rows: {reason} ({_numbers(rows)})" for reason, rows in self._rows.items()
        )

    def reasons(self) -> tuple[Mapping[str, Any], ...]:
        return tuple(
            {"reason": reason, "count": len(rows), "first_rows": rows[:EXAMPLES_NAMED]}
            for reason, rows in self._rows.items()
        )


@dataclass(frozen=True)
class DataReport:
    """Counts are rows or tokens as named; lengths are in tokens before cutting."""

    origin: str
    sha256: str
    format: str
    format_reason: str
    columns: Mapping[str, str]
    template: str
    template_reason: str
    rows_read: int
    rows_dropped: int
    drops: tuple[Mapping[str, Any], ...]
    train_rows: int
    held_out_rows: int
    packed_rows: int | None
    duplicate_rows: int
    seq_len: int
    is_automatic_length: bool
    length_p50: int
    length_p90: int
    length_p95: int
    length_p99: int
    length_max: int
    train_tokens: int
    trained_tokens: int
    truncated_rows: int
    cut_tokens: int
    answer_ends_cut: int
    reasoning_rows_dropped: int
    notices: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def build_report(
    *,
    raw: RawRows,
    row_count: int,
    detection: Detection,
    template: Template,
    train: Sequence[TokenRow],
    held_out: Sequence[TokenRow],
    packed: int | None,
    whole_lengths: Sequence[int],
    seq_len: int,
    is_automatic_length: bool,
    drops: Drops,
    duplicates: int,
    tokenizer: Any,
) -> DataReport:
    """Count everything once."""
    rows = [*train, *held_out]
    truncated = [row for row in rows if row.cut_tokens]
    lengths = sorted(whole_lengths)
    report = DataReport(
        origin=raw.origin,
        sha256=raw.sha256,
        format=detection.format,
        format_reason=detection.why,
        columns=dict(detection.columns),
        template=template.name,
        template_reason=template.why,
        rows_read=row_count,
        rows_dropped=drops.count,
        drops=drops.reasons(),
        train_rows=len(train),
        held_out_rows=len(held_out),
        packed_rows=packed,
        duplicate_rows=duplicates,
        seq_len=seq_len,
        is_automatic_length=is_automatic_length,
        length_p50=_percentile(lengths, 0.50),
        length_p90=_percentile(lengths, 0.90),
        length_p95=_percentile(lengths, 0.95),
        length_p99=_percentile(lengths, 0.99),
        length_max=lengths[-1] if lengths else 0,
        train_tokens=sum(len(row.input_ids) for row in train),
        trained_tokens=sum(row.trained_count for row in train),
        truncated_rows=len(truncated),
        cut_tokens=sum(row.cut_tokens for row in truncated),
        answer_ends_cut=sum(row.is_answer_cut for row in truncated),
        reasoning_rows_dropped=_lost_reasoning(rows),
        notices=(),
    )
    return DataReport(**{**report.__dict__, "notices": tuple(_notices(report, template, rows, tokenizer))})


def _notices(
    report: DataReport, template: Template, rows: Sequence[TokenRow], tokenizer: Any
) -> Iterator[str]:
    if report.answer_ends_cut:
        yield f"In {report.answer_ends_cut} rows the answer's end is cut, so the model does not learn to stop there."
    if report.truncated_rows:
        yield f"{report.truncated_rows} rows are longer than {report.seq_len} tokens; {report.cut_tokens} tokens are cut."
    if not report.held_out_rows:
        yield "Nothing is held out: the run cannot show whether the model learns or memorises."
    if report.duplicate_rows:
        yield f"{report.duplicate_rows} rows repeat another row's content; they stay on the same side of the split."
    if template.name == "alpaca" and template.why != "as chosen":
        yield "The model has no chat template of its own; a plain one (### Instruction, ### Response) is used."
    for note, count in Counter(note for row in rows for note in row.notes).most_common():
        yield f"{count} rows: {note}."
    if rows and report.format != "text" and not _ends_are_trained(rows, template, tokenizer):
        yield "No row trains a token that ends the answer, so the model may not learn to stop."


def _ends_are_trained(rows: Sequence[TokenRow], template: Template, tokenizer: Any) -> bool:
    ends = set(tokenizer.convert_tokens_to_ids(list(template.end_tokens)))
    return any(
        token in ends and is_trained
        for row in rows[:100]
        for token, is_trained in zip(row.input_ids, row.trained, strict=True)
    )


def _lost_reasoning(rows: Sequence[TokenRow]) -> int:
    """Rows whose reasoning the template left out (CORRECTNESS 20)."""
    return sum(any("reasoning" in note for note in row.notes) for row in rows)


def _percentile(ordered: Sequence[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def _numbers(rows: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in rows[:EXAMPLES_NAMED])
    more = " ..." if len(rows) > EXAMPLES_NAMED else ""
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}{more}"
