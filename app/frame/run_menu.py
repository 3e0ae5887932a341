"""What else can be done with the chosen runs: name, note and tags, duplicate, open, delete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PySide6.QtCore import QObject, QUrl
from PySide6.QtGui import QDesktopServices

from app.dialogs import ask_delete
from app.frame.experiments import Experiments
from app.frame.queueing import Queueing
from app.presenters.words import bytes_text, plural
from app.services.shown_run import BEGINNING, DRAFT
from app.studio import Studio
from app.widgets.banner import Banner
from app.widgets.notes_dialog import NotesDialog
from app.widgets.run_header import RunHead
from qlora_engine.errors import EngineError
from qlora_engine.runs import notes, plans, sweep, trash
from qlora_engine.runs.index import RunEntry
from qlora_engine.runs.record import RunFolder


class RunMenu(QObject):
    """`show_queue` opens it as a whole."""

    def __init__(
        self, studio: Studio, head: RunHead, banner: Banner, waiting: Queueing, trying: Experiments,
        show_queue: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(head)
        self._studio, self._head, self._banner, self._waiting = studio, head, banner, waiting
        self._acts: dict[str, Callable[[], None]] = {
            "notes": self.edit_notes, "duplicate": self.duplicate, "folder": self.open_folder, "delete": self.delete,
            "queue": waiting.add, "first": partial(self._move, 0), "earlier": partial(self._move, -1),
            "later": partial(self._move, 1), "unqueue": lambda: waiting.remove(self.folders[0]), "hold": waiting.pause,
            "line": show_queue, "vary": trying.open, "cells": lambda: trying.compare(self.folders[0]),
        }  # fmt: skip
        head.menu_asked.connect(lambda name: self._acts[name]())
        studio.shown.changed.connect(self.offer)
        studio.history.changed.connect(self.offer)
        self.offer()

    @property
    def folders(self) -> tuple[Path, ...]:
        """Of what is chosen."""
        return tuple(Path(key) for key in self._studio.shown.keys if key not in (DRAFT, BEGINNING))

    def offer(self) -> None:
        one, many = len(self.folders) == 1, bool(self.folders)
        entry = self._studio.shown.entry
        waits = one and entry is not None and entry.queue_place is not None
        can_wait = not waits and (
            self._studio.shown.is_draft or (one and entry is not None and entry.summary.is_resumable)
        )
        hold = "Go on with the queue" if self._waiting.is_paused else "Pause the queue after this run"
        wanted = (
            ("notes", "Name, note and tags\u2026", one), ("duplicate", "Duplicate as a draft", one),
            ("vary", "Try several values\u2026", self._studio.shown.is_draft),
            ("cells", "Compare its experiment", one and entry is not None and _is_of_one(entry)),
            ("queue", "Put into the queue", can_wait), ("first", "Next in the queue", waits),
            ("earlier", "Earlier in the queue", waits), ("later", "Later in the queue", waits),
            ("unqueue", "Take out of the queue", waits), ("hold", hold, waits), ("line", "See the queue\u2026", waits),
            ("folder", "Open folder", one), ("delete", "Delete\u2026", many),
        )  # fmt: skip
        self._head.offer([(name, words) for name, words, can in wanted if can])

    def edit_notes(self) -> None:
        if len(self.folders) != 1:
            return
        path = self.folders[0]
        dialog = NotesDialog(self._head, path.name, notes.read(path), lambda found: notes.write(path, found))
        if dialog.exec():
            self._studio.history.refresh()

    def duplicate(self) -> None:
        if len(self.folders) == 1:
            source = RunFolder(self.folders[0])
            self._studio.background.submit(
                "duplicate", lambda: plans.duplicate(source), self._show, self._refused
            )

    def _move(self, by: int) -> None:
        self._waiting.move(self.folders[0], by)

    def open_folder(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.folders[0])))

    def delete(self) -> None:
        """Asked about with what it frees, which is counted first."""
        folders = self.folders
        if folders:
            self._studio.background.submit(
                "sizes",
                lambda: [trash.size_of(path) for path in folders],
                lambda sizes: self._ask(folders, sizes),
            )

    def _ask(self, folders: Sequence[Path], sizes: Sequence[int]) -> None:
        what = folders[0].name if len(folders) == 1 else plural(len(folders), "run")
        details = f"{bytes_text(sum(sizes))} with checkpoints and adapter. It goes to the trash; exports made from it stay."
        if ask_delete(self._head, "Delete this run?", f"Delete {what}?", details, "Move to the trash"):
            self._throw(folders, for_good=False)

    def _throw(self, folders: Sequence[Path], *, for_good: bool) -> None:
        def work() -> int:
            return sum(trash.throw_away(RunFolder(path), for_good=for_good) for path in folders)

        self._studio.background.submit(
            "delete", work, self._deleted, lambda error: self._not_deleted(folders, error)
        )

    def _deleted(self, freed: int) -> None:
        self._studio.history.refresh()
        self._banner.say(
            f"Deleted. {bytes_text(freed)} are freed once the trash is emptied.",
            "",
            "accent",
            ("Dismiss", self._clear),
        )

    def _not_deleted(self, folders: Sequence[Path], error: EngineError) -> None:
        self._studio.history.refresh()
        if error.code != "run.no_trash":
            self._refused(error)
            return
        left = [path for path in folders if path.exists()]
        self._banner.say(
            f"{error.message}.", "It can be removed for good instead.", "bad",
            ("Remove for good", lambda: self._throw(left, for_good=True)), ("Keep it", self._clear),
        )  # fmt: skip

    def _show(self, folder: RunFolder) -> None:
        path = folder.path.resolve()
        self._studio.history.expect(path)
        self._studio.shown.show(str(path))

    def _refused(self, error: EngineError) -> None:
        self._banner.say(f"{error.message}.", error.hint, "bad", ("Dismiss", self._clear))

    def _clear(self) -> None:
        self._banner.say("")


def _is_of_one(entry: RunEntry) -> bool:
    """Looked for only where there is a tag, as runs of experiments have from the first."""
    return bool(entry.notes.tags) and bool(sweep.among([entry.path]))
