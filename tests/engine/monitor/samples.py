"""Complete samples as the engine writes them, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from qlora_engine.monitor.gpu import GpuSample
from qlora_engine.monitor.host import HostSample

GIB = 1024**3
MIB = 1024**2


def host(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "total_bytes": 64 * GIB, "available_bytes": 40 * GIB, "swap_used_bytes": 0, "swap_total_bytes": 8 * GIB,
        "cpu_ratio": 0.5, "process_resident_bytes": 3 * GIB, "process_shared_bytes": GIB // 2, "process_swap_bytes": 0,
        "process_cpu_ratio": 1.1, "process_count": 2, "page_faults_per_second": 12.5,
        "major_page_faults_per_second": 0.0, "cgroup_limit_bytes": 32 * GIB, "cgroup_used_bytes": 5 * GIB,
    }  # fmt: skip
    return dict(vars(HostSample(**{**values, **changes})))


def gpu(index: int = 0, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "index": index, "name": "NVIDIA GeForce RTX 4090", "uuid": f"GPU-0000-{index}", "memory_source": "device",
        "total_bytes": 24 * GIB, "used_bytes": 18 * GIB, "free_bytes": 6 * GIB - GIB // 4, "reserved_bytes": GIB // 4,
        "own_bytes": 15 * GIB, "others_bytes": GIB, "unaccounted_bytes": 2 * GIB, "unaccounted_spread_bytes": 0,
        "utilisation_ratio": 0.97, "encoder_ratio": 0.0, "temperature_celsius": 67.0, "power_watts": 351.5, "power_limit_watts": 450.0,
        "sm_clock_mhz": 2520, "throttle_reasons": (), "pcie_received_bytes_per_second": 1e6,
        "pcie_sent_bytes_per_second": 2e6,
    }  # fmt: skip
    return GpuSample(**{**values, **changes}).to_json()


def cpu_sample(**blocks: Any) -> dict[str, Any]:
    """A run on the CPU: 2.5 GiB accounted of 3 GiB resident."""
    parts = {
        "quantized_weights_bytes": GIB, "quantization_constants_bytes": 33 * MIB, "unquantized_weights_bytes": GIB // 2,
        "adapters_bytes": 40 * MIB, "gradients_bytes": 40 * MIB, "optimizer_bytes": 80 * MIB,
        "activations_bytes": 831 * MIB,
    }  # fmt: skip
    sample = {
        "time": 1_700_000_000.25, "host": host(), "gpus": [], "gpu_problem": "no NVIDIA driver is installed",
        "paged": None, "torch": None, "parts": parts, "unavailable": {},
    }  # fmt: skip
    return {**sample, **blocks}


def gpu_sample(count: int = 1, **blocks: Any) -> dict[str, Any]:
    """A run on the first of some GPUs: 14 of 15 GiB reserved by torch, 1.5 GiB of 1.5 managed on the GPU."""
    sample = {
        "time": 1_700_000_000.25,
        "host": host(),
        "gpus": [gpu(index, own_bytes=0 if index else 15 * GIB) for index in range(count)],
        "gpu_problem": None,
        "paged": {
            "class_name": "PagedAdamW32bit", "managed_bytes": 3 * GIB // 2, "on_gpu_bytes": 3 * GIB // 2,
            "on_cpu_bytes": 0, "uncertainty_bytes": 0, "residency_kind": "accounted", "residency_reason": "free",
            "to_gpu_bytes_per_second": 0.0, "to_cpu_bytes_per_second": 0.0, "why_not_paged": None,
        },
        "torch": {
            "gpu_uuid": "0000-0", "allocated_bytes": 13 * GIB, "reserved_bytes": 14 * GIB, "peak_bytes": 13 * GIB,
        },
        "parts": {"adapters_bytes": 40 * MIB},
        "unavailable": {},
    }  # fmt: skip
    return {**sample, **blocks}
