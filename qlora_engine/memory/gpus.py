"""GPUs that people have: memory and what of it a run can use. Torch-free; reads `resources/gpus.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from qlora_engine import parsing, paths
from qlora_engine.errors import EngineError, did_you_mean

GIB = 1024**3
NOT_THE_KIND = frozenset({"pcie", "hbm3", "nvl", "gpu", "tesla"})


@dataclass(frozen=True)
class Gpu:
    """`usable_bytes`: what is left after the driver's own share and, on cards with a display, the desktop's."""

    name: str
    total_bytes: int
    usable_bytes: int
    bandwidth_gb_per_second: float
    has_bf16: bool


@cache
def known_gpus() -> tuple[Gpu, ...]:
    """All of the table, smallest first."""
    plain = parsing.from_toml((paths.resources_dir() / "gpus.toml").read_text(encoding="utf-8"))
    gpus = [
        Gpu(
            name=entry["name"],
            total_bytes=int(entry["total_gib"] * GIB),
            usable_bytes=int((entry["total_gib"] - entry.get("reserved_gib", 0.7)) * GIB),
            bandwidth_gb_per_second=float(entry["bandwidth_gb_s"]),
            has_bf16=bool(entry.get("bf16", True)),
        )
        for entry in plain["gpu"]
    ]
    return tuple(sorted(gpus, key=lambda gpu: (gpu.total_bytes, gpu.name)))


def find(name: str) -> Gpu:
    """A GPU of the table by name; case, `NVIDIA` and `GeForce` do not matter.

    Raises:
        EngineError: not in the table.
    """
    wanted = _key(name)
    for gpu in known_gpus():
        if _key(gpu.name) == wanted:
            return gpu
    raise EngineError(
        "gpu.unknown",
        f"there is no GPU {name!r} in the table",
        did_you_mean(name, [g.name for g in known_gpus()]),
    )


def same_gpu(one: str, other: str) -> bool:
    """True when both names mean one kind of GPU: `A100 80GB` and what the driver calls `NVIDIA A100-SXM4-80GB`."""
    return _kind(one) == _kind(other)


def _kind(name: str) -> str:
    """Without size, socket and brand."""
    words = (word for word in _key(name).split() if not word.endswith("gb"))
    return " ".join(word for word in words if word not in NOT_THE_KIND and not word.startswith("sxm"))


def _key(name: str) -> str:
    words = name.lower().replace("-", " ").split()
    return " ".join(w for w in words if w not in ("nvidia", "geforce"))
