"""Every way in which torch, bitsandbytes and Python say that memory ran out, the GPU's or the computer's. Imports torch."""

from __future__ import annotations

import torch

WORDS = (
    "can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "alloc_failed",
    "std::bad_alloc", "failed to allocate", "can't start new thread",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """True for whatever says so: torch has an exception for the GPU alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(known in words for known in WORDS)


def is_of_gpu(error: BaseException) -> bool:
    """Whose memory it was."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "cuda" in words or "cublas" in words


def owner(error: BaseException) -> tuple[str, str]:
    """(the code, whose memory it was in words) of an `EngineError`."""
    return ("memory.gpu", "the GPU") if is_of_gpu(error) else ("memory.host", "the computer")


def release() -> None:
    """Give cached memory of the GPU back to it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
