"""Have freed memory kept for the next tensor, where the C library would give it back to the system. Torch-free.

glibc takes what is larger than its threshold from the system and returns it when it is freed. A step on the CPU makes gigabytes
of tensors, and the system clears every page of them anew: a tenth of the step.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""As in glibc's malloc.h."""
KEPT_BYTES = 2**31 - 1
LARGEST_KEPT_BYTES = (2**30, 2**25)
"""The second is the most that older versions allow."""
GROWTH_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """For this process, from now on; False where the C library has no such switch."""
    set_option = _mallopt()
    if set_option is None:
        return False
    keeps = any(set_option(M_MMAP_THRESHOLD, most) == 1 for most in LARGEST_KEPT_BYTES)
    return (
        keeps and set_option(M_TRIM_THRESHOLD, KEPT_BYTES) == 1 and set_option(M_TOP_PAD, GROWTH_BYTES) == 1
    )


def give_back_freed_memory() -> None:
    """Return to the system what is free now, without changing what is kept later."""
    if _mallopt() is not None:
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt() -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library.mallopt if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
