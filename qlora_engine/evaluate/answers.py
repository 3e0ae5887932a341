"""Answers kept with a run: `answers.jsonl`, one line each, so that nothing is asked twice. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_engine import parsing
from qlora_engine.errors import EngineError
from qlora_engine.evaluate.origin import Origin, base_key
from qlora_engine.runs.record import RunFolder, append_line

FILE = "answers.jsonl"
SAMPLING = ("temperature", "top_p", "top_k", "seed")
"""Settings that do nothing in a greedy answer."""


@dataclass(frozen=True)
class StoredAnswer:
    """`key` says what was asked of whom and how; `is_base`: the model without the run's adapter."""

    key: str
    prompt: str
    text: str
    tokens: int
    seconds: float
    is_complete: bool
    is_base: bool
    unix_time: float


def read(run: RunFolder) -> dict[str, StoredAnswer]:
    """Every kept answer by its key, the newest of each; half-written lines are left out."""
    found: dict[str, StoredAnswer] = {}
    try:
        lines = (run.path / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            answer = StoredAnswer(**parsing.from_json(line))
        except (ValueError, TypeError):
            continue
        found[answer.key] = answer
    return found


def keep(run: RunFolder, answer: StoredAnswer) -> None:
    """Append it to the run's file.

    Raises:
        EngineError: the run's folder cannot be written.
    """
    try:
        append_line(run.path / FILE, json.dumps(asdict(answer), ensure_ascii=False))
    except OSError as error:
        raise EngineError(
            "run.not_writable",
            f"the answer could not be kept in {run.path}: {error.strerror or error}",
            "make room on the disk, then go on; answers that were kept are not asked again",
            is_input_error=False,
        ) from error


def adapter_sha256(origin: Origin) -> str:
    """The hash of the adapter's weights: another training of the same name answers anew."""
    assert origin.adapter is not None
    return _file_sha256(next(iter(sorted(origin.adapter.glob("adapter*.safetensors")))))


def speaker_of(origin: Origin, *, is_base: bool) -> str:
    """Who answers: an adapter's weights, or the base they stand on; always under the run's chat template."""
    assert origin.run is not None
    who = repr(base_key(origin.run.record())) if is_base else adapter_sha256(origin)
    return f"{who}|{origin.config.data.chat_template}"


def key_of(speaker: str, messages: Sequence[Mapping[str, str]], settings: Mapping[str, Any]) -> str:
    """What was asked of whom and how, as a short hash."""
    counted = {k: v for k, v in settings.items() if settings.get("do_sample") or k not in SAMPLING}
    content = json.dumps([speaker, list(messages), counted], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
