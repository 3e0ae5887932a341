"""The folder an export is written in before it is whole, and a journal of what in it is certain. Torch-free.

An export that was stopped, killed or ran out of disk goes on from the journal's marks, if it is the same export: every
mark is a file, its first bytes, and their sha256. The folder's name begins with a dot and it holds no `proof.json`, so it
is never taken for an export.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from qlora_engine import parsing
from qlora_engine.errors import EngineError
from qlora_engine.runs.record import write_aside

FILE = "journal.json"
WORTH_KEEPING_BYTES = 64 << 20
"""Less than this is made again in a second and is removed."""
READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Mark:
    """The first `nbytes` of a file are on disk, and this is their sha256."""

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Kept:
    """What an export that broke off left. `key` says which export it was."""

    folder: Path
    nbytes: int
    key: Mapping[str, Any]


def aside_of(out: Path) -> Path:
    """Where an export to `out` is written before it is whole."""
    return out.with_name(f".{out.name}.partial")


def kept_at(out: Path) -> Kept | None:
    """What an earlier export to `out` left that could go on; None where nothing is, or one is being written now."""
    stored = _read(aside_of(out))
    if stored is None or _is_alive(stored.get("owner")):
        return None
    return Kept(aside_of(out), sum(m.nbytes for m in _marks(stored).values()), stored.get("key") or {})


def drop(out: Path) -> None:
    """Remove what an earlier export to `out` left."""
    if kept_at(out) is not None:
        shutil.rmtree(aside_of(out), ignore_errors=True)


class Journal:
    """What is certain of one export. `marks` by file name; `resumed_bytes` are those an earlier process wrote."""

    def __init__(self, out: Path, key: Mapping[str, Any]) -> None:
        """Open the folder beside `out`, with what an earlier export of the same `key` left in it and nothing else.

        Raises:
            EngineError: another process is writing there.
            OSError: it cannot be made.
        """
        self.folder, self._key = aside_of(out), dict(key)
        stored = _read(self.folder)
        if stored is not None and _is_alive(stored.get("owner")):
            raise EngineError(
                "export.busy",
                f"another export is being written to {out} (process {stored['owner'][0]})",
                "wait for its end, or choose another folder",
            )
        is_same = stored is not None and stored.get("key") == parsing.from_json(json.dumps(self._key))
        found = _marks(stored or {}) if is_same else {}
        hashers = {name: _hash_start(self.folder / name, mark) for name, mark in found.items()}
        self._hashers = {name: hasher for name, hasher in hashers.items() if hasher is not None}
        self.marks = {name: found[name] for name in self._hashers}
        _clear(self.folder, keep=frozenset(self.marks))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resumed_bytes = sum(mark.nbytes for mark in self.marks.values())
        try:
            self._write()
        except OSError:
            self.leave(keep=True)
            raise

    def start_of(self, name: str) -> tuple[int, Any]:
        """How many bytes of a file are whole, and the running sha256 over them."""
        mark, hasher = self.marks.get(name), self._hashers.get(name)
        return (0, hashlib.sha256()) if mark is None or hasher is None else (mark.nbytes, hasher.copy())

    def mark(self, name: str, nbytes: int, sha256: str) -> None:
        """Remember that so much of a file is on disk; it must have been flushed."""
        self.marks[name] = Mark(nbytes, sha256)
        self._write()

    def finish(self) -> None:
        """Everything is whole: the journal goes, and what is left is an export."""
        for file in self.folder.rglob("*"):
            if file.is_file() and file.name not in self.marks:
                _flush(file)
        (self.folder / FILE).unlink()

    def leave(self, *, keep: bool) -> Kept | None:
        """The export broke off: with `keep` what is worth it stays for the next one, else the folder goes."""
        nbytes = sum(mark.nbytes for mark in self.marks.values())
        if not keep or nbytes < WORTH_KEEPING_BYTES or not self.folder.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):
            self._write(owner=None)
        return Kept(self.folder, nbytes, self._key)

    def _write(self, owner: object = "me") -> None:
        stored = {
            "key": self._key,
            "owner": _me() if owner == "me" else owner,
            "files": {name: asdict(mark) for name, mark in self.marks.items()},
        }
        write_aside(self.folder / FILE, json.dumps(stored, indent=1).encode())


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        found = parsing.from_json((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _marks(stored: Mapping[str, Any]) -> dict[str, Mark]:
    try:
        return {
            str(name): Mark(int(m["nbytes"]), str(m["sha256"]))
            for name, m in dict(stored.get("files") or {}).items()
            if Path(name).name == name
        }
    except (KeyError, TypeError, ValueError):
        return {}


def _hash_start(file: Path, mark: Mark) -> Any:
    """The running sha256 over a mark's bytes, to go on with; None where the file does not hold them."""
    hasher = hashlib.sha256()
    try:
        with file.open("rb", buffering=0) as stream:
            left = mark.nbytes
            while left and (data := stream.read(min(left, READ_BYTES))):
                hasher.update(data)
                left -= len(data)
    except OSError:
        return None
    return hasher if left == 0 and hasher.hexdigest() == mark.sha256 else None


def _clear(folder: Path, keep: frozenset[str]) -> None:
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for found in folder.iterdir():
        if found.is_dir():
            shutil.rmtree(found, ignore_errors=True)
        elif found.name not in keep:
            found.unlink()


def _me() -> list[float]:
    return [os.getpid(), psutil.Process().create_time()]


def _is_alive(owner: Any) -> bool:
    """Whether the process that wrote a journal lives, and is another than this one."""
    if not isinstance(owner, list) or len(owner) != 2 or owner[0] == os.getpid():
        return False
    try:
        return bool(abs(psutil.Process(int(owner[0])).create_time() - float(owner[1])) < 1)
    except (psutil.Error, ValueError, TypeError):
        return False


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
