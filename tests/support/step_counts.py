"""What a GPU will feel of a training step, counted where no clock is needed. Imports torch."""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = frozenset(
    f"aten.{name}" for name in (
        "view", "transpose", "t", "slice", "detach", "narrow", "expand", "unsqueeze", "split_with_sizes", "split", "select",
        "_unsafe_view", "squeeze", "alias", "permute", "as_strided", "unbind", "view_as",
    )
)  # fmt: skip
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default")
DEQUANTIZING = ("dequantize_4bit", "gemm_4bit")
OURS = "qlora_engine"


@dataclass(frozen=True)
class Counts:
    """Of one step. `host_reads` wait for the device; `read_by` says which lines of ours or of libraries did."""

    operators: int
    views: int
    dequantizations: int
    allocated_bytes: int
    host_reads: int
    read_by: tuple[str, ...]


class StepCounts(TorchDispatchMode):
    """Counts while inside, backward included: on the CPU it runs in the same thread."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.readers: list[str] = []
        self.allocated_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.by_name[name] += 1
        if any(read in name for read in READS):
            self.readers.append(_reader())
        out = func(*args, **(kwargs or {}))
        if name.rpartition(".")[0] not in VIEWS and not func._schema.is_mutable:
            tensors = out if isinstance(out, tuple | list) else (out,)
            self.allocated_bytes += sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
        return out

    def counts(self) -> Counts:
        return Counts(
            operators=sum(self.by_name.values()),
            views=sum(n for name, n in self.by_name.items() if name.rpartition(".")[0] in VIEWS),
            dequantizations=sum(
                n for name, n in self.by_name.items() if any(d in name for d in DEQUANTIZING)
            ),
            allocated_bytes=self.allocated_bytes,
            host_reads=len(self.readers),
            read_by=tuple(sorted(set(self.readers))),
        )


def _reader() -> str:
    """The innermost line outside of torch and this file."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f"{'/'.join(frame.filename.split('/')[-3:])}:{frame.lineno}"
    return "?"
