"""A replay of a prompt set as a table: prompts down, who answers across. Without Qt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.presenters.tried import speed_text
from app.presenters.words import capital, count_text, plural
from qlora_engine import events as ev
from qlora_engine.evaluate.answers import StoredAnswer
from qlora_engine.evaluate.replay_plan import Plan


@dataclass(frozen=True)
class AnswerCell:
    """`text` is None while it was not asked yet; `note`: tokens, speed, and whether it was kept from before."""

    text: str | None = None
    note: str = ""


@dataclass(frozen=True)
class ReplayState:
    """`titles` are those of the columns after the prompt's."""

    titles: tuple[str, ...]
    prompts: tuple[str, ...]
    cells: tuple[tuple[AnswerCell, ...], ...]
    kept_text: str


class ReplayFold:
    """`state`: idle, running, failed. The table is what is planned, filled as answers come."""

    def __init__(self) -> None:
        self.state = "idle"
        self.phase_text = ""
        self.share: float | None = None
        self.error_text = ""
        self.error_hint = ""
        self.version = 0
        self._sides: tuple[str, ...] = ()
        self._titles: tuple[str, ...] = ()
        self._prompts: tuple[str, ...] = ()
        self._answers: dict[tuple[int, str], AnswerCell] = {}

    def show_plan(self, plan: Plan | None, prompts: Sequence[str]) -> None:
        """What would be asked, and what runs keep of it already."""
        self.version += 1
        self._prompts = tuple(prompts)
        columns = plan.columns if plan is not None else ()
        self._sides = tuple(column.side for column in columns)
        has_several = sum(c.is_base for c in columns) > 1
        base = "Base of {}" if has_several else "Base model"
        self._titles = tuple(base.format(c.run.run_id) if c.is_base else c.run.run_id for c in columns)
        self._answers = {}
        for cell in plan.cells if plan is not None else ():
            kept = plan.known.get(cell.key) if plan is not None else None
            if kept is not None:
                self._answers[cell.place, cell.column.side] = _cell(kept)

    def begin(self, *, again: bool) -> None:
        self.state, self.phase_text, self.share, self.error_text = "running", "Starting the engine", None, ""
        if again:
            self._answers = {}
        self.version += 1

    def fold(self, event: ev.Event) -> None:
        self.version += 1
        match event:
            case ev.PhaseChanged(_, text):
                self.phase_text, self.share = text, None
            case ev.Progressed(_, done, total, _):
                self.share = done / total if total else None
            case ev.AnswerFinished():
                known = self._answers.get((event.request, event.side))
                if known is None or known.text != event.text:
                    self._answers[event.request, event.side] = AnswerCell(event.text, _note(event))
            case ev.RunFailed(_, message, hint):
                self.state, self.error_text, self.error_hint = "failed", capital(message), capital(hint)
            case ev.RunFinished() | ev.RunStopped():
                self.state = "idle"
            case _:
                pass

    @property
    def missing(self) -> int:
        """Answers that were not given yet."""
        return len(self._prompts) * len(self._sides) - len(self._answers)

    def table(self) -> ReplayState:
        cells = tuple(
            tuple(self._answers.get((place, side), AnswerCell()) for side in self._sides)
            for place in range(len(self._prompts))
        )
        return ReplayState(self._titles, self._prompts, cells, self._kept_text())

    def _kept_text(self) -> str:
        total = len(self._prompts) * len(self._sides)
        if not self._sides:
            return "Choose a run to ask."
        if self.missing == 0:
            return f"All {plural(total, 'answer')} are kept with the runs."
        return f"{count_text(len(self._answers))} of {plural(total, 'answer')} are there; {count_text(self.missing)} to ask."


def _cell(kept: StoredAnswer) -> AnswerCell:
    return AnswerCell(
        kept.text, _words(kept.tokens, kept.seconds, is_complete=kept.is_complete, is_kept=True)
    )


def _note(event: ev.AnswerFinished) -> str:
    return _words(event.tokens, event.seconds, is_complete=event.is_complete, is_kept=False)


def _words(tokens: int, seconds: float, *, is_complete: bool, is_kept: bool) -> str:
    parts = [
        plural(tokens, "token"),
        speed_text(tokens, seconds),
        "" if is_complete else "cut",
        "kept" if is_kept else "",
    ]
    return " \u00b7 ".join(part for part in parts if part)
