"""`qlora models` and `qlora inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_the_starter_is_listed(qlora: Any) -> None:
    result = qlora("models")
    assert result.code == 0
    assert "starter" in result.out
    entries = {entry["name"]: entry for entry in qlora("models", "--json").document["models"]}
    assert entries["starter"]["licence"] == "Apache-2.0"
    assert entries["starter"]["parameters"] == 134_515_008


def test_known_names_are_listed(qlora: Any) -> None:
    assert "llama-65b" in qlora("models", "--json").document["known"]
    assert "llama-65b" in qlora("models").out


def test_a_folder_is_inspected_without_its_weights(qlora: Any, tiny_model: Path) -> None:
    document = qlora("inspect", tiny_model, "--json").document
    assert document["model_type"] == "llama"
    assert document["layers"] == 2
    q_proj = next(linear for linear in document["linears"] if linear["name"] == "q_proj")
    assert (q_proj["in_features"], q_proj["out_features"], q_proj["count"]) == (64, 64, 2)
    text = qlora("inspect", tiny_model).out
    assert "4 heads, 2 key-value heads" in text
    assert "head tied to the embeddings" in text
    assert "model.layers.*.mlp.down_proj" in text


def test_an_unknown_name_says_what_is_known(qlora: Any) -> None:
    result = qlora("inspect", "startr")
    assert result.code == 2
    assert "starter" in result.error
