"""Named sets of prompts, one small JSON file each under the program's own data. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine import parsing, paths
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.runs.record import write_aside

STARTER = "starter"
SCHEMA_VERSION = 1
MOST_PROMPTS = 200
PROMPT_FIELDS = ("prompt", "instruction", "question", "input", "text")
"""Where a JSON object may keep its prompt; the first that holds text counts. `messages` gives its last question."""


@dataclass(frozen=True)
class PromptSet:
    """`is_builtin`: it comes with the program, and cannot be changed or deleted."""

    name: str
    prompts: tuple[str, ...]
    is_builtin: bool = False


def folder() -> Path:
    return paths.home() / "prompts"


def all_sets() -> list[PromptSet]:
    """The starter's, then those of the person by name; a file that cannot be read is left out."""
    found = []
    for file in sorted(folder().glob("*.json")):
        try:
            found.append(_read(file))
        except EngineError:
            continue
    return [starter_set(), *sorted(found, key=lambda s: s.name.lower())]


def starter_set() -> PromptSet:
    stored = parsing.from_json(
        (paths.resources_dir() / "starter" / "prompts.json").read_text(encoding="utf-8")
    )
    return PromptSet(STARTER, tuple(stored["prompts"]), is_builtin=True)


def find(name: str) -> PromptSet:
    """The set of that name.

    Raises:
        EngineError: there is none.
    """
    sets = {found.name: found for found in all_sets()}
    if name not in sets:
        raise EngineError("prompts.missing", f"there is no prompt set {name!r}", did_you_mean(name, sets))
    return sets[name]


def save(name: str, prompts: Iterable[str]) -> PromptSet:
    """Write a set, over one of the same name.

    Raises:
        EngineError: no name, no prompts, the built-in set's name, or the folder cannot be written.
    """
    found = PromptSet(name.strip(), _distinct(prompts))
    _check(found)
    document = {"schema_version": SCHEMA_VERSION, "name": found.name, "prompts": list(found.prompts)}
    file = _file_of(found.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_aside(file, json.dumps(document, ensure_ascii=False, indent=1).encode())
    except OSError as error:
        raise EngineError(
            "prompts.not_writable",
            f"the prompt set could not be written to {file.parent}: {error.strerror or error}",
            "QLORA_HOME moves the program's data to another place",
        ) from error
    return found


def delete(name: str) -> None:
    """Remove a set for good; answers stored with runs stay.

    Raises:
        EngineError: there is none, or it comes with the program.
    """
    if find(name).is_builtin:
        raise EngineError(
            "prompts.builtin",
            f"the prompt set {name!r} comes with the program",
            "save a copy under another name",
        )
    _file_of(name).unlink(missing_ok=True)


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a file: .txt (one a line), .jsonl (a text or an object a line) or .json (a list, or a saved set).

    Raises:
        EngineError: it cannot be read, or holds no prompt; the line is named.
    """
    try:
        text = file.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise EngineError(
            "prompts.unreadable", f"{file} cannot be read: {reason}", "check the path"
        ) from error
    kind = file.suffix.lower()
    if kind == ".json":
        stored = _parsed(text, f"{file.name}")
        items = stored.get("prompts", stored) if isinstance(stored, dict) else stored
        found = [_prompt_of(item, f"item {n} of {file.name}") for n, item in enumerate(_as_list(items), 1)]
    elif kind == ".jsonl":
        lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        found = [
            _prompt_of(_parsed(line, f"line {n} of {file.name}"), f"line {n} of {file.name}")
            for n, line in lines
        ]
    else:
        found = text.splitlines()
    prompts = _distinct(found)
    if not prompts:
        raise EngineError("prompts.empty", f"{file.name} holds no prompt", "put one prompt on each line")
    return prompts


def _read(file: Path) -> PromptSet:
    stored = _parsed(file.read_text(encoding="utf-8"), file.name)
    is_right = isinstance(stored, dict) and stored.get("schema_version") == SCHEMA_VERSION
    if not is_right or not isinstance(stored.get("prompts"), list):
        raise EngineError("prompts.unreadable", f"{file} is no prompt set", "delete it")
    return PromptSet(str(stored.get("name") or file.stem), tuple(str(p) for p in stored["prompts"]))


def _check(found: PromptSet) -> None:
    if not found.name or len(found.name) > 60:
        raise EngineError("prompts.name", "a prompt set needs a name of 1 to 60 characters", "give it one")
    if _slug(found.name) == STARTER:
        raise EngineError(
            "prompts.builtin", f"the prompt set {STARTER!r} comes with the program", "choose another name"
        )
    if not 1 <= len(found.prompts) <= MOST_PROMPTS:
        raise EngineError(
            "prompts.number",
            f"a prompt set has 1 to {MOST_PROMPTS:,} prompts, and this one {len(found.prompts):,}",
            "write one prompt on each line",
        )


def _prompt_of(item: Any, where: str) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        for field in PROMPT_FIELDS:
            if isinstance(item.get(field), str) and item[field].strip():
                return str(item[field])
        questions = [m for m in item.get("messages") or () if isinstance(m, dict) and m.get("role") == "user"]
        if questions:
            return str(questions[-1].get("content") or "")
    raise EngineError(
        "prompts.unreadable",
        f"{where} has no prompt",
        f"give a text, or an object with one of: {', '.join(PROMPT_FIELDS)}, messages",
    )


def _parsed(text: str, where: str) -> Any:
    try:
        return parsing.from_json(text)
    except ValueError as error:
        raise EngineError("prompts.unreadable", f"{where} is not JSON: {error}", "check the file") from error


def _as_list(items: Any) -> list[Any]:
    return items if isinstance(items, list) else [items]


def _distinct(prompts: Iterable[str]) -> tuple[str, ...]:
    """Without empty ones and repetitions, in order."""
    return tuple(dict.fromkeys(p.strip() for p in prompts if p.strip()))


def _file_of(name: str) -> Path:
    for file in sorted(folder().glob("*.json")):
        try:
            if _read(file).name == name:
                return file
        except EngineError:
            continue
    return folder() / _free(_slug(name))


def _free(slug: str) -> str:
    taken: Sequence[str] = [file.name for file in folder().glob("*.json")]
    names = (f"{slug}.json", *(f"{slug}-{n}.json" for n in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "set"
