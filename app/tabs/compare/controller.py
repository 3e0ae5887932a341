"""Compare: the chosen runs are read off the GUI thread; how they are looked at is computed there too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QFileDialog

from app.studio import Studio
from app.tab import TabController
from app.tabs.compare.presenter import (
    UNITS,
    WHAT,
    Experiment,
    Picture,
    View,
    difference_rows,
    experiments_of,
    figure_rows,
    picture,
    titles,
)
from app.tabs.compare.rows import RowsController
from app.tabs.compare.screen import CompareScreen
from qlora_engine.errors import EngineError
from qlora_engine.runs.comparison import Comparison, compare
from qlora_engine.runs.index import RunEntry
from qlora_engine.runs.record import RunFolder

SETTLE_MS = 40
"""A slider that moves is followed when it rests for so long."""
FILES = {"png": "Pictures (*.png)", "svg": "Drawings (*.svg)", "csv": "Tables (*.csv)"}


class CompareController(TabController):
    wants_charts = True

    def __init__(self, studio: Studio, screen: CompareScreen) -> None:
        self._studio, self._screen = studio, screen
        self._read: tuple[str, ...] = ()
        self._stands: list[RunEntry | None] = []
        self.found: Comparison | None = None
        self.rows = RowsController(studio, screen.rows)
        self._soon = QTimer(screen, singleShot=True, interval=SETTLE_MS)
        self._soon.timeout.connect(self._draw_soon)
        studio.shown.changed.connect(self._look)
        screen.looked.connect(lambda _: self._soon.start())
        screen.save_asked.connect(self._save)

        studio.history.changed.connect(self._look_again)

    def entered(self, detail: str = "") -> None:
        self._look()

    def restyle(self) -> None:
        if self._screen.chart is not None:
            self._screen.chart.restyle()

    def take_charts(self, parts: Any) -> None:
        from app.widgets.compare_chart import CompareChart

        self._screen.set_chart(CompareChart())
        self._draw_soon()

    def _look(self) -> None:
        keys = self._studio.shown.keys
        if len(keys) < 2 or keys == self._read:
            return
        self._read = keys
        self._stands = self._standing(keys)
        paths = [Path(key) for key in keys]
        self._studio.background.submit("compare", lambda: _read(paths), self._take, self._refuse)

    def _look_again(self) -> None:
        """When a run that is shown here has gone on."""
        keys = self._studio.shown.keys
        if self._screen.isVisible() and keys == self._read and self._standing(keys) != self._stands:
            self._read = ()
            self._look()

    def _standing(self, keys: tuple[str, ...]) -> list[RunEntry | None]:
        return [self._studio.history.entry_of(key) for key in keys]

    def _take(self, read: tuple[Comparison, list[Experiment]]) -> None:
        self.found, experiments = read
        found = self.found
        self._screen.notice.say("")
        self._screen.show_experiments(experiments)
        self.rows.show([side.summary.path for side in found.sides], titles(found))
        self._screen.show_tables(titles(found), difference_rows(found), figure_rows(found))
        self._draw_soon()

    def _refuse(self, error: EngineError) -> None:
        self._screen.notice.say(error.message, error.hint, "bad")

    def _draw_soon(self) -> None:
        found, view = self.found, self._screen.view
        if found is not None and self._screen.chart is not None:
            self._studio.background.submit(
                "picture", lambda: picture(found, view), lambda drawn: self._draw(drawn, view)
            )

    def _draw(self, drawn: Picture, view: View) -> None:
        chart = self._screen.chart
        if chart is not None:
            self._screen.show_legend(drawn.lines)
            chart.set_scale(view.axis, dict(WHAT)[view.what], UNITS[view.what], is_log=view.is_log)
            chart.show_lines([(d.title, d.colour, d.x, d.y, d.is_dots) for d in drawn.lines], drawn.bounds)

    def _save(self, kind: str) -> None:
        name, _ = QFileDialog.getSaveFileName(
            self._screen, "Save the comparison", f"comparison.{kind}", FILES[kind]
        )
        if name:
            self.save_as(kind, Path(name))

    def save_as(self, kind: str, path: Path) -> None:
        """`png` and `svg` as the chart is seen, `csv` every step of every run."""
        if self.found is None or self._screen.chart is None:
            return
        try:
            if kind == "csv":
                path.write_text(self.found.csv(), encoding="utf-8")
            else:
                self._screen.chart.save(path, is_drawing=kind == "svg")
        except OSError as error:
            self._screen.notice.say(f"Not saved: {error.strerror or error}", "Choose another folder.", "bad")
            return
        self._screen.notice.say(f"Saved to {path}", "", "good")


def _read(paths: list[Path]) -> tuple[Comparison, list[Experiment]]:
    """For a pool thread: the runs beside each other, and the experiments that they are of.

    Raises:
        EngineError: as `compare`.
    """
    return compare([RunFolder(path) for path in paths]), experiments_of(paths)
