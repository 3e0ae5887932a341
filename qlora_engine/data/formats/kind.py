"""What a format is, what was detected, and the account of every key of a row: used, or named as not used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_engine.data.conversation import Message, RowProblem

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """What a person must decide before such rows may be trained. `setting` is the option that decides, `values` what
    it takes."""

    code: str
    message: str
    setting: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Detection:
    """How rows are read: `columns` maps each field of the format to a column; `why` is a sentence.

    Of the keys seen in the first rows, `used` are read, `unused` are not, and `changes` (some of the unused) change
    what a row means: rows that carry them are left out until `ignore` names them. Plain data, so that it crosses a
    process boundary.
    """

    format: str
    columns: dict[str, str]
    why: str
    used: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    wants_chosen: bool = False
    """Rows whose answer is marked as unwanted are left out, as a person said."""
    nested: tuple[str, ...] = ()
    """Those of `columns` that stand inside another column."""


@dataclass(frozen=True)
class Said:
    """What a format read of one row."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None


@dataclass(frozen=True)
class Format:
    """`fields` maps each field to the names its column usually has; `test` gives a reason when rows look like it."""

    name: str
    label: str
    fields: Mapping[str, tuple[str, ...]]
    test: Callable[[Sequence[Row], Sequence[str], Mapping[str, str]], str]
    read: Callable[[Row, Detection, Keys], Said]
    optional: tuple[str, ...] = ()


MEANINGS: dict[str, tuple[str, ...]] = {
    "images": (
        "image", "images", "image_url", "image_urls", "image_path", "img", "input_image", "video", "videos", "audio",
        "audios", "input_audio", "file", "files", "document_image",
    ),
    "calls": ("tool_calls", "function_call", "tool_use", "calls", "functions", "tools"),
    "weights": ("weight", "weights", "train", "loss", "loss_weight", "loss_mask", "mask"),
    "rejected": ("rejected", "rejected_response", "rejected_responses", "label", "kto_tag"),
}  # fmt: skip
"""Keys that change what a row teaches, under the name by which a person may say that they are to be ignored."""
IN_WORDS = {
    "images": "images",
    "calls": "calls of tools",
    "weights": "weights",
    "rejected": "marks of unwanted answers",
}
LABEL = "label"
"""Its name says little: it may be a class, too."""


def meaning_of(key: str) -> str | None:
    """The kind of a key that changes meaning (`images` for `messages[].image_url`); None for any other key."""
    last = key.rsplit(".", 1)[-1].removesuffix("[]").lower()
    return next((kind for kind, names in MEANINGS.items() if last in names), None)


class Keys:
    """Keeps account of the keys of one row. A value of null, or an empty one, is no key: tables have them everywhere."""

    def __init__(self) -> None:
        self.used: dict[str, None] = {}
        self.unused: dict[str, None] = {}

    def use(self, *paths: str) -> None:
        self.used.update(dict.fromkeys(paths))

    def left(self, row: Row, known: Sequence[str] = (), under: str = "") -> None:
        """Name the keys of `row` that are neither used nor `known`."""
        for key, value in row.items():
            path = f"{under}{key}"
            if path not in self.used and key not in known and is_given(value):
                self.unused[path] = None

    def require_meaning(self, ignore: Sequence[str]) -> None:
        """Refuse a row whose unused keys change what it means.

        Raises:
            RowProblem: it has one that nobody said to ignore.
        """
        for key in self.unused:
            kind = meaning_of(key)
            if kind is not None and not {kind, key} & set(ignore):
                raise RowProblem(_cannot(kind, key))


def is_given(value: Any) -> bool:
    """False for null and for empty texts, lists and objects."""
    return value is not None and not (isinstance(value, str | list | tuple | dict) and len(value) == 0)


def _cannot(kind: str, key: str) -> str:
    what = {
        "images": f"it has {key!r}, and only text is trained",
        "calls": f"its {key!r} cannot be read as calls or definitions of tools",
        "weights": f"its {key!r} is not 0, 1, true or false",
        "rejected": f"its {key!r} says which answer is not wanted, which this format does not use",
    }[kind]
    if key.rsplit(".", 1)[-1].lower() == LABEL:
        what = (
            f"its {key!r} may be its class, or say whether its answer is wanted, and this format uses neither"
        )
    return f'{what}; data.ignore = ["{kind}"] trains it without'
