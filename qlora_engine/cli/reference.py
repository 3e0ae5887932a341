"""The reference of all job-file options as Markdown, generated from the knobs: `python -m qlora_engine.cli.reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlora_engine import paths
from qlora_engine.config import tables
from qlora_engine.knobs import Knob, knobs_of

HEADER = """# Options of a job file

Generated from the program's own declarations. A job file is TOML with `schema_version = 1` and these tables; every option
may be left out. On the command line: `--set lora.rank=8`.
"""


def markdown() -> str:
    """One table per TOML table, in file order."""
    sections = [HEADER]
    for name, cls in tables().items():
        rows = [_row(knob) for knob in knobs_of(cls).values()]
        head = [f"## [{name}]", "", "| option | default | values | meaning |", "|---|---|---|---|"]
        sections.append("\n".join([*head, *rows]) + "\n")
    return "\n".join(sections)


def reference_path() -> Path:
    return paths.resources_dir() / "help" / "options.md"


def _row(knob: Knob) -> str:
    return f"| `{knob.name}` | {_default(knob.default)} | {_values(knob)} | {_escaped(knob.help)} |"


def _default(value: Any) -> str:
    if value is None or value in ((), {}, ""):
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`"


def _values(knob: Knob) -> str:
    if knob.choices:
        return ", ".join(f"`{choice}`" for choice in knob.choices)
    unit = f" {knob.unit}" if knob.unit else ""
    low = f"{'more than' if knob.lo_open else 'from'} {knob.lo:g}" if knob.lo is not None else ""
    high = f"to {knob.hi:.10g}" if knob.hi is not None else ""
    return f"{low} {high}".strip() + unit if low or high else unit.strip()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    reference_path().write_text(markdown(), encoding="utf-8")
