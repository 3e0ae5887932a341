"""A bar that has stopped moving to and fro costs nothing; nobody uses another kind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QEvent, QObject

from app import theme
from app.widgets.share_bar import ShareBar

ROOT = Path(__file__).resolve().parents[2]


class Paints(QObject):
    count = 0

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        self.count += event.type() == QEvent.Type.Paint
        return False


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.4, 1.0])
def test_a_bar_whose_end_is_known_is_not_painted_again_and_again(qtbot: Any, qapp: Any, share: float) -> None:
    theme.apply(qapp, "dark")
    bar, paints = ShareBar(), Paints()
    qtbot.addWidget(bar)
    bar.installEventFilter(paints)
    bar.resize(300, 8)
    bar.show_share(None)
    bar.show()
    qtbot.waitUntil(lambda: paints.count > 5)
    bar.show_share(share)
    qtbot.wait(200)
    before = paints.count
    qtbot.wait(400)
    assert paints.count <= before + 1
    bar.show_share(None)
    qtbot.waitUntil(lambda: paints.count > before + 5)


def test_every_bar_is_one_of_these() -> None:
    others = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "app").rglob("*.py")
        if path.name != "share_bar.py" and re.search(r"\bQProgressBar\(", path.read_text(encoding="utf-8"))
    ]
    assert others == []
