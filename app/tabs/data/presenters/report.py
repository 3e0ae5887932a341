"""What was found in the data, in words: rows kept and left out, lengths, and what else a person should know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from app.presenters import numerals
from app.presenters.words import capital, count_text, counted, percent_text, plural
from qlora_engine.config import DataSettings
from qlora_engine.knobs import knobs_of

LONG_TAIL = 6
"""How many times the 95th percentile the longest row may be before lengths are drawn on a logarithmic scale."""


@dataclass(frozen=True)
class Lengths:
    """`bars` are (from, to, rows) in tokens; `curve` is (maximum, share of rows whole, share of answer tokens)."""

    bars: tuple[tuple[int, int, float], ...]
    curve: tuple[tuple[int, float, float], ...]
    longest: int
    maximum: int
    is_automatic: bool
    is_logarithmic: bool


@dataclass(frozen=True)
class RowsLine:
    """A sentence, and the numbers of the first rows that it is about."""

    text: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReportState:
    facts: tuple[tuple[str, ...], ...]
    lengths: Lengths | None
    left_out: tuple[RowsLine, ...]
    contents: tuple[RowsLine, ...]
    scripts: tuple[tuple[str, float], ...]
    sources: tuple[tuple[str, ...], ...]


def report_state(report: Mapping[str, Any]) -> ReportState:
    return ReportState(
        facts=_facts(report),
        lengths=_lengths(report),
        left_out=tuple(RowsLine(_reason(drop), tuple(drop["first_rows"])) for drop in report["drops"]),
        contents=tuple(_contents(report)),
        scripts=_scripts(report.get("scripts", {})),
        sources=_sources(report.get("sources", ())),
    )


def keeps_text(lengths: Lengths, maximum: int) -> str:
    """What a maximum length keeps."""
    rows, tokens = shares_at(lengths.curve, maximum)
    return (
        f"{count_text(maximum)} tokens: keeps {percent_text(rows)} of rows whole, "
        f"trains on {percent_text(tokens)} of answer tokens"
    )


def shares_at(curve: Sequence[tuple[int, float, float]], maximum: int) -> tuple[float, float]:
    """Between two known points as on a straight line."""
    if not curve or maximum >= curve[-1][0]:
        return 1.0, 1.0
    if maximum <= curve[0][0]:
        return curve[0][1], curve[0][2]
    for (low, rows, tokens), (high, more_rows, more_tokens) in pairwise(curve):
        if maximum <= high:
            part = (maximum - low) / (high - low)
            return rows + part * (more_rows - rows), tokens + part * (more_tokens - tokens)
    return 1.0, 1.0


def _facts(report: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    tokens, trained = int(report["train_tokens"]), int(report["trained_tokens"])
    formats = knobs_of(DataSettings)["format"].choices or {}
    columns = ", ".join(f"{name} = {column}" for name, column in report["columns"].items())
    return (
        ("Rows", f"{count_text(report['train_rows'])} to train on, {count_text(report['held_out_rows'])} held out, {count_text(report['rows_dropped'])} left out"),
        ("Tokens", f"{count_text(tokens)} per epoch; {count_text(trained)} trained ({percent_text(trained / tokens if tokens else None)})"),
        ("Lengths", f"median {count_text(report['length_p50'])} \u00b7 95\u00a0% up to {count_text(report['length_p95'])} \u00b7 longest {count_text(report['length_max'])} tokens", "In tokens, before cutting"),
        ("Format", f"{formats.get(str(report['format']), report['format'])} \u2013 {report['format_reason']}"),
        ("Columns", columns or "as named"),
        ("Chat template", f"{report['template']} \u2013 {report['template_reason']}"),
        ("Source", str(report["origin"])),
        ("SHA-256", f"{str(report['sha256'])[:16]}\u2026", str(report["sha256"])),
    )  # fmt: skip


def _lengths(report: Mapping[str, Any]) -> Lengths | None:
    known = report.get("lengths")
    if not known:
        return None
    curve = tuple((int(at), float(rows), float(tokens)) for at, rows, tokens in known["curve"])
    is_logarithmic = int(known["longest"]) > LONG_TAIL * max(1, int(report["length_p95"]))
    bars = tuple((int(a), int(b), float(n)) for a, b, n in known["bins"])
    if is_logarithmic:
        total = sum(rows for _, _, rows in bars)
        bars = _logarithmic(curve, total)
    return Lengths(
        bars,
        curve,
        int(known["longest"]),
        int(report["seq_len"]),
        bool(report["is_automatic_length"]),
        is_logarithmic,
    )


def _logarithmic(
    curve: Sequence[tuple[int, float, float]], total: float
) -> tuple[tuple[int, int, float], ...]:
    """Bars between the curve's points, four of which make one."""
    points = [curve[0], *curve[4:-1:4], curve[-1]]
    return tuple((a[0], b[0], (b[1] - a[1]) * total) for a, b in pairwise(points))


