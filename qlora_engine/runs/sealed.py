"""Files that tell whether they are as they were written: JSON with its own checksum, folders with a mark. Torch-free.

Everything is written aside, fsynced and renamed, for its owner's eyes alone.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_engine import parsing

SEAL = re.compile(rb',\s*"seal": (\d{1,10})\}\s*$')
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def sealed(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    """JSON of an object that is not empty, with a checksum of everything before it as its last key."""
    body = json.dumps(value, indent=indent, ensure_ascii=False).rstrip()[:-1].rstrip().encode("utf-8")
    return body + f', "seal": {zlib.crc32(body)}}}'.encode()


def unsealed(raw: bytes) -> dict[str, Any]:
    """The object that `sealed` wrote.

    Raises:
        Malformed: not JSON, or not as it was written.
    """
    value = parsing.object_from_json(raw)
    seal = SEAL.search(raw)
    if seal is None or zlib.crc32(raw[: seal.start()]) != int(seal[1]):
        raise parsing.Malformed("it is not as it was written: its checksum does not fit")
    value.pop("seal")
    return value


def read(path: Path) -> dict[str, Any]:
    """The object of a sealed file.

    Raises:
        OSError: it cannot be read. Malformed: it is damaged.
    """
    return unsealed(path.read_bytes())


def sealed_line(line: str) -> str:
    """One line of JSON, an object, with a checksum of its own."""
    body = line[:-1]
    return f'{body}, "seal": {zlib.crc32(body.encode())}}}'


def is_sealed_line(line: str) -> bool:
    """True when the line is as it was written."""
    raw = line.encode("utf-8", errors="replace").strip()
    seal = SEAL.search(raw)
    return seal is not None and zlib.crc32(raw[: seal.start()]) == int(seal[1])


def write_mark(folder: Path, mark: Path, names: list[str], **more: Any) -> None:
    """Fsync the named files of `folder`, and write their sizes and checksums into `mark`."""
    sizes, checksums = {}, {}
    for name in names:
        path = folder / name
        path.chmod(PRIVATE_FILE)
        sync_file(path)
        sizes[name], checksums[name] = path.stat().st_size, crc32(path)
    write_aside(mark, sealed({**more, "files": sizes, "crc32": checksums}))


def add_to_record(mark: Path, **more: Any) -> None:
    """Add keys to the `record` of a mark; what it says of its files stays as it was written with them.

    Raises:
        OSError, ValueError, KeyError: there is no such mark, or it is damaged.
    """
    written = read(mark)
    write_aside(mark, sealed({**written, "record": {**written["record"], **more}}))


def has_files(folder: Path, mark: Path) -> bool:
    """True when every file that the mark names is there in the size written there."""
    try:
        sizes = read(mark)["files"]
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def changed_files(folder: Path, mark: Path) -> list[str]:
    """The files that are missing or not as they were written; the mark itself when it cannot be read."""
    try:
        checksums = dict(read(mark)["crc32"])
    except (OSError, ValueError, KeyError, TypeError):
        return [mark.name]
    return [name for name, checksum in checksums.items() if not _is_same(folder / name, checksum)]


def crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value


def write_aside(path: Path, content: bytes, mode: int = PRIVATE_FILE) -> None:
    """Replace `path` as a whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add `line` to a file of lines; half a line that a killed writer left there is closed first, and spoils no other."""
    with open(path, "ab+", opener=lambda name, flags: os.open(name, flags, PRIVATE_FILE)) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())


def sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_same(path: Path, checksum: Any) -> bool:
    try:
        return crc32(path) == checksum
    except OSError:
        return False
