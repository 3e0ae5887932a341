"""Parts of the settings dialog that ask somebody else: the hub's token, in the hub library's own store."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QLineEdit, QWidget

from app.widgets.kit import button, column, label, row


class TokenForm(QWidget):
    """Signals: `save_asked(token)`, `forget_asked`."""

    save_asked = Signal(str)
    forget_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.told = label("Looking for a token.", "small", wraps=True)
        self.field = QLineEdit()
        self.field.setEchoMode(QLineEdit.EchoMode.Password)
        self.field.setAccessibleName("Token of the Hugging Face hub")
        self.field.setPlaceholderText("hf_\u2026")
        self.save = button("Keep token", self._save)
        self.forget = button("Forget it", self.forget_asked.emit)
        self.field.textChanged.connect(lambda text: self.save.setEnabled(bool(text.strip())))
        self.save.setEnabled(False)
        self.setLayout(column(self.told, row(self.field, self.save, self.forget), gap=4))

    def show_token(self, has_token: bool, problem: str = "") -> None:
        where = "kept where all programs of the hub find it"
        self.told.setText(
            problem
            or (f"There is a token, {where}." if has_token else "None is kept. Gated models need one.")
        )
        self.forget.setEnabled(has_token)
        self.field.clear()

    def _save(self) -> None:
        self.save_asked.emit(self.field.text().strip())
