"""GGUF files are the trained model: tensors bit for bit, the same tokens, proven by reading them back; or refused."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import gguf as gguf_package
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from qlora_engine.client import InlineEngine
from qlora_engine.data.templates import choose
from qlora_engine.errors import EngineError
from qlora_engine.events import RunFailed, RunFinished
from qlora_engine.export import gguf, gguf_tokenizer, reopened
from qlora_engine.jobs import ExportJob
from qlora_engine.models import gguf_facts, gguf_header, gguf_import, gguf_rope, loading
from tests.engine.export.conftest import Export, RunOf, export_events, failed, proven
from tests.support.tiny import CHATML, SENTENCES, SPECIAL, make_tiny, tiny_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False},
    "qwen2": {"vocab_size": 384, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 128},
    "gemma2": {"head_dim": 256},
    "gemma3_text": {
        "head_dim": 256,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    },
    "phi3": {},
}
# Rows of whole blocks: bitsandbytes 0.50 on the CPU computes others wrongly.
SHAPES = {family: {"intermediate_size": 128, **shape} for family, shape in SHAPES.items()}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0, **gguf_rope.LLAMA3}


def zero_rows(shape: tuple[int, ...]) -> Any:
    """Weights of no interest."""
    return lambda start, stop, dtype: torch.zeros((stop - start, *shape[1:]), dtype=dtype)


def quiet_report(*_: Any) -> None:
    """Nobody listens."""


def read_back(out: Path) -> Any:
    file = reopened.gguf_of(out)
    return gguf_import.read(file, gguf_facts.facts_of_gguf(file, "x"), quiet_report)[0]


@pytest.fixture(scope="module")
def trained(run_of: RunOf, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run on a tiny model of a family."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family) / "base"
        return run_of(f"gguf-{family}", make_tiny(family, folder, **SHAPES[family]))

    return make


# ---- tensors


@pytest.mark.parametrize("family", SHAPES)
def test_a_file_is_the_merged_model_bit_for_bit_and_passes_every_check(
    trained: Any, export: Export, family: str
) -> None:
    """fp16 of the fp32 merge, for every weight; vectors stay in fp32."""
    run = trained(family)
    out = export(run, "gguf", "gguf", dtype="f16")
    merged: dict[str, torch.Tensor] = {}
    for file in export(run, "merged", "merged", dtype="fp32").glob("*.safetensors"):
        merged |= load_file(file)
    found = read_back(out).state_dict()
    assert set(merged) <= set(found)
    for name, weight in merged.items():
        if weight.ndim == 1:
            torch.testing.assert_close(found[name], weight, rtol=0, atol=1.2e-7)  # 1 + w - 1 of a Gemma norm
        else:
            assert torch.equal(found[name], weight.half().float()), name
    checks = proven(run, out, "gguf")
    assert failed(checks) == [], checks
    assert len(checks) == 12
    assert checks["logits equal base + adapter"][1]["largest_relative"] < 1e-3


@pytest.mark.parametrize("dtype", ["bf16", "q8_0", "q4_0", "q5_1", "f32"])
def test_other_types_are_stored_as_the_gguf_package_quantizes(
    run_of: RunOf, export: Export, dtype: str
) -> None:
    run = run_of("lora")
    out = export(run, "gguf", dtype=dtype)
    reader = gguf_package.GGUFReader(reopened.gguf_of(out))
    kinds = {tensor.name: tensor.tensor_type.name.lower() for tensor in reader.tensors}
    assert kinds["blk.0.attn_norm.weight"] == "f32"
    assert kinds["blk.0.ffn_up.weight"] == dtype
    assert kinds["token_embd.weight"] == ("q8_0" if dtype.startswith(("q4", "q5")) else dtype)
    assert "output.weight" not in kinds  # tied
    file_type = gguf_header.read_header(reopened.gguf_of(out)).fields["general.file_type"]
    assert gguf_package.LlamaFileType(file_type).name.lower().endswith(dtype)
    checks = proven(run, out, "gguf")
    cost = checks.pop(f"storing in {dtype} costs little")
    assert failed(checks) == [], checks
    assert cost[0] is (None if dtype in ("q4_0", "q5_1") else True)
    assert cost[1]["kl_divergence"] < 0.2


def test_rows_that_are_not_whole_blocks_are_stored_in_sixteen_bits() -> None:
    kind = gguf_package.GGMLQuantizationType
    assert gguf.stored_kind("blk.0.ffn_up.weight", (64, 48), "q8_0") is kind.F16
    assert gguf.stored_kind("blk.0.ffn_up.weight", (48, 64), "q8_0") is kind.Q8_0
    assert gguf.stored_kind("blk.0.attn_norm.weight", (64,), "q4_0") is kind.F32


def test_a_value_too_large_for_fp16_is_refused_with_the_way_out() -> None:
    plan = gguf.TensorPlan("w", "blk.0.ffn_up.weight", (1, 2), gguf_package.GGMLQuantizationType.F16)
    with pytest.raises(EngineError, match="cannot hold") as caught:
        plan.stored(np.array([[1.0, 70000.0]], dtype=np.float32))
    assert "bf16" in caught.value.hint


def test_the_merge_into_dequantized_weights_is_another_file(run_of: RunOf, export: Export) -> None:
    run = run_of("lora")
    out = export(run, "gguf", "dequantized", dtype="f16", into="dequantized")
    checks = proven(run, out, "gguf")
    assert failed(checks) == [], checks
    other = read_back(export(run, "gguf", "original", dtype="f16"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert float((read_back(out).state_dict()[name] - other.state_dict()[name]).abs().max()) > 1e-3


def test_scaled_positions_of_llama_3_are_written(run_of: RunOf, export: Export, tmp_path: Path) -> None:
    base = make_tiny("llama", tmp_path / "base", rope_parameters=LLAMA3, max_position_embeddings=131072)
    run = run_of("gguf-llama3", base)
    out = export(run, "gguf")
    assert read_back(out).config.rope_parameters == LLAMA3
    assert failed(proven(run, out, "gguf")) == []


# ---- proof


@pytest.mark.slow
def test_a_file_is_proven_in_a_process_of_its_own(run_of: RunOf, tmp_path: Path) -> None:
    events = export_events(run_of("lora"), "gguf", tmp_path / "out")
    end = events[-1]
    assert isinstance(end, RunFinished), end
    assert end.result["is_proven"], end.result["checks"]
    assert [p.name for p in (tmp_path / "out").glob("*.gguf")] == ["lora-f16.gguf"]
    assert "GGUF F16" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("part", ["weight", "end"])
def test_a_spoiled_file_fails_a_check(run_of: RunOf, export: Export, part: str) -> None:
    run = run_of("lora")
    out = export(run, "gguf")
    file = reopened.gguf_of(out)
    reader = gguf_package.GGUFReader(file, "r+")
    if part == "weight":
        tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
        tensor.data[:4] *= -3
        check = "logits equal base + adapter"
    else:
        reader.fields["tokenizer.ggml.eos_token_id"].parts[-1][:] = 7
        check = "stops on its end tokens"
    reader.data.flush()
    del reader
    assert proven(run, out, "gguf")[check][0] is False


# ---- tokenizers


def trained_on_sentences(tokenizer: Tokenizer, **trainer: Any) -> Tokenizer:
    settings = {"vocab_size": 700, "special_tokens": SPECIAL, "show_progress": False, **trainer}
    tokenizer.train_from_iterator(SENTENCES * 4, trainers.BpeTrainer(**settings))
    return tokenizer


def byte_level(
    *steps: Any, normalizer: Any = None, whole_words: bool = False, use_regex: bool = True
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    return trained_on_sentences(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def split(name: str) -> Any:
    return pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")


def sentencepiece() -> Tokenizer:
    """As Llama 2's: a space before the text, bytes for what is unknown, the first token added."""
    pieces = ["<unk>", "<s>", "</s>", *SPECIAL[3:], *(f"<0x{n:02X}>" for n in range(256))]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trained = trained_on_sentences(tokenizer, special_tokens=pieces)
    stored = json.loads(trained.to_str())
    stored["added_tokens"] = [t for t in stored["added_tokens"] if not t["content"].startswith("<0x")]
    trained = Tokenizer.from_str(json.dumps(stored))
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return trained


