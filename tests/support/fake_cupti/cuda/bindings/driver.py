"""Stands in for CUDA's driver binding: it starts, or answers with `result`."""

from __future__ import annotations

result = 0
calls: list[int] = []


def cuInit(flags: int) -> tuple[int]:
    calls.append(flags)
    return (result,)
