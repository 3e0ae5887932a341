"""What a run's folder is called. Torch-free."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

from qlora_engine.config import TrainingConfig


def free_path(parent: Path, config: TrainingConfig) -> Path:
    """The named folder, or one of its own for an unnamed run."""
    if config.output.name:
        return parent / slug(config.output.name)
    name = _automatic_name(config)
    numbered = (parent / (name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    return next(path for path in numbered if not path.exists())


def _automatic_name(config: TrainingConfig) -> str:
    moment = time.strftime("%Y%m%d-%H%M%S")
    return f"{slug(Path(config.model.name).stem or 'model')}-{slug(Path(config.data.path).stem or 'data')}-{moment}"


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "run"
