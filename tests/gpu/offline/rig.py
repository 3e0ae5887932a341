"""What every part works with: the device, a folder for its files, the time it has, and what it found. Standard library only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu.offline.report import Line

ONLY_A_CARD = "only a card has it"


@dataclass
class Rig:
    """`until` is on the monotonic clock; `pipe` is where lines go as soon as they are known."""

    device: str
    work: Path
    until: float
    pipe: int
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    def has_time(self, seconds: float) -> bool:
        """True while something that takes `seconds` ends before the part is cut off."""
        return time.monotonic() + seconds < self.until

    def tell(self, *lines: Line) -> None:
        for line in lines:
            self._send({"line": asdict(line)})

    def head(self, name: str, values: Mapping[str, Any]) -> None:
        """Facts for the report's head: card, versions or calibration."""
        self._send({"head": {name: dict(values)}})

    def _send(self, message: Mapping[str, Any]) -> None:
        data = (json.dumps(message, default=str) + "\n").encode()
        while data:
            data = data[os.write(self.pipe, data) :]
