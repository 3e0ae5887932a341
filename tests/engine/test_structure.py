"""Functions, classes and files stay so small that each has one reason to change."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FUNCTION_LINES, CLASS_METHODS, FILE_LINES = 40, 15, 400
"""The most of each; a file has fewer lines than the last."""
TOPS = ("app", "packaging", "qlora_engine", "resources", "tests")

INHERENT = {
    "qlora_engine/data/traced.py::Traced": "a string: whatever str can do must keep where its text came from",
    "qlora_engine/data/sandbox.py::TracingEnvironment": "Jinja's environment: each hook that a template's text goes through",
    "qlora_engine/monitor/nvml.py::Nvml": "a getter for each figure of the library behind its single door",
    "packaging/frozen_entry.py::main": "each way into the bundle is imported by name, which is all that a freezer follows",
    "packaging/bootstrap.py": "one file of the standard library alone, which runs before anything is installed",
}
"""What is larger by its nature, and why."""

GROWN = {
    "app/presenters/memory.py::memory_state": 45,
    "app/tabs/data/rows_panel.py::RowsPanel._detail": 44,
    "qlora_engine/memory/blocks.py::block_of": 46,
    "qlora_engine/memory/estimate.py::estimate": 42,
    "qlora_engine/runs/summary.py::summary_of": 42,
    "tests/app/test_charts.py::test_the_chart_lives_before_during_and_after_a_run": 45,
    "tests/app/test_data_page.py": 560,
    "tests/app/test_runs.py::test_a_comparison_shows_the_numbers_of_the_files_and_only_what_differs": 42,
    "tests/app/test_try_page.py": 480,
    "tests/bench/ui_gaps.py::_measured": 46,
    "tests/engine/data/test_findings_in_words.py::texts": 48,
    "tests/engine/evaluate/test_chat.py": 620,
    "tests/engine/monitor/test_memory_trace.py::test_a_gpu_run_and_its_resume": 48,
    "tests/engine/training/test_against_plain.py::plain_curve": 41,
    "tests/engine/training/test_recomputing.py::test_whatever_is_recomputed_and_wherever_it_waits_the_numbers_are_the_same": 52,
    "tests/support/template_check.py::cases": 49,
    "tests/support/template_check.py::Judge": 19,
}
"""What is beyond it all the same, and the most that it may have until it is taken apart; it leaves this table then."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef


def sizes(path: str) -> Iterator[tuple[str, int, int]]:
    """(name, size, the most) of a file and of all that is defined in it; sizes in lines, of a class in methods."""
    text = (ROOT / path).read_text(encoding="utf-8")
    yield path, len(text.splitlines()), FILE_LINES - 1
    yield from _of_body(f"{path}::", ast.parse(text))


def _of_body(prefix: str, node: ast.AST) -> Iterator[tuple[str, int, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            assert child.end_lineno is not None
            yield f"{prefix}{child.name}", child.end_lineno - child.lineno + 1, FUNCTION_LINES
        if isinstance(child, ast.ClassDef):
            methods = sum(isinstance(one, Definition) for one in child.body)
            yield f"{prefix}{child.name}", methods, CLASS_METHODS
        is_named = isinstance(child, Definition | ast.ClassDef)
        yield from _of_body(f"{prefix}{child.name}." if is_named else prefix, child)  # type: ignore[attr-defined]


def sources() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for top in TOPS for path in (ROOT / top).rglob("*.py"))


def test_every_function_class_and_file_is_small() -> None:
    found = {name: (size, most) for path in sources() for name, size, most in sizes(path)}
    large = {name: size for name, (size, most) in found.items() if size > most}
    assert {
        name: size for name, size in large.items() if name not in INHERENT and size > GROWN.get(name, 0)
    } == {}
    assert {name for name in (*INHERENT, *GROWN) if name not in large} == set()
