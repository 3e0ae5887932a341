"""Versions of everything that can change a result. Imports torch."""

from __future__ import annotations

import platform
import sys

import torch

from qlora_engine import __version__, installed

VERSIONED = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "safetensors", "accelerate")


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    found = {"qlora-studio": __version__, "python": sys.version.split()[0], "platform": platform.platform()}
    for name in VERSIONED:
        found[name] = installed.version(name)
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
