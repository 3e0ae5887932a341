"""The Model page's state: what can be chosen, and the facts of what is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.presenters.words import UNKNOWN, bytes_text, capital, count_text, parameters_text
from qlora_engine.errors import EngineError
from qlora_engine.models import known
from qlora_engine.models.catalog import CatalogEntry
from qlora_engine.models.known import KnownModel
from qlora_engine.models.spec import ModelFacts

ORIGINS = {
    "starter": "comes with the program",
    "folder": "on this disk",
    "gguf": "GGUF file",
    "cache": "Hugging Face cache",
    "hub": "Hugging Face",
    "known": "known by name, not on this disk",
}


@dataclass(frozen=True)
class ModelLine:
    name: str
    title: str
    detail: str
    is_chosen: bool
    problem: str = ""


@dataclass(frozen=True)
class ModelState:
    lines: tuple[ModelLine, ...]
    is_listing: bool
    title: str
    subtitle: str
    rows: tuple[tuple[str, ...], ...]
    notice: str = ""
    notice_hint: str = ""
    notice_tone: str = "accent"
    resize_text: str = ""
    """What the button that turns `model.resize_embeddings` says; empty when the tokenizer fits."""
    prepare_text: str = ""
    """What the button that gets the model says; empty when there is nothing to get."""
    preparing_text: str = ""
    preparing_share: float | None = None

    @property
    def is_preparing(self) -> bool:
        return bool(self.preparing_text)


def model_state(
    chosen: str,
    models: Sequence[CatalogEntry] | None,
    facts: ModelFacts | None,
    error: EngineError | None,
    preparing: str = "",
    share: float | None = None,
    preparing_error: EngineError | None = None,
) -> ModelState:
    lines = tuple(_line(entry, chosen) for entry in models or ())
    if not any(line.is_chosen for line in lines) and models is not None:
        lines = (*lines, ModelLine(chosen, chosen, "chosen by name", True))
    shown = preparing_error or error
    notice, hint, tone = ("", "", "accent") if preparing else _notice_of(facts, shown)
    needs = ""
    entry = next((e for e in models or () if e.name == chosen), None)
    if not preparing and error is None and (entry is not None and not entry.is_ready):
        needs = "Convert now" if entry.origin in ("starter", "gguf") else "Download now"
        if not notice:
            notice = "This model is converted once before its first use, in about a minute."
            hint = "That happens by itself when the run starts."
    elif not preparing and facts is not None and facts.path is None:
        needs = "Download now"
    return ModelState(
        lines=lines,
        is_listing=models is None,
        title=entry.title if entry is not None else chosen,
        subtitle=_subtitle(facts),
        rows=fact_rows(facts) if facts is not None else (),
        notice=notice,
        notice_hint=hint,
        notice_tone=tone,
        resize_text=_resize_text(facts, shown),
        prepare_text=needs,
        preparing_text=preparing,
        preparing_share=share,
    )


def _notice_of(facts: ModelFacts | None, error: EngineError | None) -> tuple[str, str, str]:
    """What there is to say of a model at rest, what to do about it, and its tone."""
    if error is not None:
        return capital(error.message), capital(error.hint), "bad"
    if facts is not None and facts.path is None:
        hint = "They are fetched when the run starts, or now with the button."
        return "The weights are not on this disk yet.", hint, "accent"
    if facts is not None and (facts.tokenizer_rows or 0) > facts.vocab_size:
        return *_missing_rows(facts), "warning"
    return "", "", "accent"


def _missing_rows(facts: ModelFacts) -> tuple[str, str]:
    entries, rows = count_text(facts.tokenizer_rows), count_text(facts.vocab_size)
    more = count_text((facts.tokenizer_rows or 0) - facts.vocab_size)
    return (
        f"The tokenizer has {entries} entries and the model embeddings for {rows}.",
        f"Rows with one of the {more} others cannot be trained, unless the embeddings are enlarged.",
    )


def _resize_text(facts: ModelFacts | None, error: EngineError | None) -> str:
    if error is not None:
        return "Leave them as they are" if error.code == "model.resize" else ""
    is_short = facts is not None and (facts.tokenizer_rows or 0) > facts.vocab_size
    return "Enlarge them" if is_short else ""


def known_names() -> tuple[tuple[str, str], ...]:
    """(name, what it is) of every model that is known by name; reads files, so not in the GUI thread."""
    return tuple((model.name, _known_text(model)) for model in known.known_models())


def _known_text(model: KnownModel) -> str:
    facts = model.facts()
    active = f" ({parameters_text(facts.active_parameters)} a token)" if facts.stacked else ""
    pieces = [f"{model.name}: {parameters_text(facts.parameters)}{active}"]
    if model.is_chat is not None:
        pieces.append("tuned to chat" if model.is_chat else "continues text")
    pieces.append(f"{count_text(facts.max_positions)} tokens" if facts.max_positions else "")
    pieces.append(model.licence or "")
    return " \u00b7 ".join(piece for piece in pieces if piece)


def fact_rows(facts: ModelFacts) -> tuple[tuple[str, ...], ...]:
    """What memory and quality depend on, named as the field does."""
    experts = (
        f"{count_text(facts.experts)} experts, {count_text(facts.experts_per_token)} per token"
        if facts.experts
        else ""
    )
    heads = f"{count_text(facts.heads)} heads, {count_text(facts.kv_heads)} key-value heads of {count_text(facts.head_dim)}"
    rows = [
        ("Parameters", f"{count_text(facts.parameters)}"),
        ("Quantized", f"{parameters_text(facts.quantized_parameters)} in linear layers become 4-bit", "Embeddings, norms, biases and the head stay in 16 bits"),
        ("Architecture", facts.architecture),
        ("Layers", f"{count_text(facts.layers)}, hidden size {count_text(facts.hidden_size)}"),
        ("Attention", heads + (f", window {count_text(facts.sliding_window)}" if facts.sliding_window else "")),
        ("MLP", f"{count_text(facts.intermediate_size)}{', gated' if facts.is_gated_mlp else ''}{', ' + experts if experts else ''}"),
        ("Vocabulary", f"{count_text(facts.vocab_size)}{_added(facts)}{', tied with the head' if facts.is_tied else ''}"),
        ("Context", f"{count_text(facts.max_positions)} tokens" if facts.max_positions else UNKNOWN),
        ("On disk", f"{bytes_text(facts.stored_bytes)} as {facts.stored_dtype}" if facts.stored_bytes else "not on this disk"),
        ("Chat template", "the model's own" if facts.chat_template else "none; one is chosen on the Data page"),
        ("Licence", facts.licence or UNKNOWN, "" if facts.licence else "The model's files do not say"),
    ]  # fmt: skip
    if facts.revision:
        rows.append(("Revision", facts.revision))
    if facts.path:
        rows.append(("Folder", facts.path))
    return tuple(rows)


def _added(facts: ModelFacts) -> str:
    return f", of them {count_text(facts.new_rows)} added and trained" if facts.new_rows else ""


def _line(entry: CatalogEntry, chosen: str) -> ModelLine:
    pieces = [parameters_text(entry.parameters)] if entry.parameters else []
    pieces.append(ORIGINS.get(entry.origin, entry.origin))
    if entry.licence:
        pieces.append(entry.licence)
    if not entry.is_ready and not entry.problem:
        pieces.append("converted on first use" if entry.origin in ("starter", "gguf") else "to be downloaded")
    return ModelLine(
        entry.name, entry.title, " \u00b7 ".join(pieces), entry.name == chosen, entry.problem or ""
    )


def _subtitle(facts: ModelFacts | None) -> str:
    if facts is None:
        return ""
    origin = ORIGINS.get(facts.origin, facts.origin)
    kind = f"{facts.model_type} \u00b7 " if facts.model_type != facts.architecture else ""
    return f"{parameters_text(facts.parameters)} parameters \u00b7 {kind}{origin}"
