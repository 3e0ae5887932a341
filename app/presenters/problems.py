"""What stands between a person and Start: every problem with the tab and the option where it is mended."""

from __future__ import annotations

from dataclasses import dataclass

from app.presenters.draft import Draft
from app.presenters.in_window import in_window
from app.presenters.words import capital
from qlora_engine.config import all_knobs
from qlora_engine.errors import EngineError

PAGES = ("model", "data", "settings", "memory")
"""The tabs of a draft on which something can be mended."""

MEANING = "data.meaning"
FINDINGS = (MEANING, "data.marked", "data.preference", "data.columns", "data.nothing_trained")
"""What can block, and is mended on the doctor's tab."""
DOCTOR = "data.doctor"
"""Where on the Data page the doctor's findings are, as if it were an option."""


@dataclass(frozen=True)
class Problem:
    """`page` is where it is mended; `path` the option, if it is one."""

    page: str
    text: str
    hint: str = ""
    path: str = ""

    @property
    def page_title(self) -> str:
        return self.page.title()


def problems_of(
    draft: Draft, facts_error: EngineError | None, data_error: EngineError | None
) -> tuple[Problem, ...]:
    """All of them, in the order of the pages."""
    found = []
    if facts_error is not None:
        found.append(Problem("model", capital(facts_error.message), capital(in_window(facts_error.hint))))
    if data_error is not None:
        told_by = DOCTOR if data_error.code in FINDINGS else ""
        found.append(
            Problem("data", capital(data_error.message), capital(in_window(data_error.hint)), told_by)
        )
    knobs = all_knobs()
    for issue in draft.issues:
        name = knobs[issue.path].label if issue.path in knobs else issue.path
        found.append(Problem(page_of(issue.path), f"{name} {issue.message}", path=issue.path))
    return tuple(sorted(found, key=lambda problem: PAGES.index(problem.page)))


def page_of(path: str) -> str:
    """The page on which an option is edited."""
    table = path.split(".", 1)[0]
    return {"model": "model", "data": "data"}.get(table, "settings")
