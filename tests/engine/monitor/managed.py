"""Stand-in managed memory for bitsandbytes on the CPU: the real page manager, ordinary buffers called paged."""

from __future__ import annotations

import functools
from typing import Any

import bitsandbytes.functional as functional
import pytest
import torch
from bitsandbytes.optim.optimizer import Optimizer8bit

MIN_PAGED_ELEMENTS = 1e5


def managed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paged optimizers page on the CPU too, into a page manager of this test's own."""
    real = Optimizer8bit.get_state_buffer

    @functools.wraps(real)
    def get_state_buffer(self: Any, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        buffer = torch.zeros_like(p, dtype=dtype)
        if self.is_paged and p.numel() >= MIN_PAGED_ELEMENTS:
            buffer.is_paged = True  # type: ignore[attr-defined]
            buffer.page_deviceid = 0  # type: ignore[attr-defined]
            self.page_mng.paged_tensors.append(buffer)
        return buffer

    monkeypatch.setattr(functional.GlobalPageManager, "_instance", None)
    monkeypatch.setattr(Optimizer8bit, "get_state_buffer", get_state_buffer)
    monkeypatch.setattr(functional, "prefetch_tensor", lambda tensor, to_cpu=False: None)
