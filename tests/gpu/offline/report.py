"""The report of a GPU run: lines by part, kept as JSON and Markdown that are whole at every moment. Standard library only."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
PASS, FAIL, FACT, LEFT_OUT = "pass", "fail", "fact", "left out"
WAITING, RUNNING, DONE, CUT_OFF, FAILED = "not begun", "running", "done", "cut off", "failed"
MIB, GIB = 1024**2, 1024**3


@dataclass(frozen=True)
class Line:
    """One thing that was looked at. `unit`: bytes, seconds, tokens/s, share, count or empty; `difference` is relative."""

    id: str
    what: str
    verdict: str
    measured: Any = None
    predicted: Any = None
    unit: str = ""
    difference: float | None = None
    allowed: float | None = None
    why: str = ""


def compared(id_: str, what: str, measured: float, predicted: float, unit: str, allowed: float) -> Line:
    """A measured number against the predicted one: pass within the relative difference `allowed`."""
    difference = predicted / measured - 1 if measured else math.inf
    is_near = measured == predicted or abs(difference) <= allowed
    told = difference if math.isfinite(difference) else None
    return Line(id_, what, PASS if is_near else FAIL, measured, predicted, unit, told, allowed)


def at_most(id_: str, what: str, measured: float, bound: float, unit: str) -> Line:
    """A measured number that must not be above a predicted bound."""
    difference = bound / measured - 1 if measured else None
    return Line(
        id_, what, PASS if measured <= bound else FAIL, measured, bound, unit, difference, why="a bound"
    )


def checked(id_: str, what: str, is_right: bool, why: str = "", measured: Any = None) -> Line:
    """Something that is so or is not."""
    return Line(id_, what, PASS if is_right else FAIL, measured, why=why)


def fact(id_: str, what: str, measured: Any, unit: str = "", why: str = "") -> Line:
    """A number that nothing was predicted for."""
    return Line(id_, what, FACT, measured, unit=unit, why=why)


def left_out(id_: str, what: str, why: str) -> Line:
    """What was not done, and why."""
    return Line(id_, what, LEFT_OUT, why=why)


@dataclass
class Part:
    """One of the six parts. `state` is one of the five words above."""

    number: int
    name: str
    state: str = WAITING
    why: str = ""
    seconds: float | None = None
    lines: list[Line] = field(default_factory=list)


class Report:
    """Everything found so far; `write` after each change leaves a whole file, whenever the process is killed."""

    def __init__(self, folder: Path, device: str, minutes: float, names: Mapping[int, str]) -> None:
        self.folder, self.parts = folder, [Part(number, name) for number, name in names.items()]
        self.head: dict[str, Any] = {
            "schema": SCHEMA,
            "state": RUNNING,
            "device": device,
            "minutes": minutes,
            "began": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "seconds": 0.0,
            "card": {},
            "versions": {},
            "calibration": {},
        }
        self._began = time.monotonic()

    def write(self) -> None:
        """Both files, each written aside, flushed and renamed."""
        self.head["seconds"] = round(time.monotonic() - self._began, 1)
        plain = {**self.head, "parts": [asdict(part) for part in self.parts]}
        self.folder.mkdir(parents=True, exist_ok=True)
        replace(self.folder / "report.json", json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n")  # fmt: skip
        replace(self.folder / "report.md", markdown(plain))

    def take(self, number: int, message: Mapping[str, Any]) -> None:
        """What a part sent: a line, or facts for the head. A number that is not finite becomes a word: JSON has none."""
        if "line" in message:
            self.part(number).lines.append(Line(**_plain(message["line"])))
        for name, values in message.get("head", {}).items():
            self.head[name] = {**self.head[name], **_plain(values)}
        self.write()

    def part(self, number: int) -> Part:
        return next(part for part in self.parts if part.number == number)

    @property
    def is_good(self) -> bool:
        """Nothing failed. A part for which there was no time says so and is not a failure."""
        return all(part.state != FAILED for part in self.parts) and FAIL not in {line.verdict for _, line in self.lines()}  # fmt: skip

    def lines(self) -> Iterator[tuple[Part, Line]]:
        for part in self.parts:
            for line in part.lines:
                yield part, line


def replace(path: Path, text: str) -> None:
    """Put `text` into `path` so that a reader sees the old file or the new one, never half of either."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def markdown(plain: Mapping[str, Any]) -> str:
    """The report as a person reads it."""
    card, versions = plain["card"], plain["versions"]
    title = card.get("name") or ("a rehearsal on the CPU: it says nothing of a GPU" if plain["device"] == "cpu" else "unknown card")  # fmt: skip
    rows = [
        f"# GPU report: {title}",
        "",
        f"Begun {plain['began']}, {plain['state']} after {plain['seconds']} s.",
        "",
        *(f"- {name}: {value}" for name, value in {**card, **versions}.items()),
    ]
    for part in plain["parts"]:
        rows += ["", *_part_rows(part)]
    return "\n".join(rows) + "\n"


def shown(value: Any, unit: str) -> str:
    """A value with its unit as a person reads it; unknown is n/a."""
    if value is None:
        return "n/a"
    if unit == "bytes" and isinstance(value, int | float):
        return f"{value / GIB:.2f} GiB" if abs(value) >= GIB else f"{value / MIB:.1f} MiB"
    if unit == "share" and isinstance(value, int | float):
        return f"{100 * value:.1f} %"
    text = f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)  # fmt: skip
    return f"{text} {unit}".strip() if unit != "count" else text


def _part_rows(part: Mapping[str, Any]) -> Iterator[str]:
    took = "" if part["seconds"] is None else f", {part['seconds']:.0f} s"
    yield f"## {part['number']}. {part['name']}: {part['state']}{took}"
    yield ""
    if part["why"]:
        yield from (part["why"].replace("\n", "\n> "), "")
    if not part["lines"]:
        return
    yield from ("| what | measured | predicted | difference | allowed | verdict | why |", "|---|---|---|---|---|---|---|")  # fmt: skip
    for line in part["lines"]:
        cells = (
            line["what"],
            shown(line["measured"], line["unit"]),
            shown(line["predicted"], line["unit"]) if line["predicted"] is not None else "",
            "" if line["difference"] is None else f"{100 * line['difference']:+.2f} %",
            "" if line["allowed"] is None else f"{100 * line['allowed']:g} %",
            line["verdict"],
            line["why"],
        )
        yield "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
