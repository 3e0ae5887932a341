"""A tokenizer as a GGUF file says it. Imports transformers.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. llama.cpp knows the ways of splitting text by name, so a
way that has no name there cannot be written and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from qlora_engine import parsing
from qlora_engine.data.templates import Template
from qlora_engine.errors import EngineError
from qlora_engine.models.quiet import quiet

GPT2, DIGITS, WHOLE_WORDS = "gpt-2", "smollm", "llama-bpe"
# Names of llama.cpp for the patterns transformers lists; several names share one pattern.
NAMED_SPLITS = (WHOLE_WORDS, "qwen2", "tekken", "gpt-4o")
SHARED_SPLIT = (
    "dbrx"  # the pattern of llama-bpe, without its rule that a whole word in the vocabulary is not cut
)
NORMALIZERS = (
    None,
    "NFC",
)  # llama.cpp does not normalize; texts in NFC, which nearly all are, stay as they are


@dataclass(frozen=True)
class Vocabulary:
    """What goes into a file. `pre` is llama.cpp's name for how text is split; `scores` or `merges` is None."""

    kind: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[gguf.TokenType]
    scores: Sequence[float] | None
    merges: Sequence[str] | None
    adds_bos: bool
    adds_eos: bool
    adds_space: bool


@dataclass(frozen=True)
class Ends:
    """The tokens a generation stops at. `eos` is the one that ends an answer; `others` go into eot and eom."""

    eos: int | None
    others: tuple[int, ...]


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """`size` tokens, one per row of the embeddings; rows the tokenizer does not use are filled.

    Raises:
        EngineError: a tokenizer that a GGUF file cannot say.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise _refusal("it is a slow one, without a tokenizer.json")
    stored = parsing.from_json(tokenizer.backend_tokenizer.to_str())
    model = stored["model"]
    if model["type"] != "BPE":
        raise _refusal(f"it is of the kind {model['type']}, not BPE")
    added = {int(token["id"]): token for token in stored["added_tokens"]}
    names = {index: text for text, index in model["vocab"].items()}
    names |= {index: token["content"] for index, token in added.items()}
    if max(names) >= size:
        raise _refusal(f"it has the token {max(names)}, and the model only {size} embeddings")
    is_bytes = not model.get("byte_fallback")
    tokens = [names.get(index, f"[PAD{index}]") for index in range(size)]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    marked = tokenizer("a")["input_ids"]
    return Vocabulary(
        kind="gpt2" if is_bytes else "llama",
        pre=_split_name(stored) if is_bytes else "default",
        tokens=tokens,
        types=[_type_of(index, names, added, tokenizer.unk_token_id, is_bytes) for index in range(size)],
        scores=None if is_bytes else _scores(tokens, model["merges"]),
        merges=[_merge(pair) for pair in model["merges"]] if is_bytes else None,
        adds_bos=bos is not None and marked[0] == bos,
        adds_eos=eos is not None and marked[-1] == eos,
        adds_space=not is_bytes and tokenizer.tokenize("a")[0].startswith("\u2581"),
    )


def ends_of(tokenizer: Any, template: Template, end_ids: Sequence[int]) -> Ends:
    """A template that writes `eos_token` must find it as it was; any other ends answers with its own token."""
    vocabulary = tokenizer.get_vocab()
    written = [vocabulary[token] for token in template.end_tokens if token in vocabulary]
    eos = tokenizer.eos_token_id
    if written and (eos is None or "eos_token" not in template.jinja):
        eos = written[0]
    return Ends(eos, tuple(index for index in dict.fromkeys([*written, *end_ids]) if index != eos))


def write(writer: gguf.GGUFWriter, tokenizer: Any, words: Vocabulary, ends: Ends, template: Template) -> None:
    """Add the tokenizer, its special tokens and the chat template to a file's metadata."""
    writer.add_tokenizer_model(words.kind)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(list(words.tokens))
    if words.scores is not None:
        writer.add_token_scores(list(words.scores))
    writer.add_token_types([int(kind) for kind in words.types])
    if words.merges is not None:
        writer.add_token_merges(list(words.merges))
    marks = {
        writer.add_bos_token_id: tokenizer.bos_token_id,
        writer.add_eos_token_id: ends.eos,
        writer.add_unk_token_id: tokenizer.unk_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
        **dict(zip((writer.add_eot_token_id, writer.add_eom_token_id), ends.others, strict=False)),
    }
    for add, index in marks.items():
        if index is not None:
            add(index)
    writer.add_add_bos_token(words.adds_bos)
    writer.add_add_eos_token(words.adds_eos)
    writer.add_add_space_prefix(words.adds_space)
    writer.add_chat_template(template.exported)


def read(file: Path, pre: str) -> Any:
    """The tokenizer of a GGUF file as llama.cpp would read it: transformers leaves out two of its rules."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    backend = tokenizer.backend_tokenizer
    if pre == DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
    if pre == WHOLE_WORDS:
        backend.model.ignore_merges = True
    return tokenizer


def _split_name(stored: Mapping[str, Any]) -> str:
    normalizer = (stored["normalizer"] or {}).get("type")
    if normalizer not in NORMALIZERS:
        raise _refusal(f"it changes text with {normalizer} before it is cut")
    steps = stored["pre_tokenizer"] or {}
    parts = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    ignores_merges = bool(stored["model"].get("ignore_merges"))
    match [part.get("type") for part in parts]:
        case ["ByteLevel"] if _is_plain(parts[0]) and not ignores_merges:
            return GPT2
        case ["Digits", "ByteLevel"] if parts[0]["individual_digits"] and _is_plain(parts[1]):
            return DIGITS
        case ["Split", "ByteLevel"] if not parts[1]["use_regex"] and not parts[1]["add_prefix_space"]:
            pattern = parts[0]["pattern"].get("Regex")
            found = next((n for n in NAMED_SPLITS if GGUF_PRE_TOKENIZER_SPLITS.get(n) == pattern), None)
            if found == WHOLE_WORDS and not ignores_merges:
                return SHARED_SPLIT
            if found is not None and ignores_merges == (found == WHOLE_WORDS):
                return found
    raise _refusal("it splits text in a way that llama.cpp has no name for")


def _is_plain(part: Mapping[str, Any]) -> bool:
    return bool(part["use_regex"]) and not part["add_prefix_space"]


def _type_of(
    index: int, names: Mapping[int, str], added: Mapping[int, Any], unknown: int | None, is_bytes: bool
) -> gguf.TokenType:
    if index not in names:
        return gguf.TokenType.UNUSED
    if not is_bytes and index == unknown:
        return gguf.TokenType.UNKNOWN
    if index in added:
        return gguf.TokenType.CONTROL if added[index]["special"] else gguf.TokenType.USER_DEFINED
    text = names[index]
    if not is_bytes and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def _scores(tokens: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """llama.cpp joins the pair whose result scores highest: minus the place of the first merge that makes it."""
    places: dict[str, int] = {}
    for pair in merges:
        places.setdefault("".join(pair if isinstance(pair, list) else pair.split(" ")), len(places))
    return [-float(places.get(token, len(places))) for token in tokens]


def _merge(pair: Any) -> str:
    """A merge as one text; a space inside a part is spelled as byte-level tokens spell it."""
    if isinstance(pair, str):
        return pair
    return " ".join(part.replace(" ", "\u0120") for part in pair)


def _refusal(why: str) -> EngineError:
    return EngineError(
        "export.gguf_tokenizer",
        f"this model's tokenizer cannot be written to a GGUF file: {why}",
        "export it as a merged model",
    )
