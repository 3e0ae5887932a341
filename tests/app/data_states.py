"""What the Data page can look like: a report with something of everything, rows, findings, and an example of each policy."""

from __future__ import annotations

import json
import math
from typing import Any

from PySide6.QtWidgets import QApplication

from app.tabs.data.controller import DataController
from app.window import MainWindow
from qlora_engine import paths

LONG_NAME = "conversations-of-the-support-desk-2019-to-2026-deduplicated-and-translated.jsonl"
REASON = "its 'messages[].content[].image' says what only an image shows; data.ignore = [\"images\"] trains it without"


def report() -> dict[str, Any]:
    bins = [
        [start, start + 12, round(900 * math.exp(-(((start - 160) / 90) ** 2)))]
        for start in range(0, 520, 13)
    ]
    points = [2**power for power in range(10)]
    curve = [[p, round(min(1.0, p / 300), 4), round(min(1.0, p / 260), 4)] for p in points] + [
        [520, 1.0, 1.0]
    ]
    return {
        "origin": f"/data/{LONG_NAME}", "sha256": "ab" * 32, "format": "messages", "columns": {"messages": "messages"},
        "format_reason": "the column 'messages' holds turns with role and content", "template": "the model's own",
        "template_reason": "it comes with the model", "rows_read": 12_480, "rows_dropped": 148, "packed_rows": None,
        "drops": [{"reason": REASON, "count": 145, "first_rows": [3, 17, 4012, 8000, 12_001]},
                  {"reason": "it is not JSON: a string is not closed", "count": 3, "first_rows": [9, 10, 11]}],
        "train_rows": 11_700, "held_out_rows": 632, "duplicate_rows": 41, "near_duplicate_rows": 112, "seq_len": 384,
        "is_automatic_length": False, "length_p50": 160, "length_p90": 300, "length_p95": 330, "length_p99": 400,
        "length_max": 520, "train_tokens": 2_104_000, "trained_tokens": 911_000, "truncated_rows": 212, "cut_tokens": 9000,
        "answer_ends_cut": 80, "longest_row_tokens": 384, "most_trained_tokens": 300, "short_answer_rows": 12,
        "secret_rows": 2, "email_rows": 77, "reasoning_rows": 300, "call_rows": 20, "rows_without_end": 4, "bos_per_row": [1, 1],
        "scripts": {"Latin": 11_000, "Cyrillic": 900, "Han": 432}, "notices": [],
        "lengths": {"longest": 520, "bins": bins, "curve": curve}, "keeps": {"rows": 0.97, "trained_tokens": 0.94},
        "sources": [{"name": name, "rows": n, "weight": w, "format_reason": "as chosen", "columns": {}, "unused": [], "used": []}
                    for name, n, w in ((LONG_NAME, 12_000, 1.0), ("more.csv", 480, 2.0))],
        "findings": [
            finding("blocks", "data.meaning", "145 rows carry images, which change what a row means and are not used: " + REASON,
                    145, [3, 17, 4012], {"setting": "data.ignore", "value": ["images"], "adds": True}, leave_out="3, 17, 4012"),
            finding("look", "data.ends_cut", "In 80 rows the answer's end is cut, so the model does not learn to stop there.",
                    80, [5, 6], {"setting": "data.seq_len", "value": 520}, "raise the sequence length to 520"),
            finding("note", "data.left_out", "3 rows left out: it is not JSON: a string is not closed.", 3, [9, 10, 11],
                    {"action": "write_clean"}, "keep the other rows as a file of their own"),
            finding("note", "data.leave_out", "1 row left out as data.leave_out says.", 1, [4], {"setting": "data.leave_out", "value": ""},
                    "take it back"),
            finding("note", "data.held_left_out", "1 row of the held-out file left out: its output is empty.", 1, [], held_rows=[2]),
        ],
    }  # fmt: skip


def finding(
    grade: str,
    code: str,
    text: str,
    count: int,
    rows: list[int],
    repair: Any = None,
    words: str = "",
    **named: Any,
) -> dict[str, Any]:
    return {
        "grade": grade, "code": code, "text": text, "count": count, "rows": rows, "repair": repair, "repair_text": words, **named,
    }  # fmt: skip


