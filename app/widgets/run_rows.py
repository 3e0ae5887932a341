"""The rows of the run list: a model that tells only what changed, and how a row is painted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QPersistentModelIndex, QRect, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter
from PySide6.QtWidgets import QListView, QStyle, QStyledItemDelegate, QStyleOptionViewItem

from app import theme
from app.presenters.run_rows import LIVE, RunRow
from app.widgets.kit import as_written

Index = QModelIndex | QPersistentModelIndex
HEIGHT, NARROW_HEIGHT, EDGE, SIGN = 48, 36, 8, 18
BAR = 3
ROW = Qt.ItemDataRole.UserRole


class RunRowModel(QAbstractListModel):
    """Rows by place; a row whose text changed is told alone, so that a selection survives."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: tuple[RunRow, ...] = ()

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008 - Qt's own signature
        return len(self.rows)

    def data(self, index: Index, role: int = 0) -> Any:
        if not index.isValid():
            return None
        row = self.rows[index.row()]
        match role:
            case Qt.ItemDataRole.DisplayRole:
                return row.name
            case Qt.ItemDataRole.AccessibleTextRole:
                return row.spoken
            case Qt.ItemDataRole.ToolTipRole:
                return as_written(row.spoken)
            case Qt.ItemDataRole.UserRole:
                return row
        return None

    def set_rows(self, rows: Sequence[RunRow]) -> None:
        wanted, before = tuple(rows), self.rows
        if [row.key for row in wanted] != [row.key for row in before]:
            self.beginResetModel()
            self.rows = wanted
            self.endResetModel()
            return
        self.rows = wanted
        for place, (old, new) in enumerate(zip(before, wanted, strict=True)):
            if old != new:
                self.dataChanged.emit(self.index(place), self.index(place))


class RunRowPainter(QStyledItemDelegate):
    """Sign, name, and under it state, loss and model; a bar for one that is under way."""

    def __init__(self, view: QListView) -> None:
        super().__init__(view)
        self._view = view
        self.is_narrow = False

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        return QSize(40, NARROW_HEIGHT if self.is_narrow else HEIGHT)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        row: RunRow = index.data(ROW)
        t = theme.tokens()
        room = QRect(option.rect)
        state = option.state
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        is_chosen = bool(state & QStyle.StateFlag.State_Selected)
        if is_chosen or state & QStyle.StateFlag.State_MouseOver:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(t.accent_soft if is_chosen else t.raised))
            painter.drawRoundedRect(QRectF(room.adjusted(1, 1, -1, -1)), theme.RADIUS, theme.RADIUS)
        if state & QStyle.StateFlag.State_HasFocus:
            painter.setPen(QColor(t.accent))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(QRectF(room.adjusted(1, 1, -1, -1)), theme.RADIUS, theme.RADIUS)
        self._sign(painter, row, room)
        if not self.is_narrow:
            self._words(painter, row, room)
        if row.state in LIVE and row.share is not None:
            self._bar(painter, row.share, room)
        painter.restore()

    def _sign(self, painter: QPainter, row: RunRow, room: QRect) -> None:
        painter.setPen(QColor(getattr(theme.tokens(), row.tone)))
        painter.setFont(theme.font(theme.LARGE, QFont.Weight.DemiBold))
        if self.is_narrow:
            painter.drawText(room, Qt.AlignmentFlag.AlignCenter, row.sign)
        else:
            at = QRect(room.left() + EDGE, room.top(), SIGN, room.height())
            painter.drawText(at, Qt.AlignmentFlag.AlignCenter, row.sign)

    def _words(self, painter: QPainter, row: RunRow, room: QRect) -> None:
        t = theme.tokens()
        left, width = room.left() + EDGE + SIGN + 6, room.width() - 2 * EDGE - SIGN - 6
        middle = room.top() + room.height() // 2
        for text, font, colour, top, mode in (
            (
                row.name,
                theme.font(theme.NORMAL, QFont.Weight.DemiBold),
                t.text,
                room.top() + 5,
                Qt.TextElideMode.ElideMiddle,
            ),
            (row.detail, theme.font(theme.SMALL), t.quiet, middle, Qt.TextElideMode.ElideRight),
        ):
            painter.setFont(font)
            painter.setPen(QColor(colour))
            at = QRect(left, top, width, room.height() // 2 - 4)
            shown = QFontMetrics(font).elidedText(text, mode, width)
            painter.drawText(at, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, shown)

    def _bar(self, painter: QPainter, share: float, room: QRect) -> None:
        t = theme.tokens()
        whole = QRectF(room.left() + EDGE, room.bottom() - BAR - 1, room.width() - 2 * EDGE, BAR)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(t.line))
        painter.drawRect(whole)
        painter.setBrush(QColor(t.accent))
        painter.drawRect(QRectF(whole.left(), whole.top(), whole.width() * min(1.0, share), BAR))
