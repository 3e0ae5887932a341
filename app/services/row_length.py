"""How long a row of the draft's run is, in tokens, before and after its data were looked at."""

from __future__ import annotations

from app.services.data_check import DataCheck
from app.services.drafting import Drafting

UNKNOWN_TOKENS = 512
"""Assumed until the data have been looked at."""


class RowLength:
    """Of the data as they are set now."""

    def __init__(self, job: Drafting, data: DataCheck) -> None:
        self._job, self._data = job, data
        self._read = ("", UNKNOWN_TOKENS)
        """The data read last and the length of their rows: another model does not make the question another one, though its
        tokenizer may change the answer when the data are read again."""

    @property
    def tokens(self) -> int:
        """As set, as the data report found, or assumed."""
        if self._job.config.data.seq_len is not None:
            return self._job.config.data.seq_len
        report = self._data.report
        if report:
            self._read = (self._job.config.data.path, int(report["seq_len"]))
        path, length = self._read
        return length if path == self._job.config.data.path else UNKNOWN_TOKENS

    @property
    def is_assumed(self) -> bool:
        """A guess until the data are read, and with it the memory."""
        return self._job.config.data.seq_len is None and self._data.report is None
