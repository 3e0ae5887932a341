"""Held-out rows: those a run predicts worst and best, expected against got."""

from __future__ import annotations

import html

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QTextBrowser, QWidget

from app import theme
from app.presenters.predicted import PredictionRow, PredictionsFold, Split, titles
from app.widgets.kit import Notice, Segments, button, column, label, row
from app.widgets.working import Working


class HeldOutPanel(QWidget):
    """Signals: `score_asked`, `stop_asked`."""

    score_asked = Signal()
    stop_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.score = button("Score held-out rows", self.score_asked.emit, "primary")
        top = row(self.score, None)
        self.notice = Notice()
        self.working = Working()
        self.working.stop_asked.connect(self.stop_asked)
        self.summary = label(role="quiet", wraps=True)
        self.ends = Segments(titles())
        self.ends.set_value("worst")
        self.ends.chosen.connect(lambda *_: self._repaint())
        middle = row(self.summary, self.ends)
        middle.setStretch(0, 1)
        self.rows = QTextBrowser()
        self.rows.setOpenLinks(False)
        self.rows.setAccessibleName("Held-out rows")
        outer = column(top, self.notice, self.working, middle, self.rows, gap=12)
        outer.setStretch(4, 100)
        outer.addStretch(1)  # what is above stays above while there are no rows
        self.setLayout(outer)
        self._fold: PredictionsFold | None = None
        self._shown: object = None

    def show_state(self, fold: PredictionsFold, *, has_runs: bool, blocked_text: str) -> None:
        self._fold = fold
        is_running = fold.state == "running"
        self.score.setEnabled(has_runs and not is_running and not blocked_text)
        self.score.setText("Score again" if fold.found is not None else "Score held-out rows")
        self.working.show_work(fold.working_text, fold.share)
        if fold.error_text:
            self.notice.say(fold.error_text, fold.error_hint, "bad")
        elif not has_runs:
            self.notice.say(
                "Nothing was trained here yet.", "Rows that were held out of a finished run are scored here."
            )
        elif blocked_text:
            self.notice.say(blocked_text)
        elif fold.found is None and not is_running:
            self.notice.say(
                "The held-out rows of this run were not scored yet.",
                "Each row's loss is measured, and the best and the worst rows are answered.",
            )
        else:
            self.notice.say("")
        self._repaint()

    def repaint_rows(self) -> None:
        """After a change of theme."""
        self._shown = None
        self._repaint()

    def _repaint(self) -> None:
        if self._fold is None:
            return
        state = self._fold.shown(self.ends.value)
        self.ends.setVisible(bool(state.rows))
        self.rows.setVisible(bool(state.rows))
        self.summary.setText(state.summary)
        if state != self._shown:
            self._shown = state
            self.rows.setHtml("".join(_html(found) for found in state.rows))


def _html(found: PredictionRow) -> str:
    t = theme.tokens()
    quiet = f"color:{t.quiet}; font-size:12px"
    return (
        f'<p style="margin:0 0 2px 0"><span style="font-weight:600">{html.escape(found.heading)}</span> '
        f'<span style="{quiet}"> &nbsp; {html.escape(found.detail)}</span></p>'
        f'<p style="margin:0 0 4px 0; color:{t.accent}">{_text(found.question)}</p>'
        '<table width="100%" cellspacing="0" cellpadding="0"><tr>'
        f'<td width="50%" style="padding-right:12px"><span style="{quiet}">Expected</span><br/>{_split(found.expected, t.good)}</td>'
        f'<td width="50%"><span style="{quiet}">Got</span><br/>{_split(found.got, t.bad)}</td>'
        '</tr></table><p style="margin:0 0 12px 0; font-size:6px">&nbsp;</p>'
    )


def _split(text: Split, colour: str) -> str:
    """The differing part underlined and bold as well as coloured."""
    if not text.differing:
        return _text(text.same)
    marked = f'<span style="color:{colour}; font-weight:600; text-decoration:underline">{_text(text.differing)}</span>'
    return f"{_text(text.same)}{marked}"


def _text(text: str) -> str:
    return html.escape(text).replace("\n", "<br/>")
