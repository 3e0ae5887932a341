"""What a tab of a run is: each folder of `app/tabs` describes itself with one `Tab`, and nothing else knows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qlora_engine.config import TrainingConfig

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page

DRAFT, RUN, SEVERAL = "draft", "run", "several"
"""What may be chosen in the list of runs."""


class Ways(Protocol):
    """What leads out of a tab."""

    def go_to(self, tab: str, detail: str = "") -> None: ...

    def resume(self, run_dir: Path, accept: Sequence[str] = ()) -> None: ...

    def draft_from(self, config: TrainingConfig) -> None: ...


class TabController:
    """Connects services, presenter and screen of one tab. What a tab does not care about it does not override."""

    wants_charts = False

    def entered(self, detail: str = "") -> None:
        """The tab came to the front; `detail` may name an option to focus."""

    def restyle(self) -> None:
        """After a change of theme: what paints itself takes the new colours."""

    def take_charts(self, parts: Any) -> None:
        """The chart library is there: `parts` makes charts."""


@dataclass(frozen=True)
class Tab:
    """`place` orders them; tabs of one `group` stand under one heading. `of` tells which runs have it: a draft, one that
    was started, several at once. `opens`: of those, for which it is what is seen first. `help` is the page of the help."""

    name: str
    title: str
    place: int
    make: Callable[[Studio, Ways], tuple[Page, TabController]]
    group: str = ""
    of: tuple[str, ...] = (DRAFT, RUN)
    opens: tuple[str, ...] = ()
    help: str = "start"

    @property
    def heading(self) -> str:
        return self.group or self.title
