"""A model's tokenizer for looking at its data, made again from what the ML stack once said of it. Torch-free.

Importing that stack takes many times longer than reading prepared rows. The first look loads the tokenizer with it and keeps
what data ask of a tokenizer; later looks at the same files need `tokenizers` alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from qlora_engine.data import cache
from qlora_engine.data.plain_tokenizer import PlainTokenizer
from qlora_engine.parsing import object_from_json

KIND = "tokenizers"
BACKEND_FILE, FACTS_FILE = "tokenizer.json", "facts.json"
HASHED_BYTES = 64 << 20
"""Larger files are weights: their size and time stand for them."""


@dataclass(frozen=True, eq=False)
class KeptTokenizer(PlainTokenizer):
    """Answers as the wrapper of transformers does."""

    pad_token_id: int | None
    all_special_ids: Sequence[int]
    all_special_tokens: Sequence[str]
    special_tokens_map: Mapping[str, Any]
    chat_template: str | Mapping[str, str] | None
    name_or_path: str
    """The folder of the model, whose generation_config.json names ends of answers."""
    is_fast: bool = True

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int | None]:
        found = super().convert_tokens_to_ids(tokens)
        return [self.unk_token_id if number is None else number for number in found]

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> Any:
        return (
            self.backend_tokenizer.id_to_token(ids)
            if isinstance(ids, int)
            else super().convert_ids_to_tokens(ids)
        )

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return str(self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


FACTS = (
    "bos_token", "eos_token", "bos_token_id", "unk_token_id", "pad_token_id", "all_special_ids", "all_special_tokens",
    "special_tokens_map", "chat_template",
)  # fmt: skip


def load(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model's folder: the kept one, else the wrapper, of which the facts are kept then.

    Raises:
        EngineError: missing or damaged.
    """
    from qlora_engine.models import tokenizer_file

    if trust_remote_code:
        return tokenizer_file.load_tokenizer(path, trust_remote_code=True)
    key = cache.key_of(_read_by_wrapper(path))
    kept = _found(key, path)
    if kept is not None:
        return kept
    tokenizer = tokenizer_file.load_tokenizer(path)
    if _is_plain(tokenizer):
        cache.keep(KIND, key, lambda folder: _write(tokenizer, folder))
    return tokenizer


def _read_by_wrapper(path: Path) -> list[Any]:
    """Whatever the wrapper may have read: the files of the folder, and the versions of the readers."""
    versions = [metadata.version(name) for name in ("transformers", "tokenizers")]
    files = sorted(
        file for there in ("*", "additional_chat_templates/*") for file in path.glob(there) if file.is_file()
    )
    return [*versions, [[file.relative_to(path).as_posix(), _content(file)] for file in files]]


def _content(file: Path) -> Any:
    stat = file.stat()
    if stat.st_size > HASHED_BYTES:
        return [stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _found(key: str, path: Path) -> KeptTokenizer | None:
    from tokenizers import Tokenizer

    entry = cache.find(KIND, key)
    if entry is None:
        return None
    try:
        facts = object_from_json((entry / FACTS_FILE).read_bytes())
        backend = Tokenizer.from_file(str(entry / BACKEND_FILE))
        return KeptTokenizer(backend_tokenizer=backend, name_or_path=str(path), **facts)
    except Exception:  # noqa: BLE001 - tokenizers raises bare Exception; a damaged entry is made again
        return None


def _is_plain(tokenizer: Any) -> bool:
    """Whether the backend decodes as the wrapper does, and JSON holds what the wrapper says."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    cleans = (
        tokenizer.clean_up_tokenization_spaces and type(tokenizer.backend_tokenizer.model).__name__ != "BPE"
    )
    try:
        facts = _facts(tokenizer)
        is_same = object_from_json(json.dumps(facts).encode()) == facts
    except (TypeError, ValueError):
        return False
    return is_same and not cleans and type(tokenizer)._decode is PreTrainedTokenizerFast._decode


def _facts(tokenizer: Any) -> dict[str, Any]:
    return {
        **{name: getattr(tokenizer, name) for name in FACTS},
        "add_bos_token": getattr(tokenizer, "add_bos_token", None),
    }


def _write(tokenizer: Any, folder: Path) -> None:
    (folder / BACKEND_FILE).write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    (folder / FACTS_FILE).write_text(json.dumps(_facts(tokenizer)), encoding="utf-8")
