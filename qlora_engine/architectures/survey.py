"""Tries every model type of the installed transformers, and keeps what came of it until a library changes. Imports the ML
stack when it tries.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_engine import __version__, installed, kept, parsing, paths
from qlora_engine.models import classes

if TYPE_CHECKING:
    from qlora_engine.architectures.trial import Trial

SCHEMA = 2
LIBRARIES = ("transformers", "torch", "peft", "bitsandbytes")
Check = Callable[[], None]


def model_types() -> tuple[str, ...]:
    """Every type with a causal language model, and every one that also sees and has a text part."""
    return tuple(sorted({*classes.types_of("causal"), *classes.types_of("seeing")}))


def known() -> dict[str, dict[str, Any]]:
    """What was found by these versions, by type; empty where nothing was tried yet."""
    try:
        plain = parsing.from_json(_file().read_text(encoding="utf-8"))
        return {str(kind): dict(one) for kind, one in plain.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def survey(types: Iterable[str], *, again: bool = False, check: Check = lambda: None) -> Iterator[Trial]:
    """The outcome of each type, in order: the known one, or a new trial of about a second. Keeps what it finds."""
    found = {} if again else known()
    for kind in types:
        check()
        if kind not in found:
            found[kind] = asdict(_try(kind))
            kept.keep(_file(), {**known(), kind: found[kind]})
        yield _trial(found[kind])


def _try(kind: str) -> Trial:
    from qlora_engine.architectures import trial

    with tempfile.TemporaryDirectory(prefix="qlora-architectures-") as folder:
        return trial.attempt(kind, Path(folder) / "model")


def _trial(plain: dict[str, Any]) -> Trial:
    from qlora_engine.architectures.trial import Trial

    return Trial(**{**plain, "notes": tuple(plain["notes"]), "losses": tuple(plain["losses"])})


def _file() -> Path:
    versions = [f"{name} {installed.version(name)}" for name in LIBRARIES]
    key = hashlib.sha256(json.dumps([SCHEMA, __version__, versions]).encode()).hexdigest()[:16]
    return paths.cache_dir() / "architectures" / f"{key}.json"
