"""Contrast of what is painted, by WCAG 2: of colours, and of every text of a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PySide6.QtCore import QPoint
from PySide6.QtGui import QColor, QImage
from PySide6.QtWidgets import QAbstractButton, QLabel, QWidget

from tests.app.geometry import describe

LEAST = 4.5


def contrast(one: str, other: str) -> float:
    """The ratio of two colours, 1 to 21."""
    inks = np.array(
        [[QColor(name).red(), QColor(name).green(), QColor(name).blue()] for name in (one, other)]
    )
    return float(_ratio(*luminance(inks)))


def luminance(colours: NDArray[np.generic]) -> NDArray[np.float64]:
    """Of `[..., 3]` red, green and blue from 0 to 255; 0 to 1."""
    share = colours / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def faint(window: QWidget, widgets: Sequence[QWidget]) -> list[str]:
    """Labels and enabled buttons whose text, as it is painted, is not at 4.5:1 from what is behind it."""
    picture = window.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
    ratio = picture.devicePixelRatio()
    pixels = np.frombuffer(picture.constBits(), np.uint8).reshape(picture.height(), -1, 4)
    found = []
    for widget in widgets:
        text = widget.text() if isinstance(widget, QLabel | QAbstractButton) and widget.isEnabled() else ""
        if not any(sign.isalnum() for sign in text):  # signs of a legend are pictures
            continue
        seen = widget.visibleRegion().boundingRect().translated(widget.mapTo(window, QPoint(0, 0)))
        left, top, right, bottom = (round(ratio * v) for v in seen.getCoords())
        part = pixels[top : bottom + 1, left : right + 1, 2::-1].reshape(-1, 3)
        if seen.height() >= widget.fontMetrics().height() and part.size and strongest(part) < LEAST:
            found.append(f"{describe(widget)}: its text is at {strongest(part):.1f}:1")
    return found


def strongest(part: NDArray[np.uint8]) -> float:
    """The largest contrast of a colour of `[pixels, 3]` with the commonest one, which is the ground."""
    colours, counts = np.unique(part, axis=0, return_counts=True)
    lights = luminance(colours)
    return float(_ratio(lights, lights[counts.argmax()]).max())


def _ratio(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    return (np.maximum(one, other) + 0.05) / (np.minimum(one, other) + 0.05)
