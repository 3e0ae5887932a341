"""A size hint that raises ends the program: Qt asks for it also while it takes a window apart."""

from __future__ import annotations

import pytest
import shiboken6
from PySide6.QtWidgets import QLabel, QWidget
from pytestqt.qtbot import QtBot

from app.widgets.figures import Flow
from app.widgets.kit import SideBySide


@pytest.mark.parametrize("kind", [SideBySide, Flow])
def test_what_has_lost_its_children_still_has_a_size(kind: type[QWidget], qtbot: QtBot) -> None:
    parts = [QLabel("one"), QLabel("two")]
    shown = kind(*parts)
    qtbot.addWidget(shown)
    assert shown.minimumSizeHint().width() > 0
    for part in parts:
        shiboken6.delete(part)
    assert shown.minimumSizeHint().width() == 0