KINDS: dict[str, tuple[str, Any]] = {
    "gpt-2": ("gpt-2", byte_level),
    "digits": ("smollm", lambda: byte_level(pre_tokenizers.Digits(individual_digits=True))),
    "qwen2": ("qwen2", lambda: byte_level(split("qwen2"), normalizer=normalizers.NFC(), use_regex=False)),
    "llama-bpe": ("llama-bpe", lambda: byte_level(split("llama-bpe"), whole_words=True, use_regex=False)),
    "llama-bpe with merges": ("dbrx", lambda: byte_level(split("llama-bpe"), use_regex=False)),
    "tekken": ("tekken", lambda: byte_level(split("tekken"), use_regex=False)),
}


def strings(count: int) -> list[str]:
    """Unicode, code, numbers and spaces, in the composed form (NFC) that keyboards write."""
    draw = random.Random(5)
    parts = [
        *" ".join(SENTENCES).split(), " ", "  ", "\t", "\n", "\n\n", "   \n", "42", "3.14", "1,000", "'ll", "don't", "I'VE",
        "def f(x):", "return x**2", "{}[]();", "#", "\\n", "==", "Gr\u00fc\u00dfe", "\u4e16\u754c", "\U0001f600", "\u041f\u0440", "\u0645\u0631",
        "na\u00efve", "\u0e2a\u0e27", "\u00a0", "\u2028", "<|im_end|>", "</s>", "<b>", "\ud55c\uad6d", "\u00b2", "\U0001d54f",
    ]  # fmt: skip
    found = []
    for _ in range(count):
        glue = draw.choice(["", " ", " "])
        found.append(unicodedata.normalize("NFC", glue.join(draw.choices(parts, k=draw.randint(1, 12)))))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_strings_become_the_same_tokens(tmp_path: Path, kind: str) -> None:
    name, make = KINDS[kind]
    check_strings(tmp_path, "llama", name, make())


