"""Which files a path stands for: one, those of a folder or a part of it, those inside an archive. Torch-free."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_engine.counting import counted
from qlora_engine.errors import EngineError

LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
COLUMNAR = (".parquet", ".arrow", ".feather")
TEXTS = (".txt", ".md", ".markdown")
KINDS = (*LINES, ".json", *TABLES, *COLUMNAR, *TEXTS)
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ABOUT_DATA = {"dataset_info.json", "state.json", "dataset_infos.json", "dataset_dict.json"}
"""Written beside the data by the `datasets` library; they hold no rows."""
USUAL_PARTS = ("train", "test", "validation", "valid", "dev", "eval")


@dataclass(frozen=True)
class Place:
    """One file of rows: `kind` is its ending without the compression's, `member` its name inside a zip archive."""

    path: Path
    kind: str
    compression: str = ""
    member: str = ""

    @property
    def name(self) -> str:
        return f"{self.path.name}: {self.member}" if self.member else self.path.name


def find(path: Path, part: str = "train") -> tuple[list[Place], list[str]]:
    """The files of rows at `path` in the order of their names, and notes on what was passed over.

    Raises:
        EngineError: missing, of an unknown kind, or none inside.
    """
    if not path.exists():
        raise missing(path)
    if path.is_file():
        if part != "train":
            raise EngineError(
                "data.split",
                f"data.split is {part!r}, and {path.name} is a single file, which has no parts",
                "name the part's own file in data.path, and leave data.split at train",
            )
        return _of_file(path), []
    if not path.is_dir():
        raise EngineError("data.kind", f"{path} is neither a file nor a folder", "choose a file")
    return _of_folder(path, part)


def missing(path: Path) -> EngineError:
    return EngineError(
        "data.missing", f"there is no file {path}", "check the path, or choose another dataset"
    )


def kind_of(name: str) -> tuple[str, str] | None:
    """(ending, compression) of a file name that can be read, else None."""
    ends = [end.lower() for end in Path(name).suffixes[-2:]]
    compression = ends.pop() if ends and ends[-1] in COMPRESSIONS else ""
    return (ends[-1], compression) if ends and ends[-1] in KINDS else None


def _of_file(path: Path) -> list[Place]:
    if path.suffix.lower() == ".zip":
        return _of_archive(path)
    kind = kind_of(path.name)
    if kind is None:
        raise EngineError(
            "data.kind",
            f"files of kind {path.suffix or '(none)'} are not read: {path.name}",
            f"known: {' '.join(KINDS)}, also with {' '.join(COMPRESSIONS)} or in a .zip",
        )
    return [Place(path, *kind)]


def _of_archive(path: Path) -> list[Place]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(i.filename for i in archive.infolist() if not i.is_dir())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise EngineError(
            "data.archive", f"{path.name} is not a whole zip archive: {error}", "get it again"
        ) from error
    found = [Place(path, *kind, name) for name in names if not _is_hidden(name) and (kind := kind_of(name))]
    return _without_prose(found) or _nothing_in(path, "archive")


def _of_folder(path: Path, part: str) -> tuple[list[Place], list[str]]:
    found: list[Place] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder) / name
            if _is_hidden(name) or name in ABOUT_DATA or not file.is_file():
                continue
            if file.suffix.lower() == ".zip":
                found.extend(_of_archive(file))
            elif kind := kind_of(name):
                found.append(Place(file, *kind))
    if not found:
        _nothing_in(path, "folder")
    rows = _without_prose(found)
    notes = _passed_over(found, rows, "text beside rows")
    chosen = _of_part(rows, path, part)
    return chosen, [*notes, *_passed_over(rows, chosen, f"not of the part {part!r}")]


def _of_part(found: list[Place], folder: Path, part: str) -> list[Place]:
    """Where names say which part a file is (train.jsonl, test-00000-of-00002.parquet, data/train/), the part's own."""
    parts = {place: _part_in_name(place, folder) for place in found}
    named = sorted({name for name in parts.values() if name})
    if part in named:
        return [place for place in found if parts[place] == part]
    if part == "train" and len(named) < 2:
        return found
    raise EngineError(
        "data.split",
        f"the folder {folder} has no part {part!r}" + (f"; it has {', '.join(named)}" if named else ""),
        f"set data.split to one of {', '.join(named)}"
        if named
        else "leave data.split at train, or choose a file",
    )


def _part_in_name(place: Place, folder: Path) -> str:
    inside = f"{place.path.relative_to(folder)}/{place.member}".lower()
    words = re.split(r"[^a-z0-9]+", inside)
    return next((word for word in words if word in USUAL_PARTS), "")


def _without_prose(found: list[Place]) -> list[Place]:
    """A README beside tables is about them, not one of their rows."""
    rows = [place for place in found if place.kind not in TEXTS]
    return rows or found


def _passed_over(before: Sequence[Place], after: Sequence[Place], why: str) -> list[str]:
    left = [place.name for place in before if place not in set(after)]
    if not left:
        return []
    shown = ", ".join(left[:3]) + (" ..." if len(left) > 3 else "")
    return [f"{counted(len(left), 'file', 'were')} not read, {why}: {shown}"]


def _is_hidden(name: str) -> bool:
    return Path(name).name.startswith((".", "_")) or name.startswith("__MACOSX")


def _nothing_in(path: Path, what: str) -> list[Place]:
    raise EngineError(
        "data.empty", f"the {what} {path} holds no file of a known kind ({' '.join(KINDS)})", "choose a file"
    )
