"""Data tab, Report: rows kept and left out, their lengths with the maximum, and what is in them."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QWidget

from app.presenters import numerals
from app.tabs.data.presenters.report import ReportState, keeps_text
from app.tabs.data.widgets.length_histogram import LengthHistogram
from app.tabs.data.widgets.row_links import RowLinks
from app.theme import GAP_WIDE
from app.widgets.kit import Card, Facts, Notice, SideBySide, boxed, button, column, label, row


class ReportPanel(QWidget):
    """Signals: `row_asked(number)`, `maximum_chosen(int)`, `automatic_asked`, `check_asked`."""

    row_asked = Signal(int)
    maximum_chosen = Signal(int)
    automatic_asked = Signal()
    check_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.notice = Notice()
        self.facts, self.sources, self.scripts = Facts(100), Facts(100), Facts(100)
        self.histogram, self.keeps = LengthHistogram(), label(role="strong", wraps=True)
        self.histogram.maximum_moved.connect(self._moved)
        self.histogram.maximum_chosen.connect(self.maximum_chosen)
        self.automatic = button("Automatic: 99 of 100 rows whole", self.automatic_asked.emit)
        self.left_out, self.contents = RowLinks(), RowLinks()
        for links in (self.left_out, self.contents):
            links.row_asked.connect(self.row_asked)
        self.lengths = Card("Lengths").add(
            self.histogram, self.keeps, label("Drag the line, or use the arrow keys and Enter.", "small", wraps=True),
            row(self.automatic, None),
        )  # fmt: skip
        self.left_card = Card("Left out").add(self.left_out)
        self.contents_card = Card("In the rows").add(self.contents)
        self.scripts_card = Card("Scripts").add(self.scripts)
        self.sources_card = Card("Sources").add(self.sources)
        left = column(
            Card("What the model will see").add(self.facts),
            self.sources_card,
            self.scripts_card,
            None,
            gap=GAP_WIDE,
        )
        right = column(self.lengths, self.left_card, self.contents_card, None, gap=GAP_WIDE)
        self.body = SideBySide(boxed(left), boxed(right), stretch=(1, 1), needs=760)
        self.setLayout(column(self.notice, self.body, None, gap=GAP_WIDE))
        self._state: ReportState | None = None

    def show_state(self, state: ReportState | None, notice: str, hint: str) -> None:
        """`state` is None while nothing was read; a notice above an older one says that it is being read anew."""
        actions = (("Check data", self.check_asked.emit),) if state is None and hint else ()
        self.notice.say(notice, hint, "accent", *actions)
        self.body.setVisible(state is not None)
        if state is None or state == self._state:
            return
        self._state = state
        self.facts.set_rows(state.facts)
        self.lengths.setVisible(state.lengths is not None)
        if state.lengths is not None:
            self.histogram.show_lengths(state.lengths)
            self.automatic.setVisible(not state.lengths.is_automatic)
            self._moved(self.histogram.maximum)
        self.left_out.show_lines(state.left_out)
        self.left_card.setVisible(bool(state.left_out))
        self.contents.show_lines(state.contents)
        self.scripts.set_rows(
            [
                (name, f"{numerals.measured(numerals.short(100 * share, 3), '%')} of rows")
                for name, share in state.scripts
            ]
        )
        self.scripts_card.setVisible(bool(state.scripts))
        self.sources.set_rows(state.sources)
        self.sources_card.setVisible(bool(state.sources))

    def restyle(self) -> None:
        self.histogram.update()

    def _moved(self, maximum: int) -> None:
        if self._state is not None and self._state.lengths is not None:
            self.keeps.setText(keeps_text(self._state.lengths, maximum))
