"""Columns inside columns can be chosen in the Data tab, and the raw rows say what is read of them."""

from __future__ import annotations

from pathlib import Path

from app.tabs.data.presenters.source import source_state
from qlora_engine.config import DataSettings
from qlora_engine.data.preview import preview
from tests.support.tiny import write_rows


def test_columns_inside_columns_are_offered_and_told(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"id": "1", "translation": {"en": "Good day", "fr": "Bonjour"}}])
    plain = DataSettings(path=str(file), format="prompt_completion")
    (asked, _) = source_state(plain, preview(plain), None, False).fields
    assert [value for value, _ in asked.choices] == [
        "",
        "id",
        "translation",
        "translation.en",
        "translation.fr",
    ]
    mapped = DataSettings(
        path=str(file), columns={"prompt": "translation.en", "completion": "translation.fr"}
    )
    state = source_state(mapped, preview(mapped), None, False)
    assert [line.chosen for line in state.fields] == ["translation.en", "translation.fr"]
    assert state.titles[2].startswith("translation \u2192 ")
    assert "(en)" in state.titles[2]
    assert "(fr)" in state.titles[2]
