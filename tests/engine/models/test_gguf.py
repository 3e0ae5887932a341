"""GGUF files: headers, and conversions that compute what the original computes."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qlora_engine.control import Control
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.models import catalog, gguf_facts, gguf_header, gguf_import, gguf_rope, prepare, spec
from tests.support.gguf_file import write_gguf
from tests.support.tiny import make_tiny, tiny_config

SIZES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128},
    "gemma3_text": {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0, **gguf_rope.LLAMA3}


def quiet_report(phase: str, done: int, total: int | None, unit: str) -> None:
    """Nobody listens."""


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(5, 37)[None]).logits


@pytest.fixture
def original(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    kind = getattr(request, "param", "llama")
    return make_tiny(kind, tmp_path / "original", **SIZES.get(kind, {}))


KINDS = sorted(gguf_facts.ARCHITECTURES.values())


@pytest.mark.parametrize("original", KINDS, indirect=True)
def test_what_was_converted_computes_what_the_original_computes(original: Path, tmp_path: Path) -> None:
    file = write_gguf(original, tmp_path / "model.gguf")
    told = gguf_facts.facts_of_gguf(file, "x")
    folder = gguf_import.convert(file, tmp_path / "converted", licence=None, report=quiet_report)
    converted = spec.facts_of_folder(folder)
    assert told.parameters == converted.parameters == spec.facts_of_folder(original).parameters
    assert told.quantized_parameters == converted.quantized_parameters
    assert told.head_dim == converted.head_dim
    assert torch.allclose(logits(folder), logits(original), atol=2e-4)


def test_the_tokenizer_template_and_ends_survive(original: Path, tmp_path: Path) -> None:
    file = write_gguf(original, tmp_path / "model.gguf")
    folder = gguf_import.convert(file, tmp_path / "converted", licence="mit", report=quiet_report)
    before, after = (AutoTokenizer.from_pretrained(str(p)) for p in (original, folder))
    text = before.apply_chat_template([{"role": "user", "content": "Héllo  wörld 42"}], tokenize=False)
    assert after.apply_chat_template([{"role": "user", "content": "Héllo  wörld 42"}], tokenize=False) == text
    ids = after(text, add_special_tokens=False)["input_ids"]
    assert ids == before(text, add_special_tokens=False)["input_ids"]
    assert after.decode(ids) == text
    assert (after.eos_token, after.pad_token) == ("<|im_end|>", "<pad>")
    ends = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert ends["eos_token_id"] == before.eos_token_id
    assert "quantization_config" not in spec.read_config(folder)
    assert spec.facts_of_folder(folder).licence == "mit"


def test_scaled_positions_of_llama_3_survive(tmp_path: Path) -> None:
    original = make_tiny(
        "llama", tmp_path / "original", rope_parameters=LLAMA3, max_position_embeddings=131072
    )
    divisors = gguf_rope.llama3_divisors(16, 500000.0, 8.0)
    file = write_gguf(original, tmp_path / "model.gguf", rope_freqs=divisors)
    folder = gguf_import.convert(file, tmp_path / "converted", licence=None, report=quiet_report)
    assert spec.read_config(folder)["rope_parameters"] == LLAMA3
    assert torch.allclose(logits(folder), logits(original), atol=2e-4)


@pytest.mark.parametrize(("factor", "theta", "head_dim"), [(8.0, 5e5, 128), (32.0, 5e5, 64), (8.0, 5e5, 64)])
def test_the_divisors_are_those_of_transformers(factor: float, theta: float, head_dim: int) -> None:
    shape = {"head_dim": head_dim, "num_attention_heads": 1, "hidden_size": head_dim}
    parameters = {**LLAMA3, "factor": factor, "rope_theta": theta}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](
        tiny_config("llama", rope_parameters=parameters, max_position_embeddings=131072, **shape), "cpu"
    )
    plain = theta ** -(torch.arange(0, head_dim, 2) / head_dim)
    divisors = gguf_rope.llama3_divisors(head_dim, theta, factor)
    assert torch.allclose(plain / scaled, torch.tensor(divisors), rtol=1e-4)
    found = gguf_rope.llama3_scaling(divisors, theta)
    assert found is not None
    assert found["factor"] == pytest.approx(factor)


def test_linear_scaling_survives(original: Path, tmp_path: Path) -> None:
    file = write_gguf(original, tmp_path / "m.gguf", rope__scaling__type="linear", rope__scaling__factor=4.0)
    folder = gguf_import.convert(file, tmp_path / "converted", licence=None, report=quiet_report)
    scaling = spec.read_config(folder)["rope_parameters"]
    assert (scaling["rope_type"], scaling["factor"]) == ("linear", 4.0)


@pytest.mark.parametrize(
    "extra", [{"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, {"rope_freqs": [1.0, 3.0] * 4}]
)
def test_scaling_that_would_be_lost_is_refused(original: Path, tmp_path: Path, extra: dict[str, Any]) -> None:
    file = write_gguf(original, tmp_path / "m.gguf", **extra)
    with pytest.raises(EngineError, match="a conversion would lose"):
        gguf_import.convert(file, tmp_path / "converted", licence=None, report=quiet_report)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["original"]


def test_biases_that_would_be_lost_are_noticed(tmp_path: Path) -> None:
    original = make_tiny("llama", tmp_path / "original", attention_bias=True)
    file = write_gguf(original, tmp_path / "m.gguf")
    with pytest.raises(EngineError, match="converted whole") as caught:
        gguf_import.convert(file, tmp_path / "converted", licence=None, report=quiet_report)
    assert caught.value.code == "model.conversion"


def test_a_conversion_can_be_stopped_and_leaves_nothing(original: Path, tmp_path: Path, home: Path) -> None:
    file = write_gguf(original, tmp_path / "m.gguf")
    control = Control()

    def stop_later(phase: str, done: int, total: int | None, unit: str) -> None:
        if done == 3:
            control.request_stop()

    with pytest.raises(Cancelled):
        prepare.ensure_ready(str(file), None, False, control, stop_later)
    assert list((home / "models").iterdir()) == []


def test_progress_counts_tensors_and_draws_no_bar(
    original: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_gguf(original, tmp_path / "m.gguf")
    seen: list[tuple[int, int | None]] = []
    capfd.readouterr()
    gguf_import.convert(
        file, tmp_path / "c", licence=None, report=lambda phase, done, total, unit: seen.append((done, total))
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0] == (0, 21)
    assert seen[-1] == (21, 21)
    assert capfd.readouterr().err == ""


def test_what_a_killed_conversion_left_is_cleared_and_never_listed(
    original: Path, tmp_path: Path, home: Path
) -> None:
    file = write_gguf(original, tmp_path / "m.gguf")
    target = catalog.converted_dir(file)
    dead, alive = (target.with_name(f".{target.name}.{pid}.ab12") for pid in (2**22 + 1, os.getpid()))
    for leftover in (dead, alive):
        leftover.mkdir(parents=True)
        (leftover / "config.json").write_text("{}", encoding="utf-8")
    assert [entry.name for entry in catalog.list_models()] == ["starter"]
    path = prepare.ensure_ready(str(file), None, False, Control(), quiet_report)
    assert path == target
    assert (dead.exists(), alive.exists()) == (False, True)
    assert catalog.resolve(str(file)).needs is None
    origin = json.loads((path / "origin.json").read_text(encoding="utf-8"))
    assert (origin["file"], origin["bytes"]) == ("m.gguf", file.stat().st_size)
    assert [entry.origin for entry in catalog.list_models()] == ["starter", "gguf"]


def test_the_header_is_what_the_gguf_package_reads(original: Path, tmp_path: Path) -> None:
    file = write_gguf(original, tmp_path / "m.gguf")
    header, reader = gguf_header.read_header(file), gguf.GGUFReader(file)
    theirs = {t.name: tuple(int(s) for s in reversed(t.shape)) for t in reader.tensors}
    assert {name: t.shape for name, t in header.tensors.items()} == theirs
    assert [t.nbytes for t in header.tensors.values()] == [int(t.n_bytes) for t in reader.tensors]
    assert header.data_start == reader.data_offset
    plain = {k: v for k, v in header.fields.items() if not k.startswith("tokenizer.ggml")}
    assert plain == {k: reader.fields[k].contents() for k in plain}
    assert header.fields["tokenizer.ggml.tokens"] == 320


def test_block_sizes_are_ggmls() -> None:
    assert all(
        gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(k)] == size for k, size in gguf_header.BLOCKS.items()
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    return write_gguf(make_tiny("llama", folder / "o"), folder / "m.gguf").read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gets_a_sentence(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(whole[: data.draw(st.integers(0, len(whole) - 1), label="length")])
    for _ in range(data.draw(st.integers(0, 3), label="flips") if raw else 0):
        raw[data.draw(st.integers(0, min(len(raw), 9000) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / "damaged.gguf"
    file.write_bytes(bytes(raw))
    with pytest.raises(EngineError) as caught:
        gguf_facts.facts_of_gguf(file, "damaged")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a whole GGUF file"),
        (b"PK\x03\x04 a zip", "begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 1), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "more entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "type ''"),
    ],
)
def test_other_files_are_told_apart(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(content)
    with pytest.raises(EngineError, match=words):
        gguf_facts.facts_of_gguf(file, "other")
