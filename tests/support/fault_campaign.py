"""Damages each file that a run really wrote in every way, and lets every reader meet it.

A case ends well in one of two ways: what was asked for is done, exactly as without the damage; or one sentence says why
not, and nothing that was whole before is lost. Everything else is a finding.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine.errors import EngineError
from qlora_engine.evaluate.origin import origin_of_run
from qlora_engine.events import RunFinished
from qlora_engine.export.source import open_source
from qlora_engine.runs import stored
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import list_runs
from tests.support import tiny_runs


def missing(path: Path, _: bytes) -> None:
    path.unlink()


def empty(path: Path, _: bytes) -> None:
    path.write_bytes(b"")


def cut(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path, content: bytes) -> None:
    middle = len(content) // 2
    path.write_bytes(
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else b"\x01"
    )


def another_schema(path: Path, content: bytes) -> None:
    path.write_bytes(
        content.replace(b'schema_version": 1', b'schema_version": 99').replace(
            b"schema_version = 1", b"schema_version = 99"
        )
    )


def garbage(path: Path, _: bytes) -> None:
    path.write_bytes(b"[" * 100_000)


def older(path: Path, content: bytes) -> None:
    """As after restoring a single file: that of the checkpoint before, or half the lines of what only grows."""
    number = int(path.parent.name.removeprefix("step-")) if path.parent.name.startswith("step-") else 0
    earlier = path.parent.with_name(f"step-{number - 1}") / path.name
    lines = content.splitlines(keepends=True)
    path.write_bytes(earlier.read_bytes() if earlier.is_file() else b"".join(lines[: len(lines) // 2]))


DAMAGES: dict[str, Callable[[Path, bytes], None]] = {
    "missing": missing, "empty": empty, "cut": cut, "one bit flipped": flipped, "another schema": another_schema,
    "older copy": older, "garbage": garbage,
}  # fmt: skip
READERS = ("resume", "export", "chat", "list")


@dataclass(frozen=True)
class Case:
    run: str
    file: str
    damage: str
    reader: str

    def __str__(self) -> str:
        return f"{self.run}: {self.file} {self.damage}, {self.reader}"


def cases(runs: dict[str, Path]) -> Iterator[Case]:
    """Every file of every run x every damage x every reader."""
    for name, run in runs.items():
        for path in sorted(p for p in run.rglob("*") if p.is_file()):
            for damage in DAMAGES:
                for reader in READERS:
                    yield Case(name, str(path.relative_to(run)), damage, reader)


def outcome(case: Case, runs: dict[str, Path], place: Path, wanted: Any) -> str:
    """`went on` or `sentence`.

    Raises:
        AssertionError: something was lost or is not as it would have been. Exception: a bug.
    """
    run = place / "run"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(runs[case.run], run)
    file = run / case.file
    DAMAGES[case.damage](file, file.read_bytes())
    whole = {p.name for p in RunFolder(run).checkpoints()}
    said = None
    try:
        _read(case, run, wanted)
    except EngineError as error:
        said = error.message
    if said is not None:
        assert said
        assert whole <= {p.name for p in RunFolder(run).checkpoints()}, "a whole checkpoint was lost"
        return "sentence"
    return "went on"


def _read(case: Case, run: Path, wanted: Any) -> None:
    if case.reader == "list":
        (summary,) = list_runs(run.parent)
        assert summary.state in ("stopped", "finished", "crashed", "unreadable")
        assert summary.state != "unreadable" or summary.notices
    elif case.reader == "export":
        assert not stored.adapter_problem(open_source(str(run)).folder.path), "a damaged adapter was exported"
    elif case.reader == "chat":
        adapter = origin_of_run(RunFolder(run)).adapter
        is_finished = adapter is not None and adapter.name == "adapter"
        assert adapter is not None
        assert not stored.adapter_problem(run) if is_finished else stored.is_intact(adapter), (
            "it answers with damage"
        )
    else:
        events = tiny_runs.resume(run)
        assert isinstance(events[-1], RunFinished)
        found = (run / "adapter" / "adapter_model.safetensors").read_bytes()
        assert found == wanted, "the result is another"
