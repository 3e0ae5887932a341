"""Has transformers look through the files of its model types once in a process, where it would do so twice. Torch-free.

To know which name stands in which file it reads all of them, two thousand: when it is imported, and again when a model's
module is. The second time it is told what it found the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

SCANS = "transformers.utils.import_utils"
SCAN = "create_import_structure_from_path"


def install() -> None:
    """From here on in this process, and before transformers is imported. Installed once, however often it is called."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the module that scans where it is; in a frozen bundle it finds nothing, and transformers scans as ever."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != SCANS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Remembering(spec.loader)
        return spec


class _Remembering(Loader):
    """Loads it as ever, and puts a memory before its function, if it has it."""

    def __init__(self, real: Loader) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        scan = getattr(module, SCAN, None)
        if scan is not None:
            setattr(module, SCAN, _once_a_folder(scan))


def _once_a_folder(scan: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A file stands for its folder, as it does for `scan`; who asks changes nothing of what is found."""
    found: dict[str, Any] = {}

    def remembered(place: Any) -> Any:
        folder = str(Path(place).parent if Path(place).is_file() else place)
        if folder not in found:
            found[folder] = scan(folder)
        return found[folder]

    return remembered
