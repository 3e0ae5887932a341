"""Data tab, Source: the dataset and those mixed in, looked at as soon as they are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, QTimer

from app.controllers.options import option_values
from app.presenters.words import capital
from app.tabs.data.presenters.source import (
    ON_HUB,
    columns_for,
    leave_out_without,
    source_state,
    with_column,
    with_sources,
)
from app.tabs.data.source_panel import SourcePanel
from app.tabs.data.widgets.rows_dialog import RowsDialog
from qlora_engine.config import DataSettings
from qlora_engine.data import own_rows
from qlora_engine.errors import EngineError

if TYPE_CHECKING:
    from app.tabs.data.controller import DataController

DELAY_MS = 150
"""How long nothing must change before the first rows are looked at."""


class SourceController(QObject):
    def __init__(self, page: DataController, panel: SourcePanel) -> None:
        super().__init__(panel)
        self._page, self._panel, self._job = page, panel, page.work.job
        self._preview: Mapping[str, Any] | None = None
        self._error: EngineError | None = None
        self._seen: DataSettings | None = None
        self.dialog: RowsDialog | None = None
        self._timer = QTimer(self, singleShot=True, interval=DELAY_MS)
        self._timer.timeout.connect(self._look)
        panel.path_chosen.connect(self._job.choose_data)
        panel.sources_added.connect(
            lambda paths: self._job.edit("data.more", with_sources(self._data, paths))
        )
        panel.edited.connect(self._edit)
        panel.reset_asked.connect(self._job.reset_option)
        panel.column_chosen.connect(
            lambda name, column: self._job.edit("data.columns", with_column(self._data, name, column))
        )
        panel.weight_chosen.connect(lambda path, weight: self._mix({**self._data.more, path: weight}))
        panel.remove_asked.connect(self._remove)
        panel.write_asked.connect(self._write)

    @property
    def _data(self) -> DataSettings:
        return self._job.config.data

    def paint(self) -> None:
        if self._seen is not None and self._seen.path != self._data.path:
            self._seen = self._preview = self._error = None
        is_here_now = self._is_on_hub and self._page.is_new
        if (self._seen != self._data or is_here_now) and self._page.screen.isVisible():
            self._timer.start()
        is_looking = self._timer.isActive() or self._page.work.watch.desk.is_asked("preview")
        self._panel.show_state(
            self._data.path, source_state(self._data, self._preview, self._error, is_looking)
        )
        self._panel.render_options(*option_values(self._job.draft))

    @property
    def _is_on_hub(self) -> bool:
        return self._error is not None and self._error.code == ON_HUB

    def _look(self) -> None:
        """Hub data have first rows once they were read."""
        self._seen, self._error = self._data, None
        self._page.work.watch.desk.ask(
            "preview", {"is_read": self._page.is_new}, self._take, self._take_error
        )
        self.paint()

    def _take(self, answer: Mapping[str, Any]) -> None:
        self._preview, self._error = answer, None
        self.paint()

    def _take_error(self, error: EngineError) -> None:
        self._preview, self._error = None, error
        self.paint()

    def _edit(self, path: str, value: Any) -> None:
        """Another format has other fields: what is mapped to them holds no more."""
        if path == "data.format":
            kept = columns_for(self._data, str(value), self._preview)
            if kept != self._data.columns:
                self._job.edit("data.columns", kept)
        self._job.edit(path, value)

    def _remove(self, path: str) -> None:
        """The rows behind those of the source move up."""
        left = leave_out_without(self._data, path, self._page.report if self._page.is_new else None)
        if left != self._data.leave_out:
            self._job.edit("data.leave_out", left)
        self._mix({p: w for p, w in self._data.more.items() if p != path})

    def _mix(self, more: Mapping[str, float]) -> None:
        self._job.edit("data.more", dict(more))

    # ------------------------------------------------------------ rows of one's own

    def _write(self) -> None:
        """A new table, or the one that is chosen."""
        path = Path(self._data.path).expanduser()
        if path.parent != own_rows.folder():
            self._open_dialog("", ())
            return
        background = self._page.studio.background
        background.submit(
            "own rows",
            partial(own_rows.read, path),
            partial(self._open_dialog, path.stem),
            lambda _: self._open_dialog("", ()),
        )

    def _open_dialog(self, name: str, rows: Sequence[Sequence[str]]) -> None:
        self.dialog = RowsDialog(self._panel.window(), name, rows)
        self.dialog.save_asked.connect(
            partial(self._save, own_rows.folder() / f"{name}.jsonl" if name else None)
        )
        self.dialog.open()

    def _save(self, target: Path | None, name: str, rows: list[tuple[str, ...]]) -> None:
        work = partial(own_rows.write, name, rows, target)
        self._page.studio.background.submit("own rows", work, self._saved, self._not_saved)

    def _saved(self, path: Path) -> None:
        if self.dialog is not None:
            self.dialog.accept()
            self.dialog = None
        self._seen = None
        if str(path) == self._data.path:
            self._page.work.watch.begin_anew()
        self._job.choose_data(str(path))
        self.paint()

    def _not_saved(self, error: EngineError) -> None:
        if self.dialog is not None:
            self.dialog.notice.say(capital(error.message), capital(error.hint), "bad")
