"""Tiny random models with a small real tokenizer, made in the test: every architecture the engine trains."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Remind me to water the plants at seven in the evening.",
    "What is the capital of France? Paris is the capital of France.",
    "def add(a, b): return a + b  # a small function",
    "Numbers: 0 1 2 3 4 5 6 7 8 9 10 42 100 1999 2024",
    "user assistant system human question answer instruction response input output",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
VOCAB = 320
EXTRA: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 48, "num_experts_per_tok": 2},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma2": {"sliding_window": 16},
    "mistral": {"sliding_window": None},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "ministral3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
}
ARCHITECTURES = (
    "llama", "mistral", "ministral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text",
    "phi3", "phi", "gpt_neox", "opt", "olmo", "olmo2", "olmo3", "granite", "stablelm", "starcoder2", "cohere", "smollm3",
    "cohere2", "glm", "glm4", "exaone4", "hunyuan_v1_dense", "arcee", "nemotron", "ernie4_5", "seed_oss", "helium",
    "ministral3", "olmoe",
)  # fmt: skip


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """A transformers config with 2 layers, hidden 64, 4 heads (2 for keys and values), head dimension 16."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    values.update(EXTRA.get(model_type, {}))
    values.update(overrides)
    return AutoConfig.for_model(model_type, **values)


@cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(chat_template: str | None = CHATML, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most 320 tokens; round-trips any text."""
    names = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>", **special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_tokenizer_json()), **names)
    tokenizer.chat_template = chat_template
    return tokenizer


def make_tiny(
    model_type: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    chat_template: str | None = CHATML,
    max_shard_size: str = "5GB",
    **overrides: Any,
) -> Path:
    """Save a tiny random model of `model_type` with its tokenizer in `folder`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **overrides)).to(dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return folder


def with_new_tokens(folder: Path, count: int) -> Path:
    """The same folder with a tokenizer of `count` entries more than the model has embeddings for: the words `zork0` and on."""
    rows = int(AutoConfig.from_pretrained(str(folder)).get_text_config().vocab_size)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"fill{n}" for n in range(rows - len(tokenizer))])
    tokenizer.add_tokens([f"zork{n}" for n in range(count)])
    assert len(tokenizer) == rows + count
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_seeing(model_type: str, folder: Path, *, seed: int = 0) -> Path:
    """A tiny model that also sees: `gemma3` or `mistral3`, its language model nested inside."""
    torch.manual_seed(seed)
    inner = {"gemma3": "gemma3_text", "mistral3": "mistral"}[model_type]
    eyes = {"gemma3": "siglip_vision_model", "mistral3": "pixtral"}[model_type]
    config = AutoConfig.for_model(
        model_type,
        text_config=tiny_config(inner).to_dict(),
        vision_config={
            "model_type": eyes, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 2, "head_dim": 16, "image_size": 28, "patch_size": 14,
        },
        tie_word_embeddings=model_type == "gemma3",
    )  # fmt: skip
    model = AutoModelForImageTextToText.from_config(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSONL file of `rows`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def instruction_rows(count: int) -> list[dict[str, Any]]:
    """Alpaca rows with different, short texts."""
    return [
        {"instruction": f"Say number {n}", "input": "", "output": f"The number is {n}."} for n in range(count)
    ]