def check_strings(tmp_path: Path, family: str, name: str, backend: Tokenizer) -> None:
    size = backend.get_vocab_size()
    base = make_tiny(family, tmp_path / "base", vocab_size=size + 60, **SHAPES[family])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", chat_template=CHATML
    ).save_pretrained(base)
    tokenizer = loading.load_tokenizer(base)
    plan = gguf.plan_file(base, "x", tokenizer, choose(tokenizer, "auto"), [], "f16")
    assert plan.words.pre == name
    assert len(plan.words.tokens) == size + 60
    file = tmp_path / "m.gguf"
    file.write_bytes(
        b"".join(piece.make() for piece in gguf.pieces_of(plan, lambda n: zero_rows(plan.tensors[n].shape)))
    )
    again = gguf_tokenizer.read(file, name)
    texts = strings(1000)
    different = [t for t in texts if again(t)["input_ids"] != tokenizer(t)["input_ids"]]
    assert different == []
    assert len({tuple(tokenizer(t)["input_ids"]) for t in texts}) > 900


def test_a_thousand_strings_of_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    check_strings(tmp_path, "llama", "default", sentencepiece())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: setattr(t, "normalizer", normalizers.Lowercase()), "Lowercase"),
        (lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()), "no name for"),
        (
            lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "no name for",
        ),
    ],
)
def test_a_tokenizer_llama_cpp_cannot_say_is_refused(tmp_path: Path, spoil: Any, words: str) -> None:
    base = make_tiny("llama", tmp_path / "base")
    tokenizer = tiny_tokenizer()
    spoil(tokenizer.backend_tokenizer)
    with pytest.raises(EngineError, match=words) as caught:
        gguf.plan_file(base, "x", tokenizer, choose(tokenizer, "auto"), [], "f16")
    assert caught.value.is_input_error


def test_the_token_that_ends_an_answer_is_the_files_end(tmp_path: Path) -> None:
    """A template that writes the variable eos_token keeps it; others end with their own token, the model's beside it."""
    base = make_tiny("llama", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = "</s>"
    own = gguf_tokenizer.ends_of(tokenizer, choose(tokenizer, "chatml"), [2, 4])
    assert own == gguf_tokenizer.Ends(4, (2,))
    named = gguf_tokenizer.ends_of(tokenizer, choose(tokenizer, "alpaca"), [2])
    assert named == gguf_tokenizer.Ends(2, ())


# ---- refusals, before any work


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("olmo2", {}, "not written as GGUF"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("qwen3", {"head_dim": 16}, "head_dim"),
        ("gemma2", {"head_dim": 16}, "would scale"),
        ("gemma2", {"head_dim": 256, "final_logit_softcapping": 20.0}, "final_logit_softcapping"),
        ("gemma3_text", {"head_dim": 256}, "layer_types"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "yarn"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"vocab_size": 200}, "only 200 embeddings"),
    ],
)
def test_what_a_file_cannot_say_is_refused_with_the_reason(
    tmp_path: Path, family: str, changes: dict[str, Any], words: str
) -> None:
    base = make_tiny(family, tmp_path / "base", **changes)
    tokenizer = AutoTokenizer.from_pretrained(base)
    with pytest.raises(EngineError, match=words) as caught:
        gguf.plan_file(base, "x", tokenizer, choose(tokenizer, "chatml"), [], "f16")
    assert caught.value.is_input_error
    assert "merged model" in caught.value.hint


def test_a_refused_run_leaves_nothing(run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("gguf-olmo2", make_tiny("olmo2", tmp_path / "base"))
    out = tmp_path / "place" / "out"
    end = list(InlineEngine().run(ExportJob(str(run), "gguf", str(out), {})))[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "export.gguf_family"
    assert list(out.parent.iterdir()) == []
    end = list(InlineEngine().run(ExportJob(str(run), "gguf", str(out), {"dtype": "q3_k"})))[-1]
    assert isinstance(end, RunFailed)
    assert "q4_0" in end.hint


def test_a_window_llama_cpp_does_not_know_limits_the_positions(
    run_of: RunOf, export: Export, tmp_path: Path
) -> None:
    run = run_of("gguf-window", make_tiny("mistral", tmp_path / "base", sliding_window=64))
    out = export(run, "gguf")
    fields = gguf_header.read_header(reopened.gguf_of(out)).fields
    assert fields["llama.context_length"] == 64
    assert "64, the sliding window" in (out / "README.md").read_text()