def preview() -> dict[str, Any]:
    rows = [
        {"row": n, "raw": {"Frage": f"Wie viele Tage hat der Monat {n}? " * n, "Antwort": "31", "Quelle": "Kalender"}, "read": None,
         "problem": None} for n in range(1, 6)
    ]  # fmt: skip
    return {
        "origin": LONG_NAME, "files": [LONG_NAME], "file_count": 1, "bytes": 123_456_789, "notes": ["read as Windows-1252"],
        "columns": ["Frage", "Antwort", "Quelle"], "optional_fields": ["input", "reasoning"], "is_tree": False,
        "fields": {"alpaca": {"instruction": ["instruction"], "input": ["input"], "output": ["output"], "reasoning": ["cot"]}},
        "format": None, "problem": "the columns Frage, Antwort, Quelle fit no known format", "hint": "choose data.format",
        "detection": None, "rows": [*rows, {"row": 6, "raw": None, "read": None, "problem": "it is not closed"}], "seconds": 0.1,
    }  # fmt: skip


def tokens(count: int) -> list[list[Any]]:
    words = ["<|im_start|>", "user", "\n", "What", " is", " this", "?", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n", "A", " cat", ".", "<|im_end|>"]  # fmt: skip
    states = "smmmmmmsmsmmtttt"
    return [
        [
            words[n % 16],
            n % 16,
            states[n % 16] if n < count - 6 else "c",
            n,
            "assistant" if n % 16 > 11 else "user",
        ]
        for n in range(count)
    ]


def row(number: int) -> dict[str, Any]:
    return {
        "row": number, "file": LONG_NAME, "row_in_file": number, "side": "left_out" if number == 3 else "train",
        "tokens": None if number == 3 else 96, "trained": None if number == 3 else 24, "text": "What is this? \u2192 A cat.",
        "problem": REASON if number == 3 else None,
    }  # fmt: skip


def full_row(number: int) -> dict[str, Any]:
    rendered = {
        "tokens": tokens(96),
        "length": 96,
        "hidden": 0,
        "trained": 24,
        "cut": 6,
        "is_answer_cut": True,
        "notes": [],
    }
    said = [{"role": "user", "text": "What is this?"}, {"role": "assistant", "text": "A cat."}]
    return {**row(number), "raw": json.dumps({"messages": said}), "said": said, "rendered": [rendered]}


def reasoning() -> dict[str, Any]:
    words = "Thoughts before the last answer are trained. Thoughts of earlier turns are left out."
    example = {
        "tokens": [[t[0], t[2] if t[2] != "c" else "m"] for t in tokens(48)],
        "words": words,
        "problem": None,
    }
    return {"policies": dict.fromkeys(("train", "context", "remove"), example), "is_own": True, "row": 12}


def read(window: MainWindow) -> DataController:
    """The data were read; what was found is shown on every tab."""
    work = window.studio.workspace
    window.go_to("data")
    controller: DataController = window.tabs.controllers["data"].page
    work.job.edit("data.more", {str(paths.resources_dir() / "starter" / "held_out.jsonl"): 2.0})
    work.data.report = report()
    work.data.changed.emit()
    for name in ("rows", "report", "doctor", "split", "source"):
        controller.show_tab(name)
    controller.tabs["source"]._take(preview())
    controller.tabs["split"]._take(reasoning())
    rows = controller.tabs["rows"]
    rows._take_list({"total": 12_480, "first": 0, "rows": [row(n) for n in range(1, 61)]})
    rows.chosen._take_row(full_row(1))
    QApplication.processEvents()
    return controller


def on(tab: str) -> Any:
    """A window with data that were read, on a tab of the Data page."""
    return lambda window: read(window).show_tab(tab)


DATA_STATES = {f"data-{tab}": (on(tab), ("data",)) for tab in ("source", "rows", "report", "doctor", "split")}
