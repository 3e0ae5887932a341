"""Tokens as chips, marked by what becomes of each: by fill, line and letter, never by colour alone."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QPoint, QRect, QSize, Qt, Signal
from PySide6.QtGui import (
    QBrush,
    QColor,
    QFont,
    QFontMetrics,
    QHelpEvent,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QResizeEvent,
)
from PySide6.QtWidgets import QAbstractScrollArea, QSizePolicy, QToolTip, QWidget

from app import theme
from app.presenters.words import count_text
from app.tabs.data.presenters.rows import STATES, Rendered, Token
from app.widgets.kit import as_written, label, row

HIGH, LINE, INSET, PAD = 22, 27, 4, 5
SPACE_BELOW = 10


def paint_chip(painter: QPainter, place: QRect, text: str, state: str, fonts: tuple[QFont, QFont], *, is_chosen: bool = False) -> None:  # fmt: skip
    """Trained: filled, with a bar below. Context: a faint fill. Special: dashed and slanted. Padding: hatched. Cut: struck
    through."""
    t = theme.tokens()
    painter.setFont(fonts[1] if state == "s" else fonts[0])
    painter.setPen(Qt.PenStyle.NoPen)
    if state == "t":
        painter.fillRect(place, QColor("#1F4D3A" if t.is_dark else "#CDEFDD"))
        painter.fillRect(QRect(place.left(), place.bottom() - 1, place.width(), 2), QColor(t.good))
    elif state == "m":
        painter.fillRect(place, QColor(t.raised))
    elif state == "p":
        painter.fillRect(place, QBrush(QColor(t.quiet), Qt.BrushStyle.BDiagPattern))
    if state in "spc" or is_chosen:
        pen = QPen(QColor(t.accent if is_chosen else t.bad if state == "c" else t.quiet))
        pen.setStyle(Qt.PenStyle.SolidLine if is_chosen or state == "p" else Qt.PenStyle.DashLine)
        painter.setPen(pen)
        painter.drawRect(place.adjusted(0, 0, -1, -1))
    painter.setPen(QColor({"t": t.text, "m": t.text, "c": t.bad}.get(state, t.quiet)))
    painter.drawText(
        place.adjusted(PAD, 0, -PAD, 0), Qt.AlignmentFlag.AlignVCenter | Qt.TextFlag.TextSingleLine, text
    )
    if state == "c":
        middle = place.center().y() + 1
        painter.drawLine(place.left() + 2, middle, place.right() - 2, middle)


def chip_fonts() -> tuple[QFont, QFont]:
    """Plain, and slanted for special tokens."""
    slanted = theme.font(theme.NORMAL)
    slanted.setItalic(True)
    return theme.font(theme.NORMAL), slanted


class ChipLayout:
    """Where the chips of some rows stand in a given width; `heads` are the lines above rows and the gaps in them."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.places: list[QRect] = []
        self.heads: list[tuple[QRect, str]] = []
        self.height = 0
        self._widths: dict[tuple[str, bool], int] = {}
        self._metrics = tuple(QFontMetrics(font) for font in chip_fonts())

    def fill(self, rows: Sequence[Rendered], width: int) -> None:
        y = INSET
        for each in rows:
            y = self._fill_row(each, y, width - 2 * INSET) + SPACE_BELOW
        self.height = y

    def _fill_row(self, each: Rendered, y: int, room: int) -> int:
        flags = int(Qt.TextFlag.TextWordWrap)
        head = self._metrics[0].boundingRect(QRect(0, 0, room, 1 << 16), flags, each.headline)
        self.heads.append((QRect(INSET, y, room, head.height()), each.headline))
        x, y = INSET, y + head.height() + 5
        for place, token in enumerate(each.tokens):
            if each.gap and place == each.gap_at:
                words = f"\u2026 {count_text(each.gap)} tokens between are not shown \u2026"
                self.heads.append((QRect(INSET, y + LINE, room, HIGH), words))
                x, y = INSET, y + 2 * LINE
            wide = min(self._width(token), room)
            if x + wide > INSET + room:
                x, y = INSET, y + LINE
            self.tokens.append(token)
            self.places.append(QRect(x, y, wide, HIGH))
            x += wide + 2
            if "\n" in token.text:
                x, y = INSET, y + LINE
        return y + LINE

    def _width(self, token: Token) -> int:
        key = (token.shown, token.state == "s")
        if key not in self._widths:
            self._widths[key] = self._metrics[key[1]].horizontalAdvance(token.shown) + 2 * PAD + 1
        return self._widths[key]

    def first_below(self, y: int) -> int:
        """The first token whose chip begins at `y` or below: they stand from top to bottom."""
        low, high = 0, len(self.places)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.places[middle].top() < y else (low, middle)
        return low

    def at(self, point: QPoint) -> int:
        """The token at a point; -1 where there is none."""
        for number in range(self.first_below(point.y() - HIGH), len(self.places)):
            if self.places[number].contains(point):
                return number
            if self.places[number].top() > point.y():
                break
        return -1


