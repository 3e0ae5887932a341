"""Which device a run uses and in which 16-bit (or 32-bit) type it computes. One device, never a silent spill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlora_engine.config import ModelSettings
from qlora_engine.errors import EngineError

DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class DevicePlan:
    """`kind`: cuda or cpu; `torch_dtype_name`: bfloat16, float16 or float32; `reason` says why that type."""

    kind: str
    index: int
    torch_dtype_name: str
    reason: str

    @property
    def name(self) -> str:
        """As torch writes it: `cuda:0` or `cpu`."""
        return f"cuda:{self.index}" if self.kind == "cuda" else "cpu"

    @property
    def title(self) -> str:
        """As a person reads it."""
        return f"GPU {self.index}" if self.kind == "cuda" else "the CPU"

    @property
    def torch_dtype(self) -> Any:
        import torch

        return getattr(torch, self.torch_dtype_name)


def plan_device(settings: ModelSettings, compute_dtype: str = "auto") -> DevicePlan:
    """Choose the device and the compute type (CORRECTNESS 9 and 40).

    bf16 where the GPU has it in hardware, else fp16, and fp32 on the CPU: bf16 backward without AVX512-BF16 or
    AMX is hundreds of times slower there (pytorch #146508).

    Raises:
        EngineError: a GPU was asked for and there is none, or the type does not exist on the device.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise EngineError(
            "device.no_gpu",
            "an NVIDIA GPU was asked for, but torch sees none",
            "set model.device to cpu, or run `qlora doctor` to see why",
        )
    if settings.device == "cpu" or not has_cuda:
        return DevicePlan("cpu", 0, *_cpu_dtype(compute_dtype))
    return DevicePlan("cuda", torch.cuda.current_device(), *_cuda_dtype(compute_dtype))


def _cpu_dtype(wanted: str) -> tuple[str, str]:
    import torch

    if wanted == "fp16":
        raise EngineError(
            "device.dtype", "float16 cannot be trained on the CPU", "set quantization.compute_dtype to fp32"
        )
    if wanted == "bf16":
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise EngineError(
                "device.dtype",
                "this CPU has no bfloat16 instructions; its backward pass would be hundreds of times slower",
                "set quantization.compute_dtype to auto or fp32",
            )
        return "bfloat16", "asked for"
    return "float32", "the CPU computes in float32"


def _cuda_dtype(wanted: str) -> tuple[str, str]:
    import torch

    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "bf16" and not has_bf16:
        raise EngineError(
            "device.dtype", "this GPU has no bfloat16", "set quantization.compute_dtype to auto, fp16 or fp32"
        )
    if wanted != "auto":
        return DTYPE_NAMES[wanted], "asked for"
    if has_bf16:
        return "bfloat16", "the GPU has bfloat16"
    return "float16", "the GPU has no bfloat16; adapters stay in float32"
