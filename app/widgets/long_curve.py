"""A curve of any number of points, of which only what can be seen is drawn. Imports pyqtgraph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyqtgraph as pg

Bounds = tuple[float, float] | tuple[None, None]


class LongCurve(pg.PlotDataItem):
    """Of each column of pixels it draws the highest and the lowest. pyqtgraph's own choice, of each fifth of a column, costs
    five times the time and looks the same.

    Its bounds are those of all points. pyqtgraph asks the points that are drawn: how many these are hangs on the range, and the
    range on their bounds, so that about as many points as columns were painted without end, now one way, now the other.
    """

    def __init__(self) -> None:
        self._bounds: dict[tuple[int, bool], Bounds] = {}
        super().__init__([], [], connect="finite", autoDownsampleFactor=1.0)

    def setData(self, *arguments: Any, **more: Any) -> None:
        self._bounds = {}
        super().setData(*arguments, **more)

    def dataBounds(self, ax: int, frac: float = 1.0, orthoRange: Any = None) -> Bounds:  # noqa: N803 - pyqtgraph's name
        if frac < 1.0 or orthoRange is not None:
            return super().dataBounds(ax, frac, orthoRange)
        key = (ax, bool(self.opts["logMode"][ax]))
        if key not in self._bounds:
            self._bounds[key] = _bounds(self.getOriginalDataset()[ax], is_log=key[1])
        return self._bounds[key]


def long_curve(plot: pg.PlotWidget) -> LongCurve:
    """A new one in `plot`; adding it gives it the plot's settings first."""
    curve = LongCurve()
    plot.addItem(curve)
    curve.setDownsampling(auto=True, method="peak")
    curve.setClipToView(True)
    return curve


def _bounds(values: np.ndarray | None, *, is_log: bool) -> Bounds:
    if values is None:
        return None, None
    shown = values[np.isfinite(values) & (values > 0 if is_log else True)]
    if not shown.size:
        return None, None
    low, high = float(shown.min()), float(shown.max())
    return (float(np.log10(low)), float(np.log10(high))) if is_log else (low, high)
