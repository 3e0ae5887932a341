"""`qlora models` and `qlora inspect`."""

from __future__ import annotations

import json
import shutil
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


def test_known_models_are_searched_and_filtered(qlora: Any) -> None:
    found = qlora("models", "gpt-oss", "--gpu", "RTX 4090", "--json").document
    assert found["judged_by"]["device"] == "cuda"
    by_name = {one["name"]: one for one in found["choices"]}
    assert set(by_name) == {"gpt-oss-20b", "gpt-oss-120b"}
    small = by_name["gpt-oss-20b"]
    assert small["fits"]
    assert small["longest_that_fits"] >= 1024
    assert (small["licence"], small["is_chat"], small["context"], small["is_cached"]) == (
        "Apache-2.0",
        True,
        131_072,
        False,
    )
    assert small["active_parameters"] < small["parameters"] / 4
    assert 10 * 10**9 < small["download_bytes"] < 16 * 10**9
    text = qlora("models", "--fits", "--chat", "--gpu", "RTX 3060 12GB").out
    assert "llama-3.1-8b-instruct" in text
    assert "llama-3.1-70b-instruct" not in text
    assert "judged by RTX 3060 12GB" in text
    assert "no known model" in qlora("models", "no-such-words").out


def test_what_the_hub_cache_holds_is_marked(qlora: Any, home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        "qlora_engine.models.catalog.cached_models", lambda: iter([("Qwen/Qwen3-0.6B", tmp_path)])
    )
    found = {one["name"]: one for one in qlora("models", "qwen3-0.6b", "--json").document["choices"]}
    assert found["qwen3-0.6b"]["is_cached"]
    assert not found["qwen3-0.6b-base"]["is_cached"]


def test_weights_that_cannot_be_read_are_told_before_any_load(
    qlora: Any, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny-AWQ"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "awq"}})
    )
    job = tmp_path / "job.toml"
    qlora("init", job, "--set", f"model.name={folder}")
    for command in (("inspect", folder), ("check", job), ("train", job), ("estimate", folder)):
        result = qlora(*command)
        assert result.code == 2, command
        assert "AWQ" in result.err, command
        assert "fetch tiny in 16 bits" in result.err, command


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
