"""What the model will see, in numbers. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qlora_engine import row_numbers
from qlora_engine.counting import counted
from qlora_engine.data import scripts, working
from qlora_engine.data.formats import Detection
from qlora_engine.data.lengths import Lengths
from qlora_engine.data.packing import PackedRows
from qlora_engine.data.sources import RowStore
from qlora_engine.data.split import Sides
from qlora_engine.data.templates import Template
from qlora_engine.data.tokens import TokenRows, TokenStore

EXAMPLES_NAMED = 5
SHORT_ANSWER_TOKENS = 3
NUMBER = re.compile(r"\d[\d,]*")


class Drops:
    """Rows left out, by reason, with their numbers. Reasons that differ in numbers alone are one."""

    def __init__(self, known: Mapping[str, Iterable[int]] | None = None) -> None:
        self._rows: dict[str, tuple[str, list[int]]] = {}
        for reason, numbers in (known or {}).items():
            self.add(reason, *numbers)

    def add(self, reason: str, *numbers: int) -> None:
        if numbers:
            self._rows.setdefault(NUMBER.sub("0", reason), (reason, []))[1].extend(numbers)

    @property
    def count(self) -> int:
        return sum(len(rows) for _, rows in self._rows.values())

    @property
    def numbers(self) -> list[int]:
        return sorted(number for _, rows in self._rows.values() for number in rows)

    def items(self) -> Iterable[tuple[str, list[int]]]:
        """Each reason with the numbers of its rows."""
        return self._rows.values()

    def summary(self) -> str:
        """`12 rows: its output is empty (rows 3, 8, 9 ...)`."""
        if not self._rows:
            return "no row was left out"
        return "; ".join(
            f"{counted(len(rows), 'row')}: {reason} ({numbers_text(rows)})"
            for reason, rows in self._rows.values()
        )

    def reasons(self) -> tuple[Mapping[str, Any], ...]:
        ordered = sorted(self._rows.values(), key=lambda found: -len(found[1]))
        return tuple(
            {"reason": reason, "count": len(rows), "first_rows": sorted(rows)[:EXAMPLES_NAMED]}
            for reason, rows in ordered
        )


@dataclass(frozen=True)
class DataReport:
    """Counts are rows or tokens as named; lengths are in tokens before cutting.

    `lengths` is `Lengths.to_json`, `keeps` the shares of rows and trained tokens that the sequence length keeps;
    `sources` say how each was read; `findings` are the doctor's, `notices` their sentences.
    """

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
    near_duplicate_rows: int
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
    longest_row_tokens: int
    most_trained_tokens: int
    short_answer_rows: int
    rows_without_end: int
    bos_per_row: tuple[int, int]
    unknown_tokens: int
    reasoning_rows: int
    call_rows: int
    tool_rows: int
    untrained_answer_rows: int
    secret_rows: int
    email_rows: int
    scripts: Mapping[str, int]
    unused_keys: Mapping[str, int]
    lengths: Mapping[str, Any]
    keeps: Mapping[str, float]
    sources: tuple[Mapping[str, Any], ...]
    findings: tuple[Mapping[str, Any], ...] = ()
    notices: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Found:
    """Everything a report is made of."""

    store: RowStore
    detections: Sequence[Detection]
    template: Template
    tokens: TokenStore
    held_tokens: TokenStore
    sides: Sides
    train: TokenRows
    held_out: TokenRows
    packed: PackedRows | None
    """None where rows are not packed, or there are none."""
    seq_len: int
    is_automatic_length: bool
    drops: Drops
    kept: Any
    """Places in `tokens` of the rows that nobody left out by hand."""

    @property
    def has_held_out_file(self) -> bool:
        return self.held_tokens is not self.tokens


def build_report(found: Found) -> DataReport:
    """Count everything once."""
    return DataReport(**_reading(found), **_length_facts(found), **_row_facts(found))


def _reading(found: Found) -> dict[str, Any]:
    first = found.detections[0]
    return {
        "origin": found.store.origin,
        "sha256": found.store.sha256,
        "format": first.format,
        "format_reason": first.why,
        "columns": dict(first.columns),
        "template": found.template.name,
        "template_reason": found.template.why,
        "rows_read": len(found.store),
        "rows_dropped": found.drops.count,
        "drops": found.drops.reasons(),
        "train_rows": len(found.train),
        "held_out_rows": len(found.held_out),
        "packed_rows": None if found.packed is None else len(found.packed),
        "duplicate_rows": found.sides.duplicates,
        "near_duplicate_rows": found.sides.near_duplicates,
        "unused_keys": noted(found, "unused:"),
        "sources": tuple(
            {
                "name": source.name, "rows": len(source), "weight": source.weight, "format": detection.format,
                "format_reason": detection.why, "columns": dict(detection.columns), "used": list(detection.used),
                "unused": list(detection.unused), "files": [file.name for file in source.files][:EXAMPLES_NAMED],
            }
            for source, detection in zip(found.store.sources, found.detections, strict=True)
        ),
    }  # fmt: skip


def _length_facts(found: Found) -> dict[str, Any]:
    import numpy as np

    meant = [(found.tokens, found.kept)]
    if found.has_held_out_file:
        meant.append((found.held_tokens, np.arange(len(found.held_tokens))))
    table = Lengths.of(*meant)
    both = (found.train, found.held_out)
    whole = np.concatenate([rows.store.lengths[rows.places] for rows in both])
    ordered = np.sort(np.concatenate([store.lengths[places] for store, places in meant]))
    trained = found.train.trained_counts
    fed = found.train if found.packed is None else found.packed
    trained_fed = trained if found.packed is None else found.packed.sums(trained)
    kept_whole, kept_trained = table.kept_at(found.seq_len)
    return {
        "seq_len": found.seq_len,
        "is_automatic_length": found.is_automatic_length,
        **{f"length_p{share}": _percentile(ordered, share / 100) for share in (50, 90, 95, 99)},
        "length_max": int(ordered[-1]) if len(ordered) else 0,
        "train_tokens": int(found.train.lengths.sum()),
        "trained_tokens": int(trained.sum()),
        "truncated_rows": int((whole > found.seq_len).sum()),
        "cut_tokens": int((whole - found.seq_len).clip(min=0).sum()),
        "answer_ends_cut": sum(int(ends_cut(rows).sum()) for rows in both),
        "longest_row_tokens": int(fed.lengths.max()) if len(fed) else 0,
        "most_trained_tokens": int(trained_fed.max()) if len(fed) else 0,
        "short_answer_rows": int((trained <= SHORT_ANSWER_TOKENS).sum()),
        "lengths": table.to_json(),
        "keeps": {"rows": round(kept_whole, 6), "trained_tokens": round(kept_trained, 6)},
    }


def _row_facts(found: Found) -> dict[str, Any]:
    import numpy as np

    flags = column_of(found, "flags")
    bos, unknown, script = (column_of(found, name) for name in ("bos", "unknown", "script"))
    named = {
        "reasoning_rows_dropped": working.LOST_REASONING, "reasoning_rows": working.HAS_REASONING,
        "call_rows": working.HAS_CALLS, "tool_rows": working.HAS_TOOLS, "secret_rows": working.HAS_SECRET,
        "untrained_answer_rows": working.HAS_UNTRAINED_ANSWER, "email_rows": working.HAS_EMAIL,
    }  # fmt: skip
    rows = np.bincount(script.astype(np.int64), minlength=len(scripts.NAMES)).tolist()
    return {
        **{name: int(((flags & bit) > 0).sum()) for name, bit in named.items()},
        "rows_without_end": int(((flags & (working.HAS_END | working.IS_TEXT)) == 0).sum()),
        "bos_per_row": (int(bos.min()), int(bos.max())) if len(bos) else (0, 0),
        "unknown_tokens": int(unknown.sum()),
        "scripts": {name: count for name, count in zip(scripts.NAMES, rows, strict=True) if count},
    }


def column_of(found: Found, name: str) -> Any:
    """A column over the rows that are kept, trained ones first."""
    import numpy as np

    return np.concatenate([rows.store.column(name)[rows.places] for rows in (found.train, found.held_out)])


def ends_cut(rows: TokenRows) -> Any:
    """(rows,) bool: the end of the last answer is beyond the sequence length."""
    found = rows.store.lengths[rows.places] > rows.seq_len
    for row in found.nonzero()[0].tolist():
        found[row] = rows.store.row_spans(int(rows.places[row]))[:, 1].max() > rows.seq_len
    return found


def noted(found: Found, kind: str) -> dict[str, int]:
    """What is noted of rows -> how many of those that are trained or held out; rows of a held-out file are not noted."""
    import numpy as np

    used = [found.train.numbers, *([] if found.has_held_out_file else [found.held_out.numbers])]
    numbers = np.unique(np.concatenate(used))
    counts = {
        name.removeprefix(kind): int(row_numbers.among(ranges, numbers).sum())
        for name, ranges in found.tokens.noted.items()
        if name.startswith(kind)
    }
    return {name: count for name, count in sorted(counts.items(), key=lambda pair: -pair[1]) if count}


def _percentile(ordered: Any, share: float) -> int:
    return int(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) if len(ordered) else 0


def numbers_text(rows: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in rows[:EXAMPLES_NAMED])
    more = " ..." if len(rows) > EXAMPLES_NAMED else ""
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}{more}"
