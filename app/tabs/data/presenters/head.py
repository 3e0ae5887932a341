"""The Data page's head: whether the data were looked at, what keeps them from being, and how much wants attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.presenters.words import capital
from app.tabs.data.presenters.doctor import attention
from qlora_engine.errors import EngineError

NOT_READ = "Not looked at yet."
NOT_READ_HINT = "Check the data to see how many rows there are, what is trained and what is left out. The run checks it too."
READ_ANEW = "From before the last change; the data are read anew."
READ_BEFORE = "From before the last change."


@dataclass(frozen=True)
class DataState:
    checking_text: str
    notice: str
    notice_hint: str
    notice_tone: str
    can_check: bool
    attention: int

    @property
    def is_checking(self) -> bool:
        return bool(self.checking_text)


def data_state(
    error: EngineError | None, checking: str, findings: Sequence[Mapping[str, Any]], *, can_check: bool
) -> DataState:
    """`error` is why the data cannot be read; what the doctor found is told on its tab."""
    notice, hint = (capital(error.message), capital(error.hint)) if error is not None else ("", "")
    return DataState(checking, notice, hint, "bad", can_check, attention(findings))


def report_notice(*, is_known: bool, is_new: bool, is_checking: bool) -> tuple[str, str]:
    """What stands above a report, rows or findings: (sentence, hint)."""
    if is_new:
        return "", ""
    if is_known:
        return (READ_ANEW, "") if is_checking else (READ_BEFORE, "Check the data to bring it up to date.")
    return ("The data are being read.", "") if is_checking else (NOT_READ, NOT_READ_HINT)
