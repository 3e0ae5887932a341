"""Whether the computer stays awake for a run, in words. Without Qt. `reason`: why it cannot be kept so; empty where it can."""

from __future__ import annotations


def in_settings(reason: str) -> str:
    if reason:
        return f"This computer may go to sleep during a run: {reason}. Switch sleep off in the system's own settings."
    return (
        "While a run trains, or waits for its time, this computer does not go to sleep by itself. "
        "A run can do without: Keep the computer awake, among its options."
    )


def until_then(reason: str) -> str:
    if reason:
        return f"This computer may go to sleep before: {reason}."
    return "The computer is kept awake until then."
