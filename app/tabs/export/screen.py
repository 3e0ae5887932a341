"""Export page: write a run as an adapter or a merged model, and prove that it is what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PySide6.QtCore import QUrl, Signal
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QFileDialog,
    QLabel,
    QLineEdit,
    QRadioButton,
    QVBoxLayout,
    QWidget,
)

from app.presenters.export import CheckLine, ExportFold
from app.theme import GAP_WIDE
from app.widgets.form import QuietCombo
from app.widgets.kit import Card, SideBySide, boxed, button, column, label, row, set_role, set_tip
from app.widgets.page import Page
from app.widgets.share_bar import ShareBar


class ExportScreen(Page):
    """Signals: `format_chosen(str)`, `export_asked`, `cancel_asked`, `target_changed(str)`, `drop_asked`,
    `push_asked`."""

    format_chosen = Signal(str)
    export_asked = Signal()
    cancel_asked = Signal()
    target_changed = Signal(str)
    drop_asked = Signal()
    push_asked = Signal()

    def __init__(self) -> None:
        super().__init__("Export", "Write the result in a form that other programs load")
        self.export = button("Export", self.export_asked.emit, "primary")
        self.buttons.addWidget(self.export)
        self._what, self._where = self._make_what(), self._make_where()
        self.proof = self._make_proof()
        left = column(self._what, self._where, None, gap=GAP_WIDE)
        self.content.addWidget(SideBySide(boxed(left), self.proof), 1)
        self._result_path = ""

    def _make_what(self) -> Card:
        """Which format, and how it is stored."""
        self.formats = QButtonGroup(self)
        self._formats_box = QVBoxLayout()
        self._radios: dict[str, QRadioButton] = {}
        self._details: dict[str, QLabel] = {}
        self.dtype = QuietCombo()
        self.dtype.setAccessibleName("Stored as")
        self.dtype.setSizeAdjustPolicy(QuietCombo.SizeAdjustPolicy.AdjustToContents)
        self.dtype.setMinimumWidth(150)
        self.into = QuietCombo()
        self.into.setAccessibleName("Merged into")
        set_tip(self.into, "The adapter was trained against the 4-bit weights; merged into the original ones it usually does as well or better")  # fmt: skip
        self.merge_options = boxed(column(
            row(label("Stored as", "quiet"), self.dtype, None), row(label("Merged into", "quiet"), self.into, None), gap=6,
        ))  # fmt: skip
        what = Card("What")
        what.body.addLayout(self._formats_box)
        return what.add(self.merge_options)

    def _make_where(self) -> Card:
        """The folder, what an earlier export left there, and whether the result is proven."""
        self.out = QLineEdit()
        self.out.setAccessibleName("Target folder")
        self.out.textChanged.connect(self.target_changed)
        self.kept = label(role="small", tone="warning", wraps=True)
        self.drop = button("Remove what is kept", self.drop_asked.emit)
        self.kept_box = boxed(column(self.kept, row(self.drop, None), gap=4))
        self.kept_box.hide()
        self.verify = QCheckBox("Prove it")
        self.verify.setChecked(True)
        proves = label(
            "Load it again in a fresh process and compare it with base + adapter", "small", wraps=True
        )
        proves.setContentsMargins(24, 0, 0, 0)
        return Card("Where").add(
            row(self.out, button("Choose\u2026", self._choose)),
            self.kept_box,
            column(self.verify, proves, gap=2),
        )

    def _make_proof(self) -> Card:
        """How far it is, what came of it, and what was checked."""
        self.progress_text, self.progress = label(role="quiet"), ShareBar()
        self.cancel = button("Cancel", self.cancel_asked.emit)
        self.progress_row = boxed(row(boxed(column(self.progress_text, self.progress, gap=4)), self.cancel))
        self.outcome = label(wraps=True, selectable=True)
        self.merges = label(role="quiet", wraps=True, selectable=True)
        self.open = button("Open folder", self._open)
        self.notes = label(role="small", tone="warning", wraps=True)
        self.push_row = self._make_push_row()
        self.push_text = label(role="small", wraps=True, selectable=True)
        self.checks = QVBoxLayout()
        self.empty = label("The proof appears here, step by step.", "quiet", wraps=True)
        proof = Card("Proof").add(
            self.progress_row, self.notes, self.outcome, self.merges, row(self.open, None), self.push_row, self.push_text
        )  # fmt: skip
        proof.body.addLayout(self.checks)
        proof.add(self.empty)
        proof.body.addStretch(1)
        return proof

    def _make_push_row(self) -> QWidget:
        self.repository = QLineEdit()
        self.repository.setAccessibleName("Repository on the hub")
        self.repository.setPlaceholderText("owner/name")
        self.public = QCheckBox("Public")
        set_tip(self.public, "Everybody can see it. Without this only you and whom you let in.")
        self.push = button("Upload to the hub", self.push_asked.emit)
        self.repository.textChanged.connect(lambda text: self.push.setEnabled("/" in text))
        self.push.setEnabled(False)
        return boxed(row(self.repository, self.public, self.push))

    def set_formats(self, formats: Mapping[str, tuple[str, str]]) -> None:
        for name, (title, detail) in formats.items():
            radio = QRadioButton(title)
            set_tip(radio, detail)
            radio.clicked.connect(lambda *_, n=name: self.format_chosen.emit(n))
            self.formats.addButton(radio)
            self._radios[name] = radio
            note = label(detail, "small", wraps=True)
            note.setContentsMargins(24, 0, 0, 6)
            self._details[name] = note
            self._formats_box.addWidget(radio)
            self._formats_box.addWidget(note)

    def set_choice(
        self, kind: str, target: str, dtypes: Sequence[tuple[str, str]], merges: Sequence[tuple[str, str]]
    ) -> None:
        """Show a format with how it can be stored and what the adapter can be merged into."""
        self._radios[kind].setChecked(True)
        for name, note in self._details.items():  # of the others it is in the tooltip
            note.setVisible(name == kind)
        for combo, choices in ((self.dtype, dtypes), (self.into, merges)):
            combo.clear()
            for value, text in choices:
                combo.addItem(text, value)
        self.merge_options.setVisible(bool(dtypes))
        self.out.setText(target)

    def show_kept(self, text: str) -> None:
        """What an earlier export to the target left; nothing when empty."""
        self.kept.setText(text)
        self.kept_box.setVisible(bool(text))

    def set_editable(self, is_editable: bool) -> None:
        """What is being exported is not changed under the engine's hands."""
        for card in (self._what, self._where):
            card.setEnabled(is_editable)

    def options(self) -> dict[str, object]:
        found: dict[str, object] = {"verify": self.verify.isChecked()}
        if self.dtype.count():
            found["dtype"] = self.dtype.currentData()
            if self.into.currentData():
                found["into"] = self.into.currentData()
        return found

    def show_state(self, fold: ExportFold, *, has_runs: bool) -> None:
        is_running = fold.state == "running"
        self.export.setEnabled(has_runs and not is_running)
        self.progress_row.setVisible(is_running)
        self.progress_text.setText(fold.phase_text)
        self.progress.show_share(fold.share)
        told = fold.outcome_text or fold.stopped_text
        self.outcome.setText(told)
        self.outcome.setVisible(bool(told))
        self.notes.setText("\n".join(text for text, tone in fold.notes if tone))
        self.notes.setVisible(bool(self.notes.text()))
        self.push_row.setVisible(fold.can_push)
        self.push_text.setText(fold.push_text)
        self.push_text.setVisible(bool(fold.push_text))
        self.merges.setText(fold.merges_text)
        self.merges.setVisible(bool(fold.merges_text))
        set_role(self.outcome, tone=fold.outcome_tone if fold.state == "done" else "")
        self._result_path = str(fold.result.get("path") or "")
        self.open.setVisible(fold.state == "done")
        self.empty.setVisible(fold.state == "idle")
        self.proof.heading.setText(f"Proof: {fold.subject}" if fold.subject else "Proof")
        if fold.state == "failed":
            self.notice.say(fold.error_text, fold.error_hint, "bad")
        elif not has_runs:
            self.notice.say("There is nothing of this run to export yet.", "A run that has finished can be exported here.")  # fmt: skip
        else:
            self.notice.say("")
        self._show_checks(fold.checks)

    def _show_checks(self, checks: Sequence[CheckLine]) -> None:
        while self.checks.count() > len(checks):
            item = self.checks.takeAt(self.checks.count() - 1)
            widget = item.widget() if item is not None else None
            if widget is not None:
                widget.deleteLater()
        for check in checks[self.checks.count() :]:
            self.checks.addWidget(_check_row(check))

    def _choose(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Choose where the export goes")
        if folder:
            self.out.setText(str(Path(folder) / Path(self.out.text()).name))

    def _open(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(self._result_path))


def _check_row(check: CheckLine) -> QWidget:
    mark = label(check.mark, "heading", tone=check.tone)
    mark.setFixedWidth(18)
    found = row(
        mark,
        boxed(
            column(label(check.name, "strong", wraps=True), label(check.detail, "small", wraps=True), gap=0)
        ),
    )
    found.setStretch(1, 1)
    return boxed(found)
