"""What a checkpoint was made with, and what it means to go on with something else. Torch-free.

Settings are compared by their knobs, each of which says what its change means (`knobs.RESUMES`); base, data and template
by what they hold, so that a moved folder is no difference and a changed file is one.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_engine import config_io, row_numbers
from qlora_engine.config import TrainingConfig, all_knobs
from qlora_engine.data.tokens import lengths_of
from qlora_engine.errors import EngineError
from qlora_engine.knobs import RESUMES

ROWS_HASHED = 20_000
BY_CONTENT = ("model.name", "model.revision", "data.path", "data.held_out_path")
"""Places: what lies there is compared, not its name."""
UNHEARD = ("output.name", "output.runs_dir")
"""Said once, when the folder was made."""
MEANT: Mapping[str, Callable[[Any], Any]] = {"data.leave_out": row_numbers.readable, "data.ignore": frozenset}
"""What a setting means, where it can be written in several ways."""
CONTENTS = {
    "base": ("the base model", "base"),
    "data": ("the training data", "rows"),
    "template": ("the chat template", "rows"),
}
ALL = "all"


@dataclass(frozen=True)
class Difference:
    """`name` is a knob's path or one of `CONTENTS`; `consequence` is None where it may change, "" where it cannot."""

    name: str
    words: str
    consequence: str | None


def made_with(config: TrainingConfig, contents: Mapping[str, str]) -> dict[str, Any]:
    """What goes into a checkpoint."""
    return {"settings": config_io.to_dict(config), "contents": dict(contents)}


def contents_of(
    fingerprint: Mapping[str, str],
    data_sha256: str,
    rows: Sequence[Any],
    held_out: Sequence[Any],
    template: str,
) -> dict[str, str]:
    """One hash each of the base, of the rows with what is trained of them, and of the template."""
    return {
        "base": _sha256(f"{name} {digest}" for name, digest in sorted(fingerprint.items())),
        "data": _sha256([data_sha256, _rows_sha256(rows), _rows_sha256(held_out)]),
        "template": _sha256([template]),
    }


def changed_settings(made: Mapping[str, Any], now: TrainingConfig) -> list[Difference]:
    """The settings that differ from those of a checkpoint, in the order of a job file."""
    before, after = config_io.from_dict(made["settings"]), now
    found = []
    for path, knob in all_knobs().items():
        table, name = path.split(".", 1)
        was, new = getattr(getattr(before, table), name), getattr(getattr(after, table), name)
        meant = MEANT.get(path, lambda value: value)
        if meant(was) != meant(new) and path not in (*BY_CONTENT, *UNHEARD):
            found.append(
                Difference(path, f"{path} was {_shown(was)} and is {_shown(new)}", RESUMES[knob.resume])
            )
    return found


def changed_contents(
    made: Mapping[str, Any], now: Mapping[str, str], known: Iterable[str]
) -> list[Difference]:
    """What holds other bytes than it did, unless a setting that was changed (`known`) says why."""
    explains = {all_knobs()[path].resume for path in known if path in all_knobs()}
    before = made["contents"]
    return [
        Difference(name, f"{title} is not what it was", RESUMES[kind])
        for name, (title, kind) in CONTENTS.items()
        if before.get(name) != now.get(name) and kind not in explains
    ]


def require_accepted(found: Sequence[Difference], accepted: Iterable[str], step: str, run: str) -> None:
    """Refuse every difference that changes the run, unless it was asked for by name.

    Raises:
        EngineError: with each difference, and what going on would mean.
    """
    wanted = set(accepted)
    refused = [d for d in found if d.consequence == ""]
    if refused:
        raise EngineError(
            "resume.shape",
            f"{step} cannot be gone on with: {'; '.join(d.words for d in refused)}, and its weights fit no other",
            "put it back in the run's job.toml, or start a new run",
        )
    open_ = [
        d for d in found if d.consequence and d.name not in wanted and ALL not in wanted and is_refusable(d)
    ]
    if open_:
        raise EngineError(
            "resume.differs",
            f"{step} was made with something else: "
            + "; ".join(f"{d.words} ({d.consequence})" for d in open_),
            "put it back, or go on all the same: `qlora resume "
            f"{run} " + " ".join(f"--accept {d.name}" for d in open_) + "`",
            accept=(*wanted, *(d.name for d in open_)),
        )


def is_refusable(difference: Difference) -> bool:
    """The run's length may change without being accepted; it is only said."""
    knob = all_knobs().get(difference.name)
    return knob is None or knob.resume != "length"


def _rows_sha256(rows: Sequence[Any]) -> str:
    """Of every row's length, and of all that is in up to `ROWS_HASHED` rows spread over them."""
    digest = hashlib.sha256(array("q", lengths_of(rows).tolist()).tobytes())
    for index in range(0, len(rows), max(1, len(rows) // ROWS_HASHED)):
        row = rows[index]
        digest.update(array("q", row.input_ids).tobytes())
        digest.update(bytes(bool(value) for value in row.trained))
    return digest.hexdigest()


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _shown(value: Any) -> str:
    return "empty" if value is None else json.dumps(value, ensure_ascii=False)
