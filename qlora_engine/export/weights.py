"""A base's weights as an export reads them: shapes, types, some rows at a time. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from qlora_engine.errors import EngineError
from qlora_engine.models import spec, weight_reader
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
        """Rows `start` to `stop` as they are stored, or what they stand for where they come quantized.

        Raises:
            OSError: the file is gone or shorter than its header says.
        """
        header = self.headers[name]
        if not header.shape:
            return weight_reader.read(self.folder, header)
        return weight_reader.read_rows(self.folder, header, start, stop)
