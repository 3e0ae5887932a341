"""Samples of a run on a CPU and on a GPU, as they are fed to the charts of memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PySide6.QtGui import QColor, QImage

from app.presenters.memory_series import MemoryFeed
from app.widgets.time_chart import TimeChart
from qlora_engine.monitor.trace import TraceWriter

GIB, MIB = 1024**3, 1024**2
BEGAN = 1_790_000_000.0


def host(**more: Any) -> dict[str, Any]:
    return {
        "total_bytes": 64 * GIB, "available_bytes": 48 * GIB, "swap_used_bytes": GIB, "swap_total_bytes": 8 * GIB,
        "cpu_ratio": 0.5, **more,
    }  # fmt: skip


def gpu(index: int = 0, used: int = 2 * GIB, **more: Any) -> dict[str, Any]:
    return {
        "index": index, "name": "RTX 4090", "uuid": f"GPU-{index}", "total_bytes": 24 * GIB, "used_bytes": used,
        "others_bytes": GIB, "own_bytes": 0, "utilisation_ratio": 0.5, "temperature_celsius": 61.0,
        "power_watts": 250.0, "power_limit_watts": 450.0, "sm_clock_mhz": 2520, "memory_clock_mhz": 10501,
        "throttle_reasons": [], "encoder_ratio": 0.0, "pcie_received_bytes_per_second": 1e8,
        "pcie_sent_bytes_per_second": 2e8, "unavailable": {}, **more,
    }  # fmt: skip


def sample(at: float, **more: Any) -> dict[str, Any]:
    """A reading of a window on a computer without a GPU."""
    return {
        "time": BEGAN + at, "host": host(), "gpus": [], "gpu_problem": "no NVIDIA driver is installed", "paged": None,
        "torch": None, "parts": None, **more,
    }  # fmt: skip


def cpu_sample(at: float, activations: int = 300 * MIB, resident: int = 2 * GIB) -> dict[str, Any]:
    """A reading of an engine that trains on the CPU."""
    parts = {
        "quantized_weights_bytes": 50 * MIB,
        "adapters_bytes": 10 * MIB,
        "activations_bytes": activations,
    }
    return sample(at, host=host(process_resident_bytes=resident, process_cpu_ratio=1.8), parts=parts)


def gpu_sample(at: float, on_cpu: int = 0) -> dict[str, Any]:
    """A reading of an engine that trains on GPU 0 with a paged optimizer."""
    paged = {
        "class_name": "PagedAdamW8bit", "managed_bytes": GIB, "on_gpu_bytes": GIB - on_cpu, "on_cpu_bytes": on_cpu,
        "residency_kind": "estimated", "residency_reason": "from the device's use", "uncertainty_bytes": 64 * MIB,
        "to_cpu_bytes_per_second": 1e8, "to_gpu_bytes_per_second": 0.0,
    }  # fmt: skip
    torch = {"gpu_uuid": "GPU-0", "allocated_bytes": 8 * GIB, "reserved_bytes": 9 * GIB}
    card = gpu(0, used=12 * GIB, own_bytes=int(9.5 * GIB))
    return sample(at, gpus=[card], gpu_problem=None, torch=torch, paged=paged)


def fed(*samples: Mapping[str, Any]) -> MemoryFeed:
    feed = MemoryFeed()
    for each in samples:
        feed.add(each)
    return feed


def everything(feed: MemoryFeed) -> tuple[float, float]:
    return feed.first, feed.newest


def write(path: Path, *samples: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = TraceWriter(path)
    for each in samples:
        writer.append(each)
    writer.close()
    return path


def pixels(chart: TimeChart) -> QImage:
    return chart.grab().toImage()


def is_near(one: QColor, other: QColor, most: int = 40) -> bool:
    return max(abs(one.red() - other.red()), abs(one.green() - other.green()), abs(one.blue() - other.blue())) <= most  # fmt: skip
