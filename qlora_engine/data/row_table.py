"""All rows of prepared data as a table that is read in pages: what became of each, in any order, and one row in full.

Torch-free. Samples are laid out by the code that training uses.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qlora_engine.data.conversation import Conversation, RowProblem
from qlora_engine.data.formats import read_row
from qlora_engine.data.inspection import RAW_CHARS, Inspector
from qlora_engine.data.rectangle import lay_out
from qlora_engine.data.row_fates import SIDES, RowFates
from qlora_engine.data.sources import UnreadableRow
from qlora_engine.data.tokenize import TokenRow, cut
from qlora_engine.data.working import as_processed

BEGINNING = 160
HEAD, TAIL = 3000, 500
"""Tokens of a long row that are shown; what is between them is counted."""
SEARCH_LIMIT = 1000
LETTERS = {"trained": "t", "masked": "m", "special": "s", "cut": "c", "padding": "p"}


@dataclass(frozen=True, eq=False)
class RowTable:
    """Rows by number from 1; answers are ready for JSON."""

    inspector: Inspector

    @cached_property
    def fates(self) -> RowFates:
        return RowFates(self.inspector)

    @cached_property
    def _searches(self) -> dict[str, list[int]]:
        return {}

    def listed(self, ask: Mapping[str, Any], check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """A page: `kind` (one of KINDS) or `search`, from place `first` (0 is the first) on `count` rows.

        Raises:
            EngineError: there is no such kind.
        """
        first, count = int(ask.get("first", 0)), int(ask.get("count", 50))
        if ask.get("search"):
            numbers: Any = self._found(str(ask["search"]), check)
        else:
            numbers = self.fates.numbers(str(ask.get("kind", "all")))
        page = [int(number) for number in numbers[first : first + count]]
        return {"total": len(numbers), "first": first, "rows": [self.brief(number) for number in page]}

    def brief(self, number: int) -> dict[str, Any]:
        """One line: where the row stands, what became of it, and how it begins."""
        store = self.inspector.store
        file, place = store.place(number)
        length, trained = self.fates.sizes(number)
        side = SIDES[int(self.fates.sides[number])]
        return {
            "row": number, "file": file, "row_in_file": place, "side": side, "tokens": length, "trained": trained,
            "text": self._beginning(number), "problem": self.fates.reason(number) if side == "left_out" else None,
        }  # fmt: skip

    def row(self, number: int) -> dict[str, Any]:
        """A row in full: as stored, as read, and as the model is fed it.

        Raises:
            EngineError: there is no such row.
        """
        self.inspector.require(number)
        found = {
            **self.brief(number),
            "raw": self.inspector.store.raw(number)[:RAW_CHARS],
            "rendered": [],
            "said": [],
        }
        try:
            conversation = self._conversation(number)
            found["said"] = [message.to_json() for message in conversation.messages]
            found["rendered"] = [
                self._shown(row, conversation) for row in as_processed(self.inspector.plan, conversation)
            ]
        except (UnreadableRow, RowProblem) as problem:
            found["problem"] = str(problem)
        return found

    def batch(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Rows side by side as one micro-batch, padded to the longest of them; rows that are left out are not in it."""
        rows = []
        for number in numbers:
            try:
                made = as_processed(self.inspector.plan, self._conversation(number))
                rows += [cut(row, self.inspector.prepared.seq_len) for row in made]
            except (UnreadableRow, RowProblem):
                continue
        if not rows:
            return {"rows": []}
        laid = lay_out(rows, self.inspector.tokenizer.pad_token_id or 0)
        width = laid.input_ids.shape[1]
        shown = [self._shown(row, None) for row in rows]
        for row, one in zip(rows, shown, strict=True):
            one["tokens"] = _padded(one["tokens"], width - len(row.input_ids), self.inspector.tokenizer)
        return {
            "rows": [{"row": row.source_row, **one} for row, one in zip(rows, shown, strict=True)],
            "width": width,
        }

    def _found(self, text: str, check: Callable[[], None]) -> list[int]:
        if text not in self._searches:
            self._searches[text] = self.inspector.search(text, check, SEARCH_LIMIT)
        return self._searches[text]

    # ------------------------------------------------------------ one row

    def _beginning(self, number: int) -> str:
        """What is asked and what is answered, else the stored text."""
        try:
            read = self._conversation(number)
        except (UnreadableRow, RowProblem):
            return self.inspector.store.raw(number)[:BEGINNING]
        if read.text is not None:
            return read.text[:BEGINNING]
        said = [
            message.text
            for message in read.messages
            if message.role in ("user", "assistant") and message.text
        ]
        return " \u2192 ".join(text[: BEGINNING // 2] for text in said[:2])

    def _conversation(self, number: int) -> Conversation:
        plan, store = self.inspector.plan, self.inspector.store
        read = read_row(store.row(number), number, plan.detections[store.source_of(number)])
        return read.with_system(plan.system_prompt)

    def _shown(self, whole: TokenRow, conversation: Conversation | None) -> dict[str, Any]:
        tokenizer = self.inspector.tokenizer
        row = cut(whole, self.inspector.prepared.seq_len)
        roles = roles_of(whole, conversation, tokenizer) if conversation is not None else []
        special = set(tokenizer.all_special_ids)
        states = [
            "c" if place >= len(row.input_ids)
            else "t" if row.trained[place] and place
            else "s" if token in special
            else "m"
            for place, token in enumerate(whole.input_ids)
        ]  # fmt: skip
        places = _kept(len(whole.input_ids))
        tokens = [
            [
                tokenizer.decode([whole.input_ids[p]]),
                whole.input_ids[p],
                states[p],
                p,
                roles[p] if roles else "",
            ]
            for p in places
        ]
        return {
            "tokens": tokens, "length": len(whole.input_ids), "hidden": len(whole.input_ids) - len(places),
            "trained": row.trained_count, "cut": row.cut_tokens, "is_answer_cut": row.is_answer_cut,
            "notes": list(whole.notes),
        }  # fmt: skip


def roles_of(row: TokenRow, conversation: Conversation, tokenizer: Any) -> list[str]:
    """Whose each token is: a message's role, or `template` for what stands between them. Empty where it cannot be told."""
    if conversation.text is not None:
        return ["text"] * len(row.input_ids)
    encoded = tokenizer(row.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if list(encoded["input_ids"]) != list(row.input_ids):
        return []
    places = list(_message_places(row.text, conversation))
    starts = [start for start, _, _ in places]
    found = []
    for start, end in encoded["offset_mapping"]:
        at = bisect_right(starts, max(start, end - 1)) - 1
        is_inside = at >= 0 and end > places[at][0] and start < places[at][1]
        found.append(places[at][2] if is_inside else "template")
    return found


def _message_places(text: str, conversation: Conversation) -> list[tuple[int, int, str]]:
    """(first, last+1 character, role) of what each message says, in the order of the text."""
    found, place = [], 0
    for message in conversation.messages:
        for piece, role in ((message.reasoning, f"{message.role}, reasoning"), (message.text, message.role)):
            wanted = (piece or "").strip()
            start = text.find(wanted, place) if wanted else -1
            if start >= 0:
                place = start + len(wanted)
                found.append((start, place, role))
    return found


def _kept(length: int) -> list[int]:
    if length <= HEAD + TAIL:
        return list(range(length))
    return [*range(HEAD), *range(length - TAIL, length)]


def _padded(tokens: list[list[Any]], count: int, tokenizer: Any) -> list[list[Any]]:
    """`tokens` without those that are cut, then the padding that a batch puts behind them."""
    kept = [token for token in tokens if token[2] != "c"]
    pad = tokenizer.pad_token_id or 0
    shown = min(count, TAIL)
    return kept + [
        [tokenizer.decode([pad]), pad, "p", len(kept) + place, "padding"] for place in range(shown)
    ]
