"""The model card written beside every export: base, revision, quantization, data hash, settings, scores. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_engine import __version__, config_io
from qlora_engine.config import TrainingConfig, all_knobs, get_value, with_value
from qlora_engine.export.source import Source
from qlora_engine.runs import endings


def model_card(source: Source, what: str, details: Mapping[str, Any]) -> str:
    """Markdown with front matter, for `README.md`."""
    record, model = source.record, source.record.get("model") or {}
    name = public(str(model.get("name") or ""))
    load, data = record.get("load_report") or {}, record.get("data") or {}
    lines = [
        "---",
        *([f"base_model: {name}"] if "/" in name else []),
        "library_name: " + ("peft" if what == "adapter" else "transformers"),
        "tags: [qlora, qlora-studio]",
        "---",
        "",
        f"# {source.folder.run_id}",
        "",
        f"Fine-tuned with QLoRA by QLoRA Studio {__version__}: {source.variant} on {name}, exported as {what}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _facts(record, model, load, data, details).items()),
        "",
        *(_enlarged(source.embedding_rows, what) if source.embedding_rows is not None else ()),
        "## Files of the base",
        "",
        *(f"- `{name}` sha256 `{digest}`" for name, digest in (model.get("fingerprint") or {}).items()),
        "",
        "## Settings",
        "",
        "```toml",
        config_io.dumps(_published(source.config)).strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _enlarged(rows: int, what: str) -> list[str]:
    """That the embeddings have more rows than the base's, and how the adapter is loaded then."""
    lines = [
        "## Embeddings",
        "",
        f"Enlarged to {rows:,} rows for tokens that the base has no embeddings for; the new rows were trained whole.",
        "",
    ]
    if what != "adapter":
        return lines
    return [
        *lines,
        "The base gets as many before the adapter is put on it:",
        "",
        "```python",
        "model = AutoModelForCausalLM.from_pretrained(BASE)",
        f"model.resize_token_embeddings({rows})",
        "model = PeftModel.from_pretrained(model, ADAPTER)",
        "```",
        "",
    ]


def _facts(
    record: Mapping[str, Any],
    model: Mapping[str, Any],
    load: Mapping[str, Any],
    data: Mapping[str, Any],
    details: Mapping[str, Any],
) -> dict[str, Any]:
    nested = "with" if load.get("is_double_quant") else "without"
    return {
        "base": public(str(model.get("name") or "")),
        "revision": model.get("revision") or "as on disk",
        "quantization in training": f"{load.get('quant_type')}, block {load.get('block_size')}, {nested} double quantization",
        **({"weights of the base": load["converted"]} if load.get("converted") else {}),
        "compute type": load.get("compute_dtype"),
        "data": f"{public(str(data.get('origin')))} ({data.get('train_rows')} rows)",
        "data sha256": data.get("sha256"),
        "held-out loss before": _number(record.get("loss_before")),
        "held-out loss after": _number(record.get("loss_after")),
        **_ended(record),
        "steps": record.get("last_step"),
        "seed": record.get("seed"),
        "versions": ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items()),
        **{name: value for name, value in details.items() if not isinstance(value, Mapping)},
    }


def _ended(record: Mapping[str, Any]) -> dict[str, str]:
    """How many answers stopped by themselves, where it was tried."""
    found = endings.of_record(record)
    if found is None:
        return {}
    words = f"{found.ended} of {found.asked} (limit of {found.limit} tokens)"
    return {"held-out answers that ended by themselves": words}


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "n/a"


def _published(config: TrainingConfig) -> TrainingConfig:
    """Any setting may be a place on this disk, a template's or a dataset's; a card is read by others."""
    for path in all_knobs():
        value = get_value(config, path)
        if isinstance(value, str):
            config = with_value(config, path, public(value))
    return config


def public(name: str) -> str:
    """A hub id or a name as it is; of a place on this disk, only its last part."""
    place = Path(name).expanduser()
    return place.name if place.is_absolute() or place.exists() else name
