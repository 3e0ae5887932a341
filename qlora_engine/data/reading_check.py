"""What can be said of a dataset without its model: how it is read, and which rows cannot be. Torch-free."""

from __future__ import annotations

from typing import Any

from qlora_engine import row_numbers
from qlora_engine.config import DataSettings
from qlora_engine.data import doctor, pipeline, sources
from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.formats import read_row
from qlora_engine.data.report import Drops

MOST_ROWS = 50_000


def check(settings: DataSettings) -> list[dict[str, Any]]:
    """The doctor's findings about reading, of at most the first 50,000 rows; the start has these and more.

    Raises:
        EngineError: the data cannot be read at all, or fit no format.
    """
    store = sources.open_store(settings)
    detections = pipeline.detections(store, settings)
    found = list(doctor.open_questions(store, detections))
    drops, read, left = Drops(), 0, row_numbers.parsed(settings.leave_out)
    for block in store.blocks(1000):
        for number, row in block.rows():
            if row_numbers.holds(left, number):
                continue
            read += 1
            try:
                reason = row.reason if isinstance(row, sources.BadRow) else None
                if isinstance(row, dict):
                    read_row(row, number, detections[block.source])
            except RowProblem as problem:
                reason = problem.reason
            if reason is not None:
                drops.add(reason, number)
        if read >= MOST_ROWS:
            break
    found.extend(doctor.left_out(drops, read, detections[0].format, settings.bad_rows, store.place))
    found.extend(doctor.by_hand(left, len(store)))
    return [finding.to_json() for finding in found]
