"""Tokenizers with more entries than the model has embeddings: what rows are missing, and the facts with them. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qlora_engine import parsing
from qlora_engine.errors import EngineError
from qlora_engine.models.parts import ModelFacts, TensorFact

ROLES = ("embedding", "head")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))


def rows_needed(tokenizer: Any) -> int:
    """Rows that a loaded tokenizer needs: one for each of its entries, and for every number below the largest."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def rows_needed_by(folder: Path) -> int | None:
    """The same of the tokenizer in a model's folder, read off its files; None where they do not say."""
    files = [folder / name for name in FILES]
    stamps = tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.is_file())
    return _rows_in(stamps)


def grown(facts: ModelFacts, rows: int) -> ModelFacts:
    """`facts` with `rows` rows of the embeddings, and of a head of its own; as they are where they have as many.

    Raises:
        EngineError: a model that cannot get new rows, with the reason.
    """
    if rows <= facts.vocab_size:
        return facts
    require_growable(facts)
    return replace(
        facts,
        vocab_size=rows,
        new_rows=rows - facts.vocab_size,
        unquantized=tuple(
            replace(one, shape=(rows, *one.shape[1:])) if _is_table(one, facts) else one
            for one in facts.unquantized
        ),
    )


def require_growable(facts: ModelFacts) -> None:
    """Refuse a model whose new rows could not be trained, saved or loaded again.

    Raises:
        EngineError: with the reason.
    """
    why = _why_not(facts)
    if why:
        raise EngineError(
            "model.resize",
            f"the embeddings of {facts.name} cannot be enlarged here: {why}",
            "use a tokenizer whose every entry has an embedding, and set model.resize_embeddings to false",
        )


def tables(facts: ModelFacts) -> list[TensorFact]:
    """What has a row for every token: the embeddings, and a head of its own."""
    return [one for one in facts.unquantized if _is_table(one, facts)]


def _why_not(facts: ModelFacts) -> str:
    found = tables(facts)
    if _has_rows_per_layer(facts) or len(found) > (1 if facts.is_tied else 2):
        return "it looks tokens up in more tables than one, and what the others should hold of a new token nothing says"
    if any(one.shape == (facts.vocab_size,) for one in facts.unquantized):
        return "its head has a bias for every entry, which PEFT leaves out where it trains rows of a head"
    if facts.source == "files":
        return "it brings code of its own, of which nobody knows what else depends on their number"
    if len(found) != (1 if facts.is_tied else 2):
        return "its class keeps them in a way that is not known here"
    return ""


def _has_rows_per_layer(facts: ModelFacts) -> bool:
    """Gemma's small models look every token up once more, for all layers, in a table of another size."""
    text = facts.config.get("text_config") or facts.config
    return bool(text.get("vocab_size_per_layer_input") and text.get("hidden_size_per_layer_input", 1))


def _is_table(one: TensorFact, facts: ModelFacts) -> bool:
    return one.role in ROLES and len(one.shape) == 2 and one.shape[0] == facts.vocab_size


@lru_cache(maxsize=16)
def _rows_in(stamps: tuple[tuple[str, int, int], ...]) -> int | None:
    numbers: dict[str, int] = {}
    named: set[str] = set()
    for name, _, _ in stamps:
        try:
            plain = parsing.from_json(Path(name).read_text(encoding="utf-8"))
            numbers.update(_numbers(plain))
            named.update(_named(plain))
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            continue  # it is damaged, which loading tells
    return max(numbers.values()) + 1 + len(named - set(numbers)) if numbers else None


def _numbers(plain: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The number of every token that a tokenizer's file lists."""
    words = (plain.get("model") or {}).get("vocab") or {}
    yield from words.items() if isinstance(words, dict) else ((w[0], n) for n, w in enumerate(words))
    yield from ((token["content"], int(token["id"])) for token in plain.get("added_tokens") or ())
    listed = plain.get("added_tokens_decoder") or {}
    yield from ((token["content"], int(number)) for number, token in listed.items())


def _named(plain: Mapping[str, Any]) -> Iterator[str]:
    """Tokens named for a purpose (`pad_token`): loading adds those that no file lists."""
    more = plain.get("extra_special_tokens") or plain.get("additional_special_tokens") or ()
    values = [value for key, value in plain.items() if key in NAMED]
    for value in [*values, *(more.values() if isinstance(more, dict) else more)]:
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            yield text
