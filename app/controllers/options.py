"""What every form of options needs: values, problems and what was changed."""

from __future__ import annotations

from typing import Any

from app.presenters.draft import Draft
from qlora_engine.config import all_knobs, get_value


def option_values(draft: Draft) -> tuple[dict[str, Any], dict[str, str], frozenset[str]]:
    """(values, problems, changed paths) of the draft, by dotted path."""
    values = {path: get_value(draft.config, path) for path in all_knobs()}
    return values, dict(draft.issue_by_path), frozenset(draft.changes)
