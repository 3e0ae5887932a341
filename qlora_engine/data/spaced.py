"""How a tokenizer of SentencePiece's kind (Llama 2, Mistral, Gemma, Phi-3) may be asked word by word. Torch-free.

It writes spaces as `▁` and merges over the whole text; but where no token of its vocabulary has a `▁` behind another sign, no merge
goes across the beginning of a word, and the words can be made tokens of one by one (byte-pair encoding, Sennrich et al. 2016).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_engine.data.pretokens import steps_of

SPACE = "▁"
NEVER, EACH, EACH_WORD, FIRST_WORD = "never", "each", "each word", "first word"
"""Where a space is put: never, before each text between markers, before those that begin with none, or before the first of them."""
WORDS, SINGLE = re.compile(" *[^ ]+| +"), re.compile(" [^ ]*|[^ ]+")
ACROSS = re.compile(f"[^{SPACE}]{SPACE}")
SCHEMES = {"never": NEVER, "always": EACH_WORD, "first": FIRST_WORD}


@dataclass(frozen=True)
class Spaced:
    """`prepends`: one of the above. `is_split`: every space begins a piece, also one behind another."""

    prepends: str
    is_split: bool = False

    def begun(self, part: str, *, is_first: bool) -> str:
        """A text between markers with the space that it gets."""
        if self.prepends == EACH:
            return f" {part}"
        is_meant = self.prepends == EACH_WORD or (self.prepends == FIRST_WORD and is_first)
        return f" {part}" if is_meant and not part.startswith(" ") else part

    def pieces(self, part: str, is_first: bool) -> list[str]:
        pattern = SINGLE if self.is_split else WORDS
        return pattern.findall(self.begun(part, is_first=is_first))


def spacing_of(backend: Any) -> Spaced | None:
    """What a tokenizer does with spaces; None for one that does something else with a text too, or does not write them so."""
    normalizers = steps_of(backend.normalizer, "normalizers")
    splitters = steps_of(backend.pre_tokenizer, "pretokenizers")
    kinds = [step.get("type") for step in normalizers]
    if kinds in (["Replace"], ["Prepend", "Replace"], ["Replace", "Prepend"]):
        is_plain = all(_is_plain(step) for step in normalizers) and all(map(_is_idle, splitters))
        return Spaced(EACH if len(kinds) > 1 else NEVER) if is_plain else None
    if normalizers or [step.get("type") for step in splitters] != ["Metaspace"]:
        return None
    (step,) = splitters
    scheme = SCHEMES.get(str(step.get("prepend_scheme")))
    return (
        Spaced(scheme, bool(step.get("split", True))) if scheme and step.get("replacement") == SPACE else None
    )


def words_of(backend: Any) -> Spaced | None:
    """`spacing_of`, where its words are each other's strangers; None for any other tokenizer."""
    from tokenizers.models import BPE

    model, found = backend.model, spacing_of(backend)
    if found is None or not isinstance(model, BPE) or not model.byte_fallback or model.ignore_merges:
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    has_bytes = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    has_parts = bool(model.continuing_subword_prefix or model.end_of_word_suffix)
    are_strangers = found.is_split or not any(map(ACROSS.search, vocabulary))
    return found if has_bytes and are_strangers and not has_parts else None


def _is_plain(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Prepend":
        return step.get("prepend") == SPACE
    return step.get("content") == SPACE and step.get("pattern") == {"String": " "}


def _is_idle(step: Mapping[str, Any]) -> bool:
    """Cuts at spaces, of which none is left."""
    return step.get("type") == "Split" and step.get("pattern") == {"String": " "}
