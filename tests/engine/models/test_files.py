"""Whatever lies in a model folder, the reader gets facts or one sentence, never a traceback; and no ML stack is loaded."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_engine.errors import EngineError
from qlora_engine.models import catalog, files, known, spec
from tests.support.tiny import make_tiny, tiny_config

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
LLAMA = tiny_config("llama").to_dict()
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(call: Callable[[], Any]) -> Any:
    """What `call` returns, or the sentence that it raises; anything else that it raises fails the test."""
    try:
        return call()
    except EngineError as error:
        return error


def write_header(folder: Path, header: object, body: int = 64) -> Path:
    raw = json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(body))
    return file


@FUZZ
@given(key=st.sampled_from(sorted(LLAMA)), value=JSON)
def test_any_value_in_a_config_gives_facts_or_a_sentence(key: str, value: Any) -> None:
    facts = outcome(lambda: spec.facts_from_config({**LLAMA, key: value}, "fuzzed"))
    if isinstance(facts, EngineError):
        assert facts.hint
        assert facts.exit_code == 2
        return
    assert facts.parameters > 0
    assert json.loads(json.dumps(spec.facts_to_dict(facts)))["layers"] == facts.layers


@FUZZ
@given(entry=st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}) | JSON)
def test_any_safetensors_header_gives_tensors_or_a_sentence(entry: Any, tmp_path: Path) -> None:
    file = write_header(tmp_path, {"a.weight": entry})
    found = outcome(lambda: files.read_header(file))
    if isinstance(found, EngineError):
        assert found.code in ("model.damaged", "model.truncated")
        return
    assert all(tensor.nbytes >= 0 for tensor in found.values())


@FUZZ
@given(index=JSON | st.fixed_dictionaries({"weight_map": JSON | st.dictionaries(st.text(max_size=3), JSON)}))
def test_any_index_gives_shards_or_a_sentence(index: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(EngineError) as caught:
        files.weight_files(tmp_path)
    assert caught.value.code in ("model.damaged", "model.missing_shard")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ([], "damaged"),
        ({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 9]}}, "damaged"),
        ({"a": {"dtype": "BF16", "shape": [-4], "data_offsets": [0, 8]}}, "damaged"),
        ({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [8, 0]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [40], "data_offsets": [0, 160]}}, "cut short"),
    ],
)
def test_impossible_headers_are_told_apart(header: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=words):
        files.read_header(write_header(tmp_path, header))


def test_a_shard_outside_the_folder_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes(b"")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(EngineError, match="is damaged"):
        files.weight_files(folder)


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(EngineError, match="holds an adapter") as caught:
        spec.facts_of_folder(tmp_path)
    assert caught.value.hint == "choose the model that it was trained on"


@pytest.mark.parametrize(
    ("card", "licence"),
    [("---\nlicense: mit\n---\n", "mit"), ("---\ntags: [a]\n---\n", None), ("license: \n", None), ("", None)],
)
def test_the_licence_is_read_from_the_model_card(
    card: str, licence: str | None, tmp_path: Path, llama: Path
) -> None:
    (llama / "README.md").write_text(card, encoding="utf-8")
    assert spec.facts_of_folder(llama).licence == licence


def test_a_template_may_lie_in_the_tokenizers_settings(llama: Path) -> None:
    (llama / "chat_template.jinja").unlink()
    assert spec.facts_of_folder(llama).chat_template is None
    (llama / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}', encoding="utf-8")
    assert spec.facts_of_folder(llama).chat_template == "{{ messages }}"


def test_a_tied_head_that_is_stored_too_counts_once(tmp_path: Path) -> None:
    folder = make_tiny("qwen2", tmp_path / "tied", tie_word_embeddings=True)
    facts = spec.facts_of_folder(folder)
    assert facts.is_tied
    assert facts.stored_bytes == 2 * facts.parameters
    assert [t.role for t in facts.unquantized].count("head") == 0


def test_a_folder_that_was_put_among_the_models_is_no_converted_file(home: Path) -> None:
    make_tiny("llama", home / "models" / "mine")
    assert {entry.title: entry.origin for entry in catalog.list_models()}["mine"] == "folder"


def test_broken_models_are_listed_with_their_problem(llama: Path, home: Path) -> None:
    (llama / "model.safetensors").write_bytes(b"")
    (entry,) = (e for e in catalog.list_models((str(llama),)) if e.origin == "folder")
    assert (entry.is_ready, entry.parameters) == (False, None)
    assert "cut short" in (entry.problem or "")


def test_a_known_model_is_found_by_name_alias_and_hub_id(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    plain = {
        "name": "tiny-llama", "aliases": ["tiny"], "title": "Tiny Llama", "hub_id": "org/Tiny-Llama",
        "licence": "mit", "config": LLAMA,
    }  # fmt: skip
    (tmp_path / "models" / "tiny.json").write_text(json.dumps(plain), encoding="utf-8")
    monkeypatch.setattr(known.paths, "resources_dir", lambda: tmp_path)
    known.known_models.cache_clear()
    try:
        for name in ("tiny-llama", "TINY", "org/tiny-llama", "Tiny Llama"):
            facts = catalog.facts(name, offline=True)
            assert (facts.name, facts.origin, facts.licence, facts.path) == (
                "tiny-llama",
                "known",
                "mit",
                None,
            )
        assert catalog.resolve("tiny").name == "org/Tiny-Llama"
        with pytest.raises(EngineError, match="no model") as caught:
            catalog.resolve("tiny-lama")
        assert "tiny-llama" in caught.value.hint
    finally:
        known.known_models.cache_clear()


def test_facts_need_no_ml_stack(tmp_path: Path, llama: Path) -> None:
    """The window's own process reads them (starter, folder, cache, known names)."""
    code = (
        "import sys; from qlora_engine.models import catalog, prepare, hub, gguf_facts, custom_facts, fingerprint\n"
        f"catalog.facts({str(llama)!r}); catalog.list_models(); fingerprint.base_sha256(__import__('pathlib').Path({str(llama)!r}))\n"
        "try: catalog.facts('starter')\n"
        "except Exception as e: print(e)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'huggingface_hub', 'gguf', 'datasets', 'bitsandbytes'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {"QLORA_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "hub"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
