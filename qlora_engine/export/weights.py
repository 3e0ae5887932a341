"""Reads rows of a base's stored weights, a few at a time. Imports torch.

Nothing is mapped: what is read through a mapping counts as this process's memory until the file is closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from qlora_engine.errors import EngineError
from qlora_engine.models import spec
from qlora_engine.models.files import StoredTensor

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Weights:
    """The weights of a model folder. Safe from several threads: every read opens the file for itself."""

    folder: Path
    headers: Mapping[str, StoredTensor]

    @classmethod
    def of(cls, folder: Path) -> Weights:
        """Read the headers.

        Raises:
            EngineError: missing, damaged, or a tensor of a type that is not a plain float.
        """
        headers = spec.headers_of_folder(folder)
        for name, header in headers.items():
            if header.dtype not in TYPES:
                raise EngineError(
                    "export.dtype", f"{name} is stored as {header.dtype}, which is not merged here",
                    "export it as an adapter",
                )  # fmt: skip
        return cls(folder, headers)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.headers[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return TYPES[self.headers[name].dtype]

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` as they are stored.

        Raises:
            OSError: the file is gone or shorter than its header says.
        """
        header, dtype, shape = self.headers[name], self.dtype(name), self.shape(name)
        row_bytes = header.nbytes // shape[0] if shape and shape[0] else header.nbytes
        count = (stop - start) * row_bytes
        buffer = torch.empty(count, dtype=torch.uint8)
        assert header.start is not None
        with (self.folder / header.file).open("rb", buffering=0) as stream:
            stream.seek(header.start + start * row_bytes)
            view = memoryview(buffer.numpy())
            while view:
                read = stream.readinto(view)
                if not read:
                    raise OSError(5, f"the base's file {header.file} became shorter", str(stream.name))
                view = view[read:]
        return buffer.view(dtype).reshape(stop - start, *shape[1:]) if shape else buffer.view(dtype)[0]
