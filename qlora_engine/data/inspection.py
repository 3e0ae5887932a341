"""What the model will see, before a run: the data as a run would read it, row by row and token by token.

Torch-free. Samples are laid out by the code that training uses, rows are rendered by the code that a million rows go
through.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from qlora_engine import row_numbers
from qlora_engine.data import working
from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.formats import read_row
from qlora_engine.data.pipeline import BY_HAND, PreparedData
from qlora_engine.data.rectangle import IGNORED, lay_out
from qlora_engine.data.sources import RowStore, UnreadableRow
from qlora_engine.data.tokenize import TokenRow, cut
from qlora_engine.data.tokens import TokenRows
from qlora_engine.data.working import Plan
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.jobs import WORST_ROWS

SEARCH_LIMIT = 50
DATA, HELD_OUT = SETS = ("data", "held_out")
RAW_CHARS = 20_000


def shown_rows(rows: Sequence[TokenRow], tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """The first rows as training feeds them, tokens with a state each: trained, masked, special, cut, padding."""
    return [shown_row(rows, index, tokenizer) for index in range(min(count, len(rows)))]


def shown_row(rows: Sequence[TokenRow], index: int, tokenizer: Any) -> dict[str, Any]:
    """Row `index` as training feeds it, with what is cut off behind it."""
    row = rows[index]
    whole = rows.store.row(int(rows.places[index])) if isinstance(rows, TokenRows) else row
    return shown(row, whole, tokenizer)


def shown(row: TokenRow, whole: TokenRow, tokenizer: Any) -> dict[str, Any]:
    """`row` token by token, then those of `whole` that were cut."""
    special = set(tokenizer.all_special_ids)
    laid = lay_out([row], tokenizer.pad_token_id or 0)
    positions = range(laid.input_ids.shape[1]) if laid.positions is None else laid.positions[0].tolist()
    tokens = []
    for token, label, position in zip(
        laid.input_ids[0].tolist(), laid.labels[0].tolist(), positions, strict=True
    ):
        state = "trained" if label != IGNORED else "special" if token in special else "masked"
        tokens.append(_token(tokenizer, token, state, position))
    behind = whole.input_ids[len(row.input_ids) :] if len(row.lengths) == 1 else []
    tokens.extend(_token(tokenizer, token, "cut", len(tokens) + place) for place, token in enumerate(behind))
    return {
        "row": row.source_row,
        "tokens": tokens,
        "cut_tokens": row.cut_tokens,
        "is_answer_cut": row.is_answer_cut,
        "trained_tokens": row.trained_count,
    }


def _token(tokenizer: Any, token: int, state: str, position: int) -> dict[str, Any]:
    return {"text": tokenizer.decode([token]), "id": token, "state": state, "position": position}


@dataclass(frozen=True)
class Inspector:
    """Rows of prepared data by number, by how bad they are, or by what they say; answers are ready for JSON.

    `of` says which: `data` are those of the dataset, `held_out` those that are held out, by the numbers of their own file or,
    where they are a share of the dataset, of the dataset.
    """

    prepared: PreparedData
    tokenizer: Any
    of: str = DATA

    def __post_init__(self) -> None:
        if self.of not in SETS:
            raise EngineError("data.of", f"there are no rows of {self.of!r}", did_you_mean(self.of, SETS))

    @property
    def is_share(self) -> bool:
        """The rows are some of the dataset's."""
        return self.of == HELD_OUT and not self.prepared.has_held_out_file

    @property
    def store(self) -> RowStore:
        return self.prepared.held_store if self.of == HELD_OUT else self.prepared.store

    @property
    def plan(self) -> Plan:
        return self.prepared.held_plan if self.of == HELD_OUT else self.prepared.plan

    @property
    def kept(self) -> TokenRows:
        """Those that are used: trained, or held out."""
        return self.prepared.held_out if self.of == HELD_OUT else self.prepared.whole

    @cached_property
    def numbers(self) -> Sequence[int]:
        """The numbers of the rows, ascending."""
        if self.is_share:
            return sorted(set(self.kept.numbers.tolist()))
        return range(1, len(self.store) + 1)

    def row(self, number: int) -> dict[str, Any]:
        """A row as it is stored beside what the model sees of it, or why it is left out.

        Raises:
            EngineError: there is no such row.
        """
        store = self.store
        self.require(number)
        file, place = store.place(number)
        found: dict[str, Any] = {
            "row": number, "file": file, "row_in_file": place, "raw": store.raw(number)[:RAW_CHARS],
            "side": self._side(number), "problem": BY_HAND if self.is_left_out(number) else None, "rendered": [],
        }  # fmt: skip
        try:
            found["rendered"] = [
                shown(cut(row, self.prepared.seq_len), row, self.tokenizer) for row in self._processed(number)
            ]
        except (UnreadableRow, RowProblem) as problem:
            found["problem"] = str(problem)
        return found

    def rows(self, first: int, count: int) -> list[dict[str, Any]]:
        """All rows from number `first` on, good and bad."""
        start = bisect_left(self.numbers, first)
        return [self.row(number) for number in self.numbers[start : start + count]]

    def is_left_out(self, number: int) -> bool:
        """By hand, whatever it holds."""
        return self.store is self.prepared.store and row_numbers.holds(self.prepared.left_out, number)

    def require(self, number: int) -> None:
        """Raises:
        EngineError: there is no such row.
        """
        total = len(self.store)
        if not 1 <= number <= total:
            raise EngineError(
                "data.row", f"there is no row {number}; the data has {total:,}", "choose a smaller one"
            )

    def worst(self, kind: str, count: int) -> list[dict[str, Any]]:
        """Rows that are used: the longest, most cut, with the fewest trained or the most unknown tokens.

        Raises:
            EngineError: there is no such kind.
        """
        rows = self.kept
        if kind not in WORST_ROWS:
            raise EngineError("data.worst", f"there is no worst {kind!r}", did_you_mean(kind, WORST_ROWS))
        whole = rows.store.lengths[rows.places]
        badness = {
            "longest": lambda: whole,
            "most_cut": lambda: whole - rows.seq_len,
            "fewest_trained": lambda: -rows.trained_counts,
            "most_unknown": lambda: rows.store.column("unknown")[rows.places],
        }[kind]()
        order = (-badness).argsort(kind="stable")[:count].tolist()
        if kind in ("most_cut", "most_unknown"):
            order = [place for place in order if badness[place] > 0]
        return [shown_row(rows, place, self.tokenizer) for place in order]

    def search(
        self, text: str, check: Callable[[], None] = lambda: None, limit: int = SEARCH_LIMIT
    ) -> list[int]:
        """The first rows whose stored text holds `text`, whatever its case."""
        return list(self._found(text.casefold(), check, limit))

    def _found(self, wanted: str, check: Callable[[], None], limit: int) -> Iterator[int]:
        count, mine = 0, set(self.numbers) if self.is_share else self.numbers
        for block in self.store.blocks(1000):
            check()
            for number, text in block.texts():
                if wanted in text.casefold() and number in mine:
                    yield number
                    count += 1
                    if count >= limit:
                        return

    def _processed(self, number: int) -> list[TokenRow]:
        plan, store = self.plan, self.store
        row = store.row(number)
        conversation = read_row(row, number, plan.detections[store.source_of(number)])
        return working.as_processed(plan, conversation.with_system(plan.system_prompt))

    def _side(self, number: int) -> str:
        """Of what is in a file of its own nothing is trained."""
        prepared, is_own = self.prepared, self.of == HELD_OUT and not self.is_share
        if not is_own and (prepared.whole.numbers == number).any():
            return "train"
        is_here = is_own or not prepared.has_held_out_file
        return HELD_OUT if is_here and (prepared.held_out.numbers == number).any() else "left_out"


