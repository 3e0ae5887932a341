"""The Data page's state: what was found in the file, and what the model will be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.presenters.words import capital, count_text, percent_text, plural
from qlora_engine.config import DataSettings
from qlora_engine.errors import EngineError
from qlora_engine.knobs import knobs_of


@dataclass(frozen=True)
class DataState:
    path: str
    is_starter: bool
    checking_text: str
    notice: str
    notice_hint: str
    notice_tone: str
    rows: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]
    drops: tuple[str, ...]
    shown_rows: tuple[Mapping[str, Any], ...]
    can_check: bool = True

    @property
    def is_checking(self) -> bool:
        return bool(self.checking_text)

    @property
    def has_report(self) -> bool:
        return bool(self.rows)


def data_state(
    settings: DataSettings,
    report: Mapping[str, Any] | None,
    rows: tuple[Mapping[str, Any], ...],
    error: EngineError | None,
    checking: str = "",
    can_check: bool = True,
) -> DataState:
    notice = hint = ""
    tone = "accent"
    if error is not None:
        notice, hint, tone = capital(error.message), capital(error.hint), "bad"
    elif report is None and not checking:
        notice = "Not looked at yet."
        hint = "Check the data to see how many rows there are, what is trained and what is left out. The run checks it too."
    return DataState(
        path=settings.path,
        is_starter=settings.path == "starter",
        checking_text=checking,
        notice=notice,
        notice_hint=hint,
        notice_tone=tone,
        rows=report_rows(report) if report else (),
        warnings=tuple(report["notices"]) if report else (),
        drops=tuple(_drop(drop) for drop in report["drops"]) if report else (),
        shown_rows=rows,
        can_check=can_check,
    )


def report_rows(report: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    tokens, trained = int(report["train_tokens"]), int(report["trained_tokens"])
    formats = knobs_of(DataSettings)["format"].choices or {}
    columns = ", ".join(f"{field} = {name}" for field, name in report["columns"].items())
    length = f"{count_text(report['seq_len'])} tokens"
    length += " (automatic: the 99th percentile)" if report["is_automatic_length"] else " (as set)"
    lengths = f"median {report['length_p50']:,} \u00b7 95 % {report['length_p95']:,} \u00b7 longest {report['length_max']:,}"
    return (
        ("Rows", f"{count_text(report['train_rows'])} to train on, {count_text(report['held_out_rows'])} held out"),
        ("Left out", plural(int(report["rows_dropped"]), "row")),
        ("Tokens", f"{count_text(tokens)} per epoch; {count_text(trained)} trained ({percent_text(trained / tokens if tokens else None)})"),
        ("Lengths", lengths, "In tokens, before cutting"),
        ("Cut at", length + (f"; {plural(int(report['truncated_rows']), 'row')} cut" if report["truncated_rows"] else "")),
        ("Format", f"{formats.get(str(report['format']), report['format'])} \u2013 {report['format_reason']}"),
        ("Columns", columns or "as named"),
        ("Chat template", f"{report['template']} \u2013 {report['template_reason']}"),
        ("Source", str(report["origin"])),
        ("SHA-256", f"{str(report['sha256'])[:16]}\u2026", str(report["sha256"])),
    )  # fmt: skip


def _drop(drop: Mapping[str, Any]) -> str:
    first = ", ".join(str(number) for number in drop["first_rows"])
    more = " \u2026" if drop["count"] > len(drop["first_rows"]) else ""
    return f"{plural(int(drop['count']), 'row')}: {drop['reason']} (row {first}{more})"
