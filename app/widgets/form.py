"""Editors made from the options' own declarations: label, help, unit, range and choices come from the knob."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QPaintEvent, QWheelEvent
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QHBoxLayout,
    QLineEdit,
    QPlainTextEdit,
    QSizePolicy,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QVBoxLayout,
    QWidget,
)

from app.presenters.typed import parsed, shown
from app.presenters.words import capital
from app.theme import GAP
from app.widgets.kit import button, column, label, set_role, set_tip
from qlora_engine.knobs import Knob

NARROWEST_EDITOR, EDITOR_WIDTH = 132, 212
LONG_CHOICE = 28
"""Characters from which the choices of an option get a line of their own."""


class QuietCombo(QComboBox):
    """A combo box that a scrolling wheel passes by, so that no setting changes by accident. A text that has no room ends
    in an ellipsis."""

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        room = self.style().subControlRect(
            QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, self
        )
        text = self.fontMetrics().elidedText(
            self.currentText(), Qt.TextElideMode.ElideRight, room.width() - 2
        )
        option.currentText = text
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)


def text_box(name: str, text: str = "") -> QPlainTextEdit:
    """Some lines to write in, with the name that is read out. Tab leaves it, as it leaves everything else."""
    found = QPlainTextEdit(text)
    found.setAccessibleName(name)
    found.setTabChangesFocus(True)
    return found


class KnobRow(QWidget):
    """One option. Signals: `edited(path, value)` when the person changed it, `reset_asked(path)`."""

    edited = Signal(str, object)
    reset_asked = Signal(str)

    def __init__(self, path: str, knob: Knob) -> None:
        super().__init__()
        self.path, self.knob = path, knob
        self._is_painting = False
        self._shown: object = None
        self._editor = self._make_editor()
        self._editor.setAccessibleName(knob.label)
        self._editor.setAccessibleDescription(knob.help)
        self._name = label(knob.label)
        self._name.setBuddy(self._editor)
        self._changed = button(
            "\u21ba", lambda: self.reset_asked.emit(path), "link", "Changed. Back to the preset"
        )
        self._changed.setFixedWidth(18)
        self._changed.setSizePolicy(_kept(self._changed))
        self._help = label(knob.help.replace("`", ""), "small", wraps=True)
        self._problem = label("", "small", wraps=True, tone="bad")
        self._problem.hide()
        top = QHBoxLayout()
        top.setContentsMargins(0, 0, 0, 0)
        top.setSpacing(GAP)
        top.addWidget(self._name)
        if knob.unit:
            top.addWidget(label(knob.unit, "small"))
        top.addStretch(0)
        top.addWidget(self._changed)
        is_long = max(map(len, (knob.choices or {"": ""}).values())) > LONG_CHOICE
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 2, 0, 6)
        outer.setSpacing(1)
        outer.addLayout(top)
        if is_long:
            self._editor.setMaximumWidth(2 * EDITOR_WIDTH)
            top.insertStretch(top.indexOf(self._changed), 1)
            outer.addWidget(self._editor)
        else:
            top.addWidget(self._editor, 1)
        outer.addWidget(self._help)
        outer.addWidget(self._problem)

    def show_value(self, value: Any, problem: str = "", is_changed: bool = False) -> None:
        """Paint without telling anybody; what the person is typing is left alone."""
        if (value, problem, is_changed) == self._shown:
            return
        self._shown = (value, problem, is_changed)
        self._is_painting = True
        self._paint(value)
        self._is_painting = False
        self._problem.setText(capital(problem))
        self._problem.setVisible(bool(problem))
        self._changed.setVisible(is_changed)
        set_role(self._editor, state="bad" if problem else "")

    def focus(self) -> None:
        self._editor.setFocus(Qt.FocusReason.OtherFocusReason)

    def _make_editor(self) -> QWidget:
        knob = self.knob
        if bool in knob.accepted_types:
            box = QCheckBox()
            box.toggled.connect(self._tell)
            return _sized(box)
        if knob.choices:
            combo = QuietCombo()
            for value, text in knob.choices.items():
                combo.addItem(text, value)
            combo.activated.connect(lambda index: self._tell(combo.itemData(index)))
            combo.view().setMinimumWidth(300)
            combo.currentTextChanged.connect(partial(set_tip, combo))
            return _sized(combo)
        edit = QLineEdit()
        edit.setPlaceholderText("automatic" if knob.is_optional else "")
        edit.editingFinished.connect(lambda: self._tell(parsed(knob, edit.text())))
        return _sized(edit)

    def _tell(self, value: Any) -> None:
        if not self._is_painting:
            self._shown = None
            self.edited.emit(self.path, value)

    def _paint(self, value: Any) -> None:
        editor = self._editor
        if isinstance(editor, QCheckBox):
            editor.setChecked(bool(value))
        elif isinstance(editor, QComboBox):
            editor.setCurrentIndex(max(0, editor.findData(value)))
        elif isinstance(editor, QLineEdit) and parsed(self.knob, editor.text()) != value:
            editor.setText(shown(value))


class KnobForm(QWidget):
    """Some options under one another. Signals: `edited(path, value)`, `reset_asked(path)`."""

    edited = Signal(str, object)
    reset_asked = Signal(str)

    def __init__(self, knobs: Mapping[str, Knob]) -> None:
        super().__init__()
        self.rows: dict[str, KnobRow] = {}
        for path, knob in knobs.items():
            found = KnobRow(path, knob)
            found.edited.connect(self.edited)
            found.reset_asked.connect(self.reset_asked)
            self.rows[path] = found
        self.setLayout(column(*self.rows.values(), gap=2))

    def show_values(
        self,
        values: Mapping[str, Any],
        problems: Mapping[str, str],
        changed: frozenset[str],
        is_expert: bool = True,
    ) -> None:
        for path, found in self.rows.items():
            found.show_value(values[path], problems.get(path, ""), path in changed)
            found.setVisible(is_expert or not found.knob.is_expert or path in changed or path in problems)

    def set_editable(self, is_editable: bool) -> None:
        for found in self.rows.values():
            found.setEnabled(is_editable)


def _sized(editor: QWidget) -> QWidget:
    """All equally wide where there is room; the name before it keeps what it needs."""
    editor.setMinimumWidth(NARROWEST_EDITOR)
    editor.setMaximumWidth(EDITOR_WIDTH)
    editor.setSizePolicy(QSizePolicy.Policy.Expanding, editor.sizePolicy().verticalPolicy())
    return editor


def _kept(widget: QWidget) -> Any:
    policy = widget.sizePolicy()
    policy.setRetainSizeWhenHidden(True)
    return policy
