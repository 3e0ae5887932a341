"""The job behind the rows that the window shows: opens the data once, then answers questions about them. Torch-free."""

from __future__ import annotations

import json
import queue
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from qlora_engine import config_io
from qlora_engine.bridge import Emit, events_while
from qlora_engine.config import TrainingConfig
from qlora_engine.control import Control
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.events import DataAnswered, Event, Progressed, RunFinished
from qlora_engine.jobs import DataDeskJob

if TYPE_CHECKING:
    from qlora_engine.data.row_table import RowTable
    from qlora_engine.data.sources import RowStore

Command = Mapping[str, Any]
HUB = "data.hub"
"""Why there is no preview of data that are not here."""


def desk_job(job: DataDeskJob, control: Control) -> Iterator[Event]:
    """Answer questions until stopped; result: {"answers": number}.

    Topics: `preview` {"is_read"} (data.preview), `check` (data.reading_check), `list` {"kind", "first", "count"} or {"search": text},
    `row` {"number"}, `batch` {"numbers"}, `reasoning` {"chat_template"}, `write_clean` {"path"}. Those about rows take "of"
    (inspection.SETS).
    """
    desk, count = Desk(control), 0
    while (command := desk.inbox.next_command()) is not None:
        try:
            answer = yield from events_while(lambda emit, c=command: desk.answer(c, emit))  # type: ignore[misc]
        except Cancelled:
            continue  # a newer question came, or the end
        except EngineError as error:
            told = {"code": error.code, "message": error.message, "hint": error.hint}
            yield DataAnswered(int(command["request"]), str(command["topic"]), {}, told)
        else:
            count += 1
            yield DataAnswered(int(command["request"]), str(command["topic"]), answer)
    yield RunFinished({"answers": count})


class Inbox:
    """Questions in their order; of one topic only the newest counts."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._waiting: deque[Command] = deque()
        self._at_hand: Command | None = None

    def next_command(self) -> Command | None:
        """Wait for the next question; None once asked to stop."""
        self._read_waiting()
        while not self._control.is_stop_requested:
            if self._waiting:
                self._at_hand = self._waiting.popleft()
                return self._at_hand
            self._take(self._control.commands.get())
        return None

    def check(self) -> None:
        """Raises:
        Cancelled: asked to stop, or the question at hand has been asked anew, or other data are asked about now.
        """
        self._control.check()
        self._read_waiting()
        now = self._at_hand
        if now and any(c["topic"] == now["topic"] or _about(c) != _about(now) for c in self._waiting):
            raise Cancelled("asked anew")

    def _read_waiting(self) -> None:
        while True:
            try:
                self._take(self._control.commands.get_nowait())
            except queue.Empty:
                return

    def _take(self, command: Command) -> None:
        if command.get("command") != "data":
            return
        for older in [c for c in self._waiting if c["topic"] == command["topic"]]:
            self._waiting.remove(older)
        self._waiting.append(command)


def _about(command: Command) -> Any:
    """Which data, read for which model."""
    config = command["config"]
    return config.get("data"), config["model"].get("name"), config["model"].get("revision")


class _Patience(Control):
    """Long work stops when its question does."""

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self._check = check

    def check(self) -> None:
        self._check()


class Desk:
    """What was opened last, and the answers of each topic."""

    def __init__(self, control: Control) -> None:
        self.inbox = Inbox(control)
        self._key = ""
        self._table: RowTable | None = None
        self._held_table: RowTable | None = None
        self._stores: dict[str, RowStore] = {}

    def answer(self, command: Command, emit: Emit) -> dict[str, Any]:
        """Raises:
        EngineError: it cannot be answered.
        Cancelled: nobody wants the answer any more.
        """
        config = config_io.from_dict(command["config"])
        topic, ask = str(command["topic"]), command.get("ask", {})
        if topic == "preview":
            return self._preview(config, ask, emit)
        if topic == "check":
            from qlora_engine.data import reading_check

            return {"findings": reading_check.check(config.data)}
        return self._of_rows(topic, self._open(config, emit), ask)

    def _preview(self, config: TrainingConfig, ask: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
        """Of hub data only once they are here: `is_read` says that they were read with these settings."""
        from qlora_engine.data.preview import preview, preview_of_rows

        try:
            return preview(config.data)
        except EngineError as error:
            if error.code != HUB:
                raise
            if config.data.path not in self._stores:
                if not ask.get("is_read"):
                    raise
                self._open(config, emit)
            return preview_of_rows(self._stores[config.data.path], config.data)

    def _of_rows(self, topic: str, table: RowTable, ask: Mapping[str, Any]) -> dict[str, Any]:
        """What needs the model's tokenizer; importing it takes seconds, a preview does not wait for that."""
        from qlora_engine.data import clean, inspection, policy_example
        from qlora_engine.data.row_table import RowTable

        if ask.get("of") == inspection.HELD_OUT:
            table = self._held_table = self._held_table or RowTable(
                replace(table.inspector, of=inspection.HELD_OUT)
            )
        match topic:
            case "list":
                return table.listed(ask, self.inbox.check)
            case "row":
                return table.row(int(ask["number"]))
            case "batch":
                return table.batch([int(number) for number in ask["numbers"]])
            case "reasoning":
                return policy_example.examples(table.inspector, str(ask["chat_template"]))
            case "write_clean":
                return clean.write(table.inspector.prepared, str(ask["path"]), self.inbox.check)
            case _:
                raise EngineError("data.topic", f"there is no question {topic!r}", "ask what the desk knows")

    def _open(self, config: TrainingConfig, emit: Emit) -> RowTable:
        from qlora_engine.data import reporting
        from qlora_engine.data.row_table import RowTable

        key = json.dumps([asdict(config.data), asdict(config.model), config.training.seed], sort_keys=True)
        if self._table is None or key != self._key:
            self._table = self._held_table = None
            inspector = reporting.opened(
                config,
                _Patience(self.inbox.check),
                lambda phase, done, total, unit: emit(Progressed(phase, done, total, unit)),
            )
            self._key, self._table = key, RowTable(inspector)
            self._stores = {config.data.path: inspector.prepared.store}
        return self._table
