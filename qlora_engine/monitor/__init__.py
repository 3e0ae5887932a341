"""Live memory: the GPU through NVML, what the optimizer paged, and the host. Torch-free at import.

`stream(seconds, hz, pid)` yields samples; `sampler.Sampler` takes them in a thread.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any


def stream(
    seconds: float | None = None, hz: float = 4.0, pid: int | None = None
) -> Generator[dict[str, Any], None, None]:
    """See `attach.stream`."""
    from qlora_engine.monitor import attach

    return attach.stream(seconds, hz, pid)