class TokenChips(QAbstractScrollArea):
    """Rows of tokens, one under the other; only what is in sight is painted. The arrow keys go from token to token.

    Signals: `token_shown(str)` with what is to be said of the token under the mouse or the keys.
    """

    token_shown = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.setAccessibleName("Tokens as the model is fed them")
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.viewport().setMouseTracking(True)
        self.verticalScrollBar().setSingleStep(LINE)
        self._rows: tuple[Rendered, ...] = ()
        self._laid = ChipLayout()
        self._chosen = -1

    def show_rows(self, rows: Sequence[Rendered]) -> None:
        self._rows, self._chosen = tuple(rows), -1
        self.verticalScrollBar().setValue(0)
        self._lay_out()
        self.setAccessibleDescription(" ".join(each.headline for each in self._rows))

    def sizeHint(self) -> QSize:
        return QSize(420, 240)

    def minimumSizeHint(self) -> QSize:
        return QSize(160, 96)

    @property
    def shown_tokens(self) -> Sequence[Token]:
        return self._laid.tokens

    @property
    def _offset(self) -> QPoint:
        return QPoint(0, self.verticalScrollBar().value())

    def token_at(self, at: QPoint) -> Token | None:
        place = self._laid.at(at + self._offset)
        return None if place < 0 else self._laid.tokens[place]

    def _lay_out(self) -> None:
        self._laid = ChipLayout()
        self._laid.fill(self._rows, self.viewport().width())
        bar, high = self.verticalScrollBar(), self.viewport().height()
        bar.setPageStep(high)
        bar.setRange(0, max(0, self._laid.height - high))
        self.viewport().update()

    # ------------------------------------------------------------ painting and pointing

    def paintEvent(self, event: QPaintEvent) -> None:
        painter, fonts = QPainter(self.viewport()), chip_fonts()
        offset, seen = self.verticalScrollBar().value(), event.rect()
        painter.setFont(fonts[0])
        painter.setPen(QColor(theme.tokens().quiet))
        for place, text in self._laid.heads:
            moved = place.translated(0, -offset)
            if moved.intersects(seen):
                painter.drawText(moved, int(Qt.TextFlag.TextWordWrap), text)
        for number in range(self._laid.first_below(offset + seen.top() - LINE), len(self._laid.places)):
            moved = self._laid.places[number].translated(0, -offset)
            if moved.top() > seen.bottom():
                break
            token = self._laid.tokens[number]
            paint_chip(painter, moved, token.shown, token.state, fonts, is_chosen=number == self._chosen)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._lay_out()

    def viewportEvent(self, event: QEvent) -> bool:
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            token = self.token_at(event.pos())
            QToolTip.showText(event.globalPos(), as_written(token.words) if token else "", self.viewport())
            return True
        return super().viewportEvent(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        self._choose(self._laid.at(event.position().toPoint() + self._offset))

    def keyPressEvent(self, event: QKeyEvent) -> None:
        step = {Qt.Key.Key_Left: -1, Qt.Key.Key_Right: 1, Qt.Key.Key_Home: -len(self._laid.tokens), Qt.Key.Key_End: len(self._laid.tokens)}.get(Qt.Key(event.key()))  # fmt: skip
        if step is None or not self._laid.tokens:
            super().keyPressEvent(event)
            return
        self._choose(min(max(0, self._chosen + step), len(self._laid.tokens) - 1))
        place, bar = self._laid.places[self._chosen], self.verticalScrollBar()
        if place.top() < bar.value() or place.bottom() > bar.value() + self.viewport().height():
            bar.setValue(place.top() - self.viewport().height() // 2)

    def _choose(self, number: int) -> None:
        if number != self._chosen:
            self._chosen = number
            self.viewport().update()
            self.token_shown.emit(self._laid.tokens[number].words.replace("\n", ". ") if number >= 0 else "")


class _Sample(QWidget):
    def __init__(self, state: str) -> None:
        super().__init__()
        self._state = state
        self.setFixedSize(30, HIGH)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)

    def paintEvent(self, event: QPaintEvent) -> None:
        paint_chip(QPainter(self), self.rect(), "Aa", self._state, chip_fonts())


def legend(states: str = "tmsc") -> QWidget:
    """What the marks mean."""
    from app.widgets.figures import Flow
    from app.widgets.kit import boxed

    return Flow(
        *(boxed(row(_Sample(state), label(STATES[state][0], "small"), None, gap=6)) for state in states)
    )
