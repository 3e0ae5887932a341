"""What torch and bitsandbytes can do here, as one JSON document on stdout: run in a child process by `doctor`.

Importing them takes seconds, may print, and may end the process; none of that may happen in `qlora` itself.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any


def collect() -> dict[str, Any]:
    """Facts of torch and bitsandbytes; what cannot be asked is None and what failed is in `errors`."""
    facts: dict[str, Any] = {"errors": []}
    for name, ask in (("torch", _torch), ("bitsandbytes", _bitsandbytes)):
        try:
            facts[name] = ask()
        except Exception as error:  # noqa: BLE001 - a broken installation is what doctor is for
            facts[name] = None
            facts["errors"].append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
    return facts


def _torch() -> dict[str, Any]:
    import torch

    has_cuda = torch.cuda.is_available()
    devices = [_device(torch, index) for index in range(torch.cuda.device_count())] if has_cuda else []
    return {
        "version": torch.__version__,
        "cuda_version": torch.version.cuda,
        "is_cuda_available": has_cuda,
        "devices": devices,
        "threads": torch.get_num_threads(),
        "has_cpu_bf16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    }


def _device(torch: Any, index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "total_bytes": properties.total_memory,
        "has_bf16": properties.major >= 8,
    }


def _bitsandbytes() -> dict[str, Any]:
    import bitsandbytes
    from bitsandbytes.cextension import lib

    has_cuda_library = bool(getattr(lib, "compiled_with_cuda", False))
    return {
        "version": bitsandbytes.__version__,
        "native_library": type(lib).__name__,
        "has_cuda_library": has_cuda_library,
        "can_page": has_cuda_library and _can_oversubscribe(),
    }


def _can_oversubscribe() -> bool:
    """Managed memory beyond the GPU's own exists on Linux only, and not under WSL."""
    return sys.platform == "linux" and "microsoft" not in platform.release().lower()


def main() -> int:
    """Print the document; what libraries print goes to stderr."""
    private = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(private, "w", encoding="utf-8") as out:
        json.dump(collect(), out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