def asked(inspector: Inspector, ask: Mapping[str, Any], check: Callable[[], None]) -> dict[str, Any]:
    """Answers to the questions of a DataReportJob: "numbers", "first" and "count", "worst", "search", "list" (a kind of
    row_fates.KINDS), each about the rows "of" the data or those held out; "reasoning" (with the job's chat template),
    "write_clean"."""
    from qlora_engine.data import clean, policy_example
    from qlora_engine.data.row_table import RowTable

    found: dict[str, Any] = {}
    whole, inspector = inspector, replace(inspector, of=str(ask.get("of") or DATA))
    count = int(ask.get("count", 5))
    if ask.get("numbers"):
        found["numbers"] = [inspector.row(int(number)) for number in ask["numbers"]]
    if ask.get("first"):
        found["first"] = inspector.rows(int(ask["first"]), count)
    if ask.get("worst"):
        found["worst"] = inspector.worst(str(ask["worst"]), count)
    if ask.get("search"):
        numbers = inspector.search(str(ask["search"]), check)
        found["search"] = {"numbers": numbers, "rows": [inspector.row(number) for number in numbers[:count]]}
    if ask.get("list"):
        found["list"] = RowTable(inspector).listed({"kind": ask["list"], "count": count}, check)
    if ask.get("reasoning"):
        found["reasoning"] = policy_example.examples(whole, str(ask["reasoning"]))
    if ask.get("write_clean"):
        found["write_clean"] = clean.write(inspector.prepared, str(ask["write_clean"]), check)
    return found
