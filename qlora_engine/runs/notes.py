"""What a person calls a run and writes beside it: name, note, tags, in `notes.json`. Torch-free.

The folder's name stays, since checkpoints, queue and other runs refer to it; the name here is what is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_engine.errors import EngineError
from qlora_engine.runs import sealed

NOTES_FILE = "notes.json"
LONGEST_NAME, LONGEST_TAG, LONGEST_NOTE = 120, 40, 20_000


@dataclass(frozen=True)
class Notes:
    """Empty where nothing was written. `problem`: why the file could not be read, in words."""

    name: str = ""
    note: str = ""
    tags: tuple[str, ...] = ()
    problem: str = ""


def read(run_dir: Path) -> Notes:
    """Never raises: a damaged file is told in `problem`."""
    try:
        found = sealed.read(run_dir / NOTES_FILE)
        return Notes(str(found["name"]), str(found["note"]), tuple(str(tag) for tag in found["tags"]))
    except FileNotFoundError:
        return Notes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Notes(problem=f"its name, note and tags cannot be read: {error}")


def write(run_dir: Path, notes: Notes) -> Notes:
    """Keep them, tidied; what is kept is given back.

    Raises:
        EngineError: a name, note or tag is too long. OSError: the folder cannot be written.
    """
    tidy = Notes(" ".join(notes.name.split()), notes.note.strip(), _tidy_tags(notes.tags))
    _require_short("name", tidy.name, LONGEST_NAME)
    _require_short("note", tidy.note, LONGEST_NOTE)
    content = {"name": tidy.name, "note": tidy.note, "tags": list(tidy.tags)}
    sealed.write_aside(run_dir / NOTES_FILE, sealed.sealed(content, indent=1))
    return tidy


def rename(run_dir: Path, name: str) -> Notes:
    """Show the run under this name; empty: under its folder's. Raises as `write`."""
    return write(run_dir, replace(read(run_dir), name=name))


def annotate(run_dir: Path, note: str) -> Notes:
    """Replace the note. Raises as `write`."""
    return write(run_dir, replace(read(run_dir), note=note))


def tag(run_dir: Path, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Notes:
    """Add and take off tags. Raises as `write`."""
    old, gone = read(run_dir), set(_tidy_tags(remove))
    return write(run_dir, replace(old, tags=tuple(t for t in (*old.tags, *add) if t not in gone)))


def _tidy_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Each once, in the order in which they came; a comma parts two tags."""
    words = (" ".join(word.split()) for tag in tags for word in tag.split(","))
    found = tuple(dict.fromkeys(word for word in words if word))
    for word in found:
        _require_short("tag", word, LONGEST_TAG)
    return found


def _require_short(what: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise EngineError(
            "notes.long", f"the {what} has {len(text)} characters; at most {longest} are kept", "shorten it"
        )
