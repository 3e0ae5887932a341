"""Every way in which torch, bitsandbytes and Python say that memory ran out, the GPU's or the computer's. Torch-free."""

from __future__ import annotations

import sys

WORDS = (
    "can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "alloc_failed",
    "std::bad_alloc", "failed to allocate", "can't start new thread", "failed to map segment",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """True for whatever says so: torch's own exception, a RuntimeError, is the GPU's alone, and a library that finds no room
    when it is imported is an ImportError."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and any(known in words for known in WORDS)
    )


def owner(error: BaseException) -> tuple[str, str]:
    """(the code, whose memory it was in words) of an `EngineError`."""
    words = str(error).lower()
    is_of_gpu = any(name in words for name in ("cuda", "cublas"))
    return ("memory.gpu", "the GPU") if is_of_gpu else ("memory.host", "the computer")


def release() -> None:
    """Give cached memory of the GPU back to it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
