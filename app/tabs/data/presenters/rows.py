"""Rows as they are listed and shown: what became of each, how it is stored, and the tokens that the model is fed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.presenters.words import capital, count_text, plural
from qlora_engine import parsing, row_numbers
from qlora_engine.config import DataSettings

DATA, HELD_OUT = "data", "held_out"
"""Whose rows: the dataset's, or those that are held out."""
KINDS = (
    ("all", "All rows"), ("train", "Trained"), ("held_out", "Held out"), ("left_out", "Left out"),
    ("longest", "Longest first"), ("most_cut", "Most cut first"), ("fewest_trained", "Fewest trained first"),
    ("most_unknown", "Most unknown first"),
)  # fmt: skip
TITLES = ("Row", "What becomes of it", "Tokens", "Trained", "Begins with")
SIDES = {"train": "Trained", "held_out": "Held out", "left_out": "Left out"}
STATES = {
    "t": ("trained", "the loss is taken here"), "m": ("context", "seen, not trained"),
    "s": ("special", "a marker, not trained"), "p": ("padding", "fills the batch, not seen"),
    "c": ("cut", "too long, left out"),
}  # fmt: skip
NAMES = {"\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"}


@dataclass(frozen=True)
class Token:
    """`shown` is the text with its line ends and control characters made visible."""

    shown: str
    text: str
    id: int
    state: str
    position: int
    role: str

    @property
    def words(self) -> str:
        """What hovering says."""
        role = f"; {self.role}" if self.role else ""
        state, meaning = STATES[self.state]
        return f"Token {self.id}: {json.dumps(self.text, ensure_ascii=False)}\nPosition {count_text(self.position)}{role}\n{capital(state)}: {meaning}"


@dataclass(frozen=True)
class Rendered:
    """One row as the model is fed it; `gap` tokens behind token `gap_at` are not shown."""

    headline: str
    tokens: tuple[Token, ...]
    gap: int
    gap_at: int


@dataclass(frozen=True)
class RowDetail:
    number: int
    headline: str
    problem: str
    raw: str
    said: str
    rendered: tuple[Rendered, ...]


def row_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    fate = SIDES[row["side"]]
    if row["problem"]:
        fate = f"{fate}: {row['problem']}"
    text = " ".join(str(row["text"]).split())
    return (count_text(row["row"]), fate, count_text(row["tokens"]), count_text(row["trained"]), text)


def row_detail(row: Mapping[str, Any]) -> RowDetail:
    where = f"Row {count_text(row['row'])}: {row['file']}, row {count_text(row['row_in_file'])}"
    fate = SIDES[row["side"]].lower()
    return RowDetail(
        int(row["row"]), f"{where}. {capital(fate)}.", capital(str(row["problem"])) if row["problem"] else "",
        pretty(str(row["raw"])), said_text(row.get("said", ())), tuple(rendered(each) for each in row["rendered"]),
    )  # fmt: skip


def batch_rows(answer: Mapping[str, Any]) -> tuple[Rendered, ...]:
    return tuple(rendered(each, f"Row {count_text(each['row'])}: ") for each in answer["rows"])


def rendered(each: Mapping[str, Any], prefix: str = "") -> Rendered:
    tokens = tuple(token(*each_token) for each_token in each["tokens"])
    head = f"{plural(int(each['length']), 'token')}, {count_text(each['trained'])} trained"
    if each["cut"]:
        head += f", {count_text(each['cut'])} cut" + (
            " and with them the answer's end" if each["is_answer_cut"] else ""
        )
    padded = sum(1 for found in tokens if found.state == "p")
    if padded:
        head += f", {count_text(padded)} of padding"
    notes = "".join(f" {capital(note)}." for note in each["notes"])
    hidden = int(each["hidden"])
    gap_at = next((i for i, t in enumerate(tokens) if t.position != i), len(tokens)) if hidden else 0
    return Rendered(f"{prefix}{head}.{notes}", tokens, hidden, gap_at)


def token(text: str, number: int, state: str, position: int, role: str) -> Token:
    return Token(visible(text), text, number, state, position, role)


def visible(text: str) -> str:
    """Line ends and control characters as signs; nothing is left empty."""
    found = "".join(NAMES.get(c, c if c.isprintable() or c == " " else "\ufffd") for c in text)
    return found or "\u2205"


def pretty(raw: str) -> str:
    """A stored row with its keys under one another; any other text as it is."""
    try:
        return json.dumps(parsing.from_json(raw), ensure_ascii=False, indent=2)
    except parsing.Malformed:
        return raw


def said_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation as it was read."""
    parts = []
    for message in messages:
        lines = [str(message["role"]).upper()]
        if message.get("reasoning"):
            lines.append(f"(thinks) {message['reasoning']}")
        if message.get("text"):
            lines.append(str(message["text"]))
        lines += [
            f"(calls) {call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}"
            for call in message.get("calls", ())
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def sets_of(settings: DataSettings) -> tuple[tuple[str, str], ...]:
    """(set, words): the rows of the dataset, and those that are held out, of a file of their own or a share."""
    if is_own_file(settings):
        return ((DATA, "Training data"), (HELD_OUT, "Held-out data"))
    return ((DATA, "Whole dataset"), (HELD_OUT, "Held-out share"))


def kinds_of(rows_of: str, settings: DataSettings) -> tuple[tuple[str, str], ...]:
    """What rows of a set there can be: a share that is held out holds no others, a file of its own no trained ones."""
    if rows_of == DATA:
        missing = {"held_out"} if is_own_file(settings) else set()
    else:
        missing = {"train"} if is_own_file(settings) else {"train", "held_out", "left_out"}
    return tuple((kind, words) for kind, words in KINDS if kind not in missing)


def is_own_file(settings: DataSettings) -> bool:
    """Whether what is held out has numbers of its own."""
    return bool(settings.held_out_path) or settings.path == "starter"


def leave_text(number: int | None, rows_of: str, settings: DataSettings) -> str:
    """What a click does with the shown row; empty where nothing can be done: a held-out file is not the dataset."""
    if number is None or (rows_of == HELD_OUT and is_own_file(settings)):
        return ""
    return "Take it back" if is_left_out(number, settings) else "Leave this row out"


def leave_out_with(number: int, settings: DataSettings) -> str:
    """`data.leave_out` after that click."""
    if is_left_out(number, settings):
        return row_numbers.without(settings.leave_out, number)
    return row_numbers.added(settings.leave_out, str(number))


def is_left_out(number: int, settings: DataSettings) -> bool:
    return row_numbers.holds(row_numbers.readable(settings.leave_out), number)


def position_text(place: int | None, total: int, rows_of: str, kind: str, search: str) -> str:
    """`12 of 1,000 rows that hold "abc"`."""
    of = plural(total, "held-out row" if rows_of == HELD_OUT else "row")
    what = (
        f" that hold \u201c{search}\u201d"
        if search
        else {"left_out": " left out", "held_out": " held out" * (rows_of == DATA), "train": " trained"}.get(
            kind, ""
        )
    )
    return f"{count_text(place + 1)} of {of}{what}" if place is not None else f"{of}{what}"
