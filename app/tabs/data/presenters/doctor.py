"""The doctor's findings as a person acts on them: how grave, how many, the first rows, and what one click mends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.presenters.in_window import in_window
from app.presenters.problems import MEANING
from app.presenters.words import capital, count_text, plural
from qlora_engine import row_numbers
from qlora_engine.config import DataSettings
from qlora_engine.data.grades import BLOCKS, LOOK, NOTE

GRADES = {
    BLOCKS: ("\u2716 Blocks the start", "bad"), LOOK: ("\u26a0 Look at it", "warning"), NOTE: ("\u2139 Good to know", "accent"),
}  # fmt: skip
CONSENTS = {
    "data.preference": "Train the wanted answers only",
    "data.nothing_held_out": "Hold 5\u00a0% of the rows out",
}
WRITE_CLEAN = "write_clean"
LEAVE_OUT = "data.leave_out"


@dataclass(frozen=True)
class Repair:
    """A click: sets `setting` to `value`, or does `action`."""

    caption: str
    setting: str = ""
    value: Any = None
    action: str = ""


@dataclass(frozen=True)
class FindingLine:
    grade: str
    grade_text: str
    tone: str
    text: str
    rows: tuple[int, ...]
    repairs: tuple[Repair, ...]
    held_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class DoctorState:
    headline: str
    tone: str
    findings: tuple[FindingLine, ...]


def doctor_state(
    findings: Sequence[Mapping[str, Any]], settings: DataSettings, *, is_checked: bool
) -> DoctorState:
    """`is_checked`: the data were read in full, with the model's tokenizer."""
    lines = tuple(_line(finding, settings) for finding in findings)
    if not lines and not is_checked:
        return DoctorState("", "accent", ())
    counts = [(grade, sum(1 for line in lines if line.grade == grade)) for grade in GRADES]
    words = {BLOCKS: "blocks the start", LOOK: "to look at", NOTE: "good to know"}
    said = [
        f"{count_text(count)} {words[grade] if count == 1 or grade != BLOCKS else 'block the start'}"
        for grade, count in counts
        if count
    ]
    tone = next((GRADES[grade][1] for grade, count in counts if count and grade != NOTE), "good")
    return DoctorState(
        ", ".join(said) if said else "Nothing found: these data can be trained as they are", tone, lines
    )


def attention(findings: Sequence[Mapping[str, Any]]) -> int:
    """How many findings block or are to be looked at."""
    return sum(1 for finding in findings if finding["grade"] != NOTE)


def written_text(answer: Mapping[str, Any]) -> str:
    left = int(answer["left_out"])
    return f"Kept {plural(int(answer['rows']), 'row')} in {answer['path']}; left {plural(left, 'row')} out"


def _line(finding: Mapping[str, Any], settings: DataSettings) -> FindingLine:
    grade_text, tone = GRADES[finding["grade"]]
    return FindingLine(
        finding["grade"], grade_text, tone, capital(str(finding["text"]).rstrip(".")) + ".",
        tuple(int(row) for row in finding.get("rows", ())), tuple(_repairs(finding, settings)),
        tuple(int(row) for row in finding.get("held_rows", ())),
    )  # fmt: skip


def _repairs(finding: Mapping[str, Any], settings: DataSettings) -> list[Repair]:
    return [*_mended(finding, settings), *_left_out(finding, settings)]


def _left_out(finding: Mapping[str, Any], settings: DataSettings) -> list[Repair]:
    """To train on the other rows alone."""
    named = str(finding.get("leave_out", ""))
    if not named:
        return []
    count = row_numbers.count(row_numbers.readable(named))
    caption = "Leave this row out" if count == 1 else f"Leave these {plural(count, 'row')} out"
    return [Repair(caption, LEAVE_OUT, row_numbers.added(settings.leave_out, named))]


def _mended(finding: Mapping[str, Any], settings: DataSettings) -> list[Repair]:
    repair = finding.get("repair")
    if not repair:
        return []
    code, words = str(finding["code"]), in_window(str(finding.get("repair_text", "")))
    if "action" in repair:
        return [Repair("Keep the other rows as a file\u2026", action=str(repair["action"]))]
    value = repair["value"]
    if code == MEANING:
        kind = str(value[0])
        both = (*settings.ignore, *(kind for kind in value if kind not in settings.ignore))
        return [
            Repair(f"Train them without their {kind}", str(repair["setting"]), both),
            Repair("Keep the other rows as a file\u2026", action=WRITE_CLEAN),
        ]
    return [Repair(CONSENTS.get(code, capital(words)), str(repair["setting"]), value)]