def _reason(drop: Mapping[str, Any]) -> str:
    return f"{plural(int(drop['count']), 'row')}: {drop['reason']}"


def _contents(report: Mapping[str, Any]) -> list[RowsLine]:
    """What is in the rows, by the findings that name them and by counts that no finding is about."""
    bos = report.get("bos_per_row", (0, 0))
    rows = int(report["train_rows"]) + int(report["held_out_rows"])
    ends = int(report.get("rows_without_end", 0))
    facts = (
        ("duplicate_rows", "repeat", "another row"), ("near_duplicate_rows", "repeat", "another row, or nearly"),
        ("short_answer_rows", "train", "at most three tokens"), ("secret_rows", "hold", "what looks like a key or a password"),
        ("email_rows", "hold", "e-mail addresses"), ("reasoning_rows", "have", "reasoning"), ("call_rows", "have", "tool calls"),
        ("truncated_rows", "are", "cut"), ("answer_ends_cut", "lose", "the end of an answer to the cut"),
    )  # fmt: skip
    by_code = {finding["code"]: tuple(finding["rows"]) for finding in report.get("findings", ())}
    codes = {
        "duplicate_rows": "data.duplicates", "near_duplicate_rows": "data.near_duplicates", "short_answer_rows": "data.short_answers",
        "secret_rows": "data.secrets", "email_rows": "data.emails", "truncated_rows": "data.cut", "answer_ends_cut": "data.ends_cut",
    }  # fmt: skip
    lines = [
        RowsLine(f"{counted(int(report[name]), 'row', verb)} {what}", by_code.get(codes.get(name, ""), ()))
        for name, verb, what in facts
        if report.get(name)
    ]
    begins = f"Beginning tokens in each row: {count_text(bos[0])}" + (
        f" to {count_text(bos[1])}" if bos[1] != bos[0] else ""
    )
    is_of_turns = bos[1] > 1 and "data.bos" not in by_code
    lines.append(
        RowsLine(begins + (", one before every turn, as the template has it" if is_of_turns else ""))
    )
    lines.append(
        RowsLine(
            f"{counted(rows - ends, 'row', 'train', of=rows)} the end of an answer",
            by_code.get("data.no_end", ()),
        )
    )
    return lines


def _scripts(scripts: Mapping[str, int]) -> tuple[tuple[str, float], ...]:
    total = sum(scripts.values())
    ordered = sorted(scripts.items(), key=lambda pair: -pair[1])
    return tuple((capital(name), count / total) for name, count in ordered) if total else ()


def _sources(sources: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    if len(sources) < 2:
        return ()
    lines = []
    for place, source in enumerate(sources, 1):
        seen = f"{plural(int(source['rows']), 'row')}, each {numerals.short(source['weight'])} \u00d7 per epoch; {source['format_reason']}"
        lines.append((f"Source {place}", f"{Path(str(source['name'])).name}: {seen}", str(source["name"])))
    return tuple(lines)
