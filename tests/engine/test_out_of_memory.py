"""Memory that ran out is known by every name, and by nobody but the module that knows them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qlora_engine
from qlora_engine import out_of_memory


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "memory.host"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
            "memory.host",
        ),
        (RuntimeError("can't start new thread"), "memory.host"),
        (RuntimeError("std::bad_alloc"), "memory.host"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory.gpu"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "memory.gpu"),
    ],
)
def test_it_is_known_by_every_name(error: BaseException, code: str) -> None:
    assert out_of_memory.is_out_of_memory(error)
    assert out_of_memory.owner(error)[0] == code


@pytest.mark.parametrize("error", [RuntimeError("shape '[3]' is invalid"), ValueError("out of memory")])
def test_other_errors_are_others(error: BaseException) -> None:
    assert not out_of_memory.is_out_of_memory(error)


def test_nobody_else_asks_for_the_gpu_alone() -> None:
    """Torch's own exception is the GPU's: who caught it alone called the computer's a bug."""
    package = Path(qlora_engine.__file__).parent
    asking = [p for p in package.rglob("*.py") if "OutOfMemoryError" in p.read_text(encoding="utf-8")]
    assert [p.name for p in asking] == ["out_of_memory.py"]
