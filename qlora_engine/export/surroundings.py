"""What stands beside merged weights: config, generation config with every end token, tokenizer and chat template.

Imports transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_engine import parsing
from qlora_engine.data.templates import Template, chosen
from qlora_engine.export.source import Source
from qlora_engine.models import loading, spec


def write(source: Source, folder: Path, dtype: str, quantization: Mapping[str, Any] | None = None) -> None:
    """Write them into `folder`; `dtype` is torch's name, `quantization` goes into the config.

    Raises:
        OSError: the disk is full.
    """
    config = dict(spec.read_config(source.base_path))
    config.pop("quantization_config", None)
    if isinstance(config.get("text_config"), Mapping):
        config["text_config"] = {k: v for k, v in config["text_config"].items() if k != "quantization_config"}
    if source.embedding_rows is not None:
        _set_rows(config, source.embedding_rows)
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    if quantization is not None:
        config["quantization_config"] = dict(quantization)
    _write_json(folder / "config.json", config)
    tokenizer, template, ends = words_of(source)
    generation = _read_json(source.base_path / "generation_config.json")
    if ends:
        generation["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    _write_json(folder / "generation_config.json", generation)
    tokenizer.chat_template = template.exported
    tokenizer.save_pretrained(folder)


def notes(source: Source) -> dict[str, str]:
    """What the model card, the proof and the result say of the chat template: the ends it lacks, where it lacks some."""
    lacking = words_of(source)[1].lacking
    return {} if lacking is None else {"chat template": lacking}


def _set_rows(config: dict[str, Any], rows: int) -> None:
    """Of a model that also sees the language model's own part says how many there are, and often that alone."""
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config["text_config"] = {**text, "vocab_size": rows}
    if not isinstance(text, Mapping) or "vocab_size" in config:
        config["vocab_size"] = rows


def words_of(source: Source) -> tuple[Any, Template, list[int]]:
    """The base's tokenizer, the template the run was trained with, and the tokens that end an answer."""
    tokenizer = loading.load_tokenizer(source.base_path)
    template = chosen(tokenizer, source.config.data)
    return tokenizer, template, end_ids(source.record.get("load_report") or {}, tokenizer, template)


def end_ids(load_report: Mapping[str, Any], tokenizer: Any, template: Template) -> list[int]:
    """The model's end tokens and those the run's template ends an answer with (CORRECTNESS 15)."""
    vocabulary = tokenizer.get_vocab()
    written = (vocabulary[token] for token in template.end_tokens if token in vocabulary)
    return sorted({*(load_report.get("end_token_ids") or ()), *written})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = parsing.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
