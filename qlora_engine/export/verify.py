"""Proves an export: reloads it in a fresh process with the plain libraries and compares it with base plus adapter.

Torch-free here; the child (`python -m qlora_engine.export.verify_child`) imports the ML stack.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from qlora_engine import child, parsing
from qlora_engine.control import Control
from qlora_engine.data.policy import Policy
from qlora_engine.events import CheckFinished, Event
from qlora_engine.export.journal import Mark
from qlora_engine.export.source import Source

PROMPTS = ("What is the capital of France?", "Write one short sentence about the sea.")
GREEDY_TOKENS = 24


def request_of(source: Source, export: Path, kind: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """What the child is told: where everything is, and how the run was quantized and stored."""
    return {
        "export": str(export),
        "kind": kind,
        "base": str(source.base_path),
        "adapter": str(source.adapter_dir),
        "prompts": _prompts(source),
        "greedy_tokens": GREEDY_TOKENS,
        "into": details.get("into", "original"),
        "dtype": details.get("dtype", "fp32"),
        "quantizer": dict(source.record.get("load_report") or {}),
        "chat_template": source.config.data.chat_template,
        "policy": asdict(Policy.of(source.config.data)),
    }


def prove(
    source: Source, export: Path, kind: str, details: Mapping[str, Any], control: Control
) -> Generator[Event, None, list[CheckFinished]]:
    """Yield one CheckFinished per step and return them all. A child that dies fails the step it died in."""
    request = request_of(source, export, kind, details)
    checks: list[CheckFinished] = []
    errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed below
    process = subprocess.Popen(
        child_command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,  # a file: a full pipe would block the process
        text=True,
        encoding="utf-8",
        env=child.environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        threading.Thread(target=_end_when_stopped, args=(process, control), daemon=True).start()
        for line in process.stdout:
            control.check()
            check = _check(line)
            if check is not None:
                checks.append(check)
                yield check
        control.check()
        if process.wait() != 0:
            checks.append(_broken_off(process, errors))
            yield checks[-1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        errors.close()
    return checks


def _broken_off(process: subprocess.Popen[str], errors: IO[str]) -> CheckFinished:
    """The last that the child said."""
    errors.seek(0)
    said = errors.read().strip().splitlines()
    last = said[-1] if said else f"exit code {process.returncode}"
    return CheckFinished("the proof ran to its end", False, last[:300])


def check_files(hashes: Mapping[str, str], marks: Mapping[str, Mark]) -> CheckFinished:
    """Whether the large files read back from the disk are those that were written; all hashes go into the proof."""
    wrong = [name for name, mark in marks.items() if hashes.get(name) != mark.sha256]
    read = f"{len(hashes)} files read back and hashed (sha256)"
    detail = (
        f"{wrong[0]} is not what was written" if wrong else f"{read}, {len(marks)} against what was written"
    )
    return CheckFinished(
        "files on disk are those that were written",
        not wrong,
        detail,
        {"files": len(hashes), "compared": len(marks)},
    )


def _end_when_stopped(process: subprocess.Popen[str], control: Control) -> None:
    """A check can take long; whoever asked to stop need not wait for its end."""
    while process.poll() is None:
        if control.is_stop_requested:
            process.kill()
            return
        time.sleep(0.1)


def child_command() -> list[str]:
    return child.command("qlora_engine.export.verify_child")


def _prompts(source: Source) -> list[str]:
    asked = [sample["prompt"] for sample in source.record.get("samples") or []]
    return list(dict.fromkeys([*asked, *PROMPTS]))[:3]


def _check(line: str) -> CheckFinished | None:
    try:
        plain = parsing.from_json(line)
    except ValueError:
        return None
    return CheckFinished(plain["name"], plain["passed"], plain["detail"], plain.get("numbers", {}))
