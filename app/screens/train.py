"""Train page: settings before the run; loss, memory, numbers and a log in words while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import Signal
from PySide6.QtWidgets import (
    QPlainTextEdit,
    QProgressBar,
    QStackedWidget,
    QVBoxLayout,
)

from app.presenters.run_fold import RunFold
from app.presenters.run_numbers import numbers_of
from app.presenters.run_words import LogLine
from app.theme import GAP, GAP_WIDE
from app.widgets.form import KnobForm, QuietCombo
from app.widgets.kit import (
    BigNumber,
    Card,
    Flow,
    Segments,
    SideBySide,
    boxed,
    button,
    column,
    label,
    row,
    scrolled,
)
from app.widgets.page import Page
from qlora_engine.config import all_knobs

if TYPE_CHECKING:
    from app.screens.train_charts import TrainCharts

GROUPS = (
    ("Adapter", "lora."),
    ("Training", "training."),
    ("Base in 4 bits", "quantization."),
    ("Checkpoints", "checkpoint."),
    ("Output", "output."),
)
SETTINGS, LIVE = "settings", "live"


class TrainScreen(Page):
    """Signals: `edited(path, value)`, `reset_asked(path)`, `preset_chosen(name)`, `wish(name)`, `view_chosen(name)`,
    `save_job_asked`, `open_job_asked`."""

    edited = Signal(str, object)
    reset_asked = Signal(str)
    preset_chosen = Signal(str)
    wish = Signal(str)
    save_job_asked = Signal()
    open_job_asked = Signal()

    def __init__(self) -> None:
        super().__init__("Train", "Choose a recipe, then press Start", scrolls=False)
        self.views = Segments(((SETTINGS, "Settings"), (LIVE, "Live")))
        self.views.chosen.connect(self.show_view)
        self.buttons.addWidget(self.views)
        self.stack = QStackedWidget()
        self.content.setContentsMargins(0, 0, 0, 0)
        self.content.addWidget(self.stack, 1)
        self._build_settings()
        self._build_live()
        self.charts: TrainCharts | None = None
        self._logged = 0
        self._last_line: LogLine | None = None
        self.show_view(SETTINGS)

    # ------------------------------------------------------------ settings

    def _build_settings(self) -> None:
        self.preset = QuietCombo()
        self.preset.setAccessibleName("Recipe")
        self.preset.setMinimumWidth(220)
        self.preset.activated.connect(lambda index: self.preset_chosen.emit(self.preset.itemData(index)))
        self.preset_note = label(role="quiet", wraps=True)
        top = Card("Recipe")
        top.add(
            row(self.preset, None, button("Open job file\u2026", self.open_job_asked.emit), button("Save job file\u2026", self.save_job_asked.emit, tip="A TOML file for `qlora train`")),
            self.preset_note,
        )  # fmt: skip
        knobs = all_knobs()
        self.forms: list[KnobForm] = []
        cards = []
        for title, prefix in GROUPS:
            form = KnobForm({path: knob for path, knob in knobs.items() if path.startswith(prefix)})
            form.edited.connect(self.edited)
            form.reset_asked.connect(self.reset_asked)
            self.forms.append(form)
            cards.append(Card(title).add(form))
        self.more = button("Show all options", self._toggle, "link")
        self._is_expert = False
        self._cards = cards
        columns = SideBySide(
            boxed(column(cards[0], cards[2], cards[3], cards[4], None, gap=GAP_WIDE)),
            boxed(column(cards[1], None, gap=GAP_WIDE)),
        )
        inner = QVBoxLayout()
        inner.setContentsMargins(24, GAP_WIDE, 24, GAP_WIDE)
        inner.setSpacing(GAP_WIDE)
        inner.addWidget(top)
        inner.addWidget(columns)
        inner.addLayout(row(self.more, None))
        self.stack.addWidget(scrolled(boxed(inner)))

    def set_presets(self, presets: Sequence[tuple[str, str]]) -> None:
        for name, title in presets:
            self.preset.addItem(title, name)

    def render_settings(
        self,
        values: Mapping[str, Any],
        problems: Mapping[str, str],
        changed: frozenset[str],
        preset: str,
        preset_note: str,
        is_editable: bool,
    ) -> None:
        index = self.preset.findData(preset)
        self.preset.setCurrentIndex(index)
        self.preset.setPlaceholderText("Your own")
        self.preset.setEnabled(is_editable)
        self.preset_note.setText(preset_note)
        for form, card in zip(self.forms, self._cards, strict=True):
            form.show_values(values, problems, changed, self._is_expert)
            form.set_editable(is_editable)
            card.setVisible(any(r.isVisibleTo(form) for r in form.rows.values()))
        self._last = (values, problems, changed, preset, preset_note, is_editable)

    def _toggle(self) -> None:
        self._is_expert = not self._is_expert
        self.more.setText("Show fewer options" if self._is_expert else "Show all options")
        self.render_settings(*self._last)

    def focus_option(self, path: str) -> None:
        """Bring the field of an option to the person."""
        for form in self.forms:
            if path in form.rows:
                self.show_view(SETTINGS)
                form.rows[path].setVisible(True)
                form.rows[path].focus()

    # ------------------------------------------------------------ live

    def _build_live(self) -> None:
        names = ("Step", "Loss", "Held-out loss", "Speed", "Time left", "Peak memory")
        self.numbers = {name: BigNumber(name) for name in names}
        self.figures = Flow(*self.numbers.values())
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.phase = label(role="quiet")
        self.charts_place = QVBoxLayout()
        self.waiting = label("The charts are being made.", "quiet")
        self.charts_place.addWidget(self.waiting)
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setAccessibleName("What happened")
        self.log.setMaximumBlockCount(500)
        self.log.setFixedHeight(66)
        self.evaluate = button("Measure now", lambda: self.wish.emit("evaluate"), tip="Measure the held-out loss at the next step")  # fmt: skip
        self.save = button("Save checkpoint", lambda: self.wish.emit("save"))
        inner = QVBoxLayout()
        inner.setContentsMargins(24, GAP_WIDE, 24, 0)
        inner.setSpacing(GAP)
        top = Card(margin=12)
        top.add(self.figures, self.progress, row(self.phase, None, self.evaluate, self.save))
        inner.addWidget(top)
        inner.addLayout(self.charts_place, 1)
        self.live_page = boxed(inner)
        below = QVBoxLayout()
        below.setContentsMargins(24, 0, 24, GAP)
        below.addWidget(self.log)
        self.stack.addWidget(boxed(column(scrolled(self.live_page), below, gap=GAP)))

    def set_charts(self, charts: TrainCharts) -> None:
        """The charts come when their library is loaded."""
        self.waiting.hide()
        self.charts = charts
        self.charts_place.addWidget(charts, 1)

    def show_view(self, name: str) -> None:
        self.views.set_value(name)
        self.stack.setCurrentIndex(0 if name == SETTINGS else 1)

    def render_run(self, run: RunFold) -> None:
        """Numbers, progress and log; the charts are painted by their own call."""
        n = numbers_of(run)
        for name, text, note in (
            ("Step", n.step_text, run.run_id or ""),
            ("Loss", n.loss_text, ""),
            ("Held-out loss", n.held_out_text, n.held_out_note),
            ("Speed", n.speed_text, ""),
            ("Time left", n.eta_text, ""),
            ("Peak memory", n.peak_text, n.peak_note),
        ):
            self.numbers[name].show_value(text, note if name != "Step" else "")
        self.figures.fit()
        is_busy = run.is_live and run.share is None and run.status.progress is None
        self.progress.setRange(0, 0 if is_busy else 1000)
        share = run.share if run.share is not None else run.status.progress
        self.progress.setValue(1000 if run.state == "finished" else int(1000 * (share or 0)))
        self.phase.setText(run.phase_text or "Nothing is training in this window")
        self.evaluate.setEnabled(run.state == "running" and run.last_step is not None)
        self.save.setEnabled(run.state == "running" and run.last_step is not None)
        self._show_log(run)

    def _show_log(self, run: RunFold) -> None:
        lines = list(run.log)
        if self._last_line is not None and lines and self._last_line in lines:
            fresh = lines[len(lines) - lines[::-1].index(self._last_line) :]
        else:
            self.log.clear()
            fresh = lines
        for line in fresh:
            self.log.appendPlainText(f"{line.clock}  {line.text}")
        self._last_line = lines[-1] if lines else None
