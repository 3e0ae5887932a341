"""The list of runs: one row each, what is searched in it, and which are left by a filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.presenters.draft import Draft
from app.presenters.run_fold import RunFold
from app.presenters.runcard import short_name
from app.presenters.words import UNKNOWN, count_text, number_text, percent_text
from qlora_engine.runs.index import RunEntry

STATES: dict[str, tuple[str, str, str]] = {
    "draft": ("\u25cb", "Draft", "quiet"),
    "planned": ("\u25cb", "Draft", "quiet"),
    "queued": ("\u2261", "Queued", "accent"),
    "new": ("\u25cb", "New", "quiet"),
    "starting": ("\u25b6", "Starting", "accent"),
    "running": ("\u25b6", "Training", "accent"),
    "paused": ("\u2016", "Paused", "accent"),
    "stopping": ("\u25a0", "Stopping", "accent"),
    "elsewhere": ("\u25b7", "Training elsewhere", "accent"),
    "stopped": ("\u25a0", "Stopped", "quiet"),
    "crashed": ("!", "Broke off", "warning"),
    "failed": ("\u00d7", "Failed", "bad"),
    "finished": ("\u2713", "Finished", "good"),
    "unreadable": ("?", "Unreadable", "warning"),
}
"""Of each state its sign, its word and its tone: never the colour alone."""
FILTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "all": ("All runs", tuple(STATES)),
    "planned": ("Drafts and queued", ("draft", "planned", "queued", "new")),
    "live": ("Training now", ("starting", "running", "paused", "stopping", "elsewhere")),
    "ended": ("Stopped or failed", ("stopped", "crashed", "failed", "unreadable")),
    "finished": ("Finished", ("finished",)),
}
LIVE = FILTERS["live"][1]


@dataclass(frozen=True)
class RunRow:
    """`share`: of the steps done, 0 to 1; None where there is nothing to go through. `found_by` is what a search looks in."""

    key: str
    state: str
    name: str
    model: str
    loss_text: str
    share: float | None
    found_by: str
    created: float = 0.0
    loss: float | None = None
    tags: tuple[str, ...] = ()
    queue_place: int | None = None
    ends_text: str = ""

    @property
    def sign(self) -> str:
        return STATES[self.state][0]

    @property
    def word(self) -> str:
        return STATES[self.state][1]

    @property
    def tone(self) -> str:
        return STATES[self.state][2]

    @property
    def state_text(self) -> str:
        """`Training, 41 %`."""
        if self.queue_place is not None and self.state == "queued":
            ends = f", ends {self.ends_text}" if self.ends_text else ""
            where = f"place {count_text(self.queue_place)}" if self.queue_place else "starts now"
            return f"{self.word}, {where}{ends}"
        is_partial = self.share is not None and self.state not in ("finished", "draft")
        return f"{self.word}, {percent_text(self.share)}" if is_partial else self.word

    @property
    def detail(self) -> str:
        """The second line."""
        tags = " ".join(f"#{tag}" for tag in self.tags)
        return " \u00b7 ".join(part for part in (self.state_text, self.loss_text, tags, self.model) if part)

    @property
    def spoken(self) -> str:
        """For a screen reader, and the tooltip."""
        loss = f"held-out loss {self.loss_text}" if self.loss_text else ""
        return ", ".join(part for part in (self.name, self.state_text, self.model, loss, *self.tags) if part)


def draft_row(key: str, draft: Draft) -> RunRow:
    config = draft.config
    name = config.output.name or "New run"
    model = short_name(config.model.name)
    return RunRow(
        key, "draft", name, model, "", None, f"{name} {model} {config.data.path} draft".lower(), float("inf")
    )


def own_row(key: str, run: RunFold, model: str) -> RunRow:
    """The run that this window trains, as it told of itself."""
    measured = run.best_held_out
    name = run.run_id or "The new run"
    loss = number_text(measured) if measured is not None else ""
    return RunRow(
        key, run.state, name, model, loss, run.share, f"{name} {model}".lower(), run.began_unix, measured
    )


def kept_row(entry: RunEntry, ends_text: str = "") -> RunRow:
    """`ends_text`: when a run that waits will be over, where that is known."""
    summary, kept = entry.summary, entry.notes
    state = "elsewhere" if entry.is_live else entry.state
    share = (
        summary.last_step / summary.total_steps
        if summary.last_step is not None and summary.total_steps
        else None
    )
    model = short_name(summary.model)
    loss = number_text(entry.best_loss)
    return RunRow(
        key=str(summary.path),
        state=state if state in STATES else "unreadable",
        name=entry.title,
        model=model,
        loss_text="" if loss == UNKNOWN else loss,
        share=share,
        found_by=" ".join(
            (summary.run_id, kept.name, summary.model, summary.data, entry.state, *kept.tags, kept.note)
        ).lower(),
        created=summary.created_unix or 0.0,
        loss=entry.best_loss,
        tags=kept.tags,
        queue_place=entry.queue_place,
        ends_text=ends_text,
    )


SORTS = {"new": "Newest first", "old": "Oldest first", "name": "By name", "loss": "Best held-out loss first"}


def shown_rows(rows: Sequence[RunRow], search: str, wanted: str, sort: str = "new") -> tuple[RunRow, ...]:
    """Those that hold every word of `search` and pass the filter `wanted`. What waits or runs stays on top, in its order."""
    words, states = search.lower().split(), FILTERS[wanted][1]
    found = [row for row in rows if row.state in states and all(word in row.found_by for word in words)]
    match sort:
        case "old":
            found.sort(key=lambda row: row.created)
        case "name":
            found.sort(key=lambda row: row.name.lower())
        case "loss":
            found.sort(key=lambda row: float("inf") if row.loss is None else row.loss)
    return tuple(sorted(found, key=_on_top))


def _on_top(row: RunRow) -> tuple[int, int]:
    """The draft, what trains, the queue in its order; then all others as they are sorted."""
    if row.state == "draft":
        return 0, 0
    if row.state in LIVE:
        return 1, 0
    return (2, row.queue_place or 0) if row.state == "queued" else (3, 0)
