"""The empty process: makes a CUDA context, runs the kernels of a step once on almost nothing, and tells what NVML says
that took. One JSON document on stdout. Run by `memory.context`; imports torch.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from qlora_engine.monitor.nvml import Handle, Nvml
from qlora_engine.monitor.nvml_words import Unavailable

LEAST_BYTES, MOST_BYTES = 32 * 1024**2, 8 * 1024**3
"""Outside of this somebody else's memory was measured."""
SIDE = 256


class NoAnswerError(Exception):
    """Why it cannot be measured."""


def main(arguments: list[str]) -> int:
    """Print {"bytes", "problem"}; always exit code 0."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not reach the answer
    try:
        answer = {"bytes": measure(int(arguments[0])), "problem": ""}
    except Exception as error:  # noqa: BLE001 - any reason is an answer
        answer = {"bytes": None, "problem": str(error).splitlines()[0][:200] if str(error) else repr(error)}
    json.dump(answer, out)
    out.close()
    return 0


def measure(index: int) -> int:
    """Bytes of context, kernels and workspace on the GPU that torch numbers `index`.

    Raises:
        NoAnswerError: the driver does not tell.
    """
    nvml = Nvml()
    if not nvml.start():
        raise NoAnswerError(nvml.why_not or "NVML does not answer")
    before = used_by_uuid(nvml)
    import torch

    _use_kernels(torch, index)
    gc.collect()
    torch.cuda.empty_cache()
    # cuBLAS takes its workspace from the allocator and keeps it: that stays counted, the rest of the reserve does not.
    free = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    return taken(nvml, uuid, os.getpid(), before) - free


def used_by_uuid(nvml: Nvml) -> dict[str, int]:
    """What is in use on every GPU, by any process."""
    found = {}
    for _, uuid, device in _devices(nvml):
        memory = nvml.memory(device)
        if not isinstance(memory, Unavailable):
            found[uuid] = memory.used_bytes
    return found


def taken(nvml: Nvml, uuid: str, pid: int, before: Mapping[str, int]) -> int:
    """What process `pid` has on the GPU of that uuid: as the driver lists it, else by how much the GPU's use grew
    (containers number processes otherwise, and some drivers do not tell a process's share).

    Raises:
        NoAnswerError: neither is known, or it cannot be this process's.
    """
    device, name = next(((d, n) for _, n, d in _devices(nvml) if n.endswith(uuid)), (None, ""))
    if device is None:
        raise NoAnswerError("the driver knows no GPU of torch's identity")
    listed = nvml.processes(device)
    own = (
        None
        if isinstance(listed, Unavailable)
        else next((p.used_bytes for p in listed if p.pid == pid), None)
    )
    if own is None:
        now = nvml.memory(device)
        if isinstance(now, Unavailable) or name not in before:
            raise NoAnswerError("the driver does not tell what is in use")
        own = now.used_bytes - before[name]
    if not LEAST_BYTES <= own <= MOST_BYTES:
        raise NoAnswerError(f"{own / 1024**2:,.0f} MiB cannot be an empty process; something else moved")
    return own


def _devices(nvml: Nvml) -> list[tuple[int, str, Handle]]:
    """(index, uuid, handle) of what answers."""
    count = nvml.device_count()
    found = []
    for index in range(0 if isinstance(count, Unavailable) else count):
        device = nvml.device(index)
        uuid = device if isinstance(device, Unavailable) else nvml.uuid(device)
        if not isinstance(device, Unavailable) and isinstance(uuid, str):
            found.append((index, uuid, device))
    return found


def _use_kernels(torch: Any, index: int) -> None:
    """A product (cuBLAS and its workspace), attention, and a 4-bit weight there and back, in the run's compute type."""
    import bitsandbytes.functional as bnb

    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    with torch.cuda.device(index):
        square = torch.ones(SIDE, SIDE, device="cuda", dtype=dtype)
        packed, state = bnb.quantize_4bit(square, compress_statistics=True, quant_type="nf4")
        product = square @ bnb.dequantize_4bit(packed, state)
        heads = product.view(1, 4, SIDE, SIDE // 4)
        torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True).float().sum()
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
