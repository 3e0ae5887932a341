"""Loads a model's tokenizer from its folder, with transformers, which is imported only then. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlora_engine.errors import EngineError


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, from disk.

    Raises:
        EngineError: missing or damaged.
    """
    from transformers import AutoTokenizer

    from qlora_engine.models.quiet import quiet

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                str(path), trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise EngineError(
            "model.tokenizer", f"the folder {path} has no usable tokenizer: {_short(error)}",
            "download the model again, with tokenizer.json and tokenizer_config.json",
        ) from error  # fmt: skip


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
