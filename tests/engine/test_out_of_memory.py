"""Memory that ran out is known by every name, and by nobody but the module that knows them all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import qlora_engine
from qlora_engine import events, jobs, out_of_memory
from qlora_engine.control import Control

ERRORS = [
    (MemoryError(), "memory.host"),
    (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
        "memory.host",
    ),
    (RuntimeError("can't start new thread"), "memory.host"),
    (RuntimeError("std::bad_alloc"), "memory.host"),
    (ImportError("libarrow_compute.so: failed to map segment from shared object"), "memory.host"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory.gpu"),
    (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "memory.gpu"),
]


@pytest.mark.parametrize(("error", "code"), ERRORS)
def test_it_is_known_by_every_name(error: BaseException, code: str) -> None:
    assert out_of_memory.is_out_of_memory(error)
    assert out_of_memory.owner(error)[0] == code


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape '[3]' is invalid"), ValueError("out of memory"), ImportError("no module named x")],
)
def test_other_errors_are_others(error: BaseException) -> None:
    assert not out_of_memory.is_out_of_memory(error)


@pytest.mark.parametrize(("error", "code"), ERRORS)
def test_no_job_calls_it_a_bug(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: str) -> None:
    """Exports, chats, scores and rehearsals too: they are all carried out by one function."""

    def failing(*_: object) -> Iterator[events.Event]:
        raise error
        yield

    monkeypatch.setattr(jobs, "handler_of", lambda _: failing)
    (last,) = jobs.carry_out(jobs.ExportJob("run", "adapter", "out"), Control())
    assert isinstance(last, events.RunFailed)
    assert last.code == code
    assert "ran out of memory" in last.message


def test_nobody_else_asks_for_the_gpu_alone() -> None:
    """Torch's own exception is the GPU's: who caught it alone called the computer's a bug."""
    package = Path(qlora_engine.__file__).parent
    asking = [p for p in package.rglob("*.py") if "OutOfMemoryError" in p.read_text(encoding="utf-8")]
    assert asking == []
