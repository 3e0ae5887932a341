"""Tells of each layer as the loader quantizes it, and remembers a wish to stop, which transformers would turn into an error."""

from __future__ import annotations

from collections.abc import Callable

from qlora_engine.errors import Cancelled

Report = Callable[[str, int, int | None, str], None]


class Watch:
    """`layer_done` is the loader's; what `report` raises is raised again when the loader has given up."""

    def __init__(self, report: Report | None) -> None:
        self._report = report or (lambda phase, done, total, unit: None)
        self._done = 0
        self._cancelled: Cancelled | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Watch:
        """transformers copies the settings in which the loader finds it; there is one watch."""
        return self

    def layer_done(self, total: int) -> None:
        """One of `total` was quantized.

        Raises:
            Cancelled: the report asked to stop, now or at an earlier layer.
        """
        self.raise_if_cancelled()
        self._done += 1
        try:
            self._report("loading", min(self._done, total), total, "layers")
        except Cancelled as wish:
            self._cancelled = wish
            raise

    def raise_if_cancelled(self) -> None:
        if self._cancelled is not None:
            raise self._cancelled
