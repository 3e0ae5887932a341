"""Part 1: the card, the versions, what the doctor says, what an empty process takes. Imports the ML stack."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from typing import Any

from tests.gpu.offline import report
from tests.gpu.offline.rig import ONLY_A_CARD, Rig

VERSIONED = (
    "torch", "triton", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "huggingface-hub", "tokenizers",
    "safetensors", "numpy", "pyarrow", "trl", "unsloth", "nvidia-ml-py", "cupti-python",
)  # fmt: skip
CARD_FILE = "card.json"
MATRIX_SIDE = {"cuda": 8192, "cpu": 512}
DOCTOR_SECONDS = 90
OF_THE_CARD = ("gpu", "torch", "bitsandbytes", "paging")
"""What the doctor must find in order where there is a card."""
NF4_ERROR = 0.0913
"""Mean absolute error over mean absolute value of normally distributed weights, blocks of 64, double quantization."""


def run(rig: Rig) -> None:
    identify(rig)
    rig.tell(native_library(rig))
    tell_rates(rig)
    tell_context(rig)
    tell_doctor(rig)


def identify(rig: Rig) -> None:
    """Whose figures these are: every part says it, since any of them may be run alone."""
    rig.head("versions", versions())
    if rig.is_cuda:
        rig.head("card", card())


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "n/a"
    import torch

    found["cuda"] = torch.version.cuda or "n/a"
    return found


def card() -> dict[str, Any]:
    import torch

    from qlora_engine.monitor.nvml import Nvml

    found, nvml = torch.cuda.get_device_properties(0), Nvml()
    driver = nvml.driver_version() if nvml.start() else nvml.why_not
    nvml.stop()
    return {
        "name": found.name,
        "total_bytes": found.total_memory,
        "free_bytes": torch.cuda.mem_get_info(0)[0],
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "driver": str(driver),
    }


def native_library(rig: Rig) -> report.Line:
    """bitsandbytes found its library for this device, and a 4-bit weight comes back nearly as it went in."""
    import torch
    from bitsandbytes import cextension, functional

    weight = torch.randn(256, 256, device=rig.device, generator=torch.Generator(rig.device).manual_seed(0))
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    error = float((functional.dequantize_4bit(packed, state) - weight).abs().mean() / weight.abs().mean())
    library = getattr(cextension.lib, "_lib", cextension.lib)
    what = f"a 4-bit weight on the {rig.device} there and back, relative error ({getattr(library, '_name', library)})"
    return report.compared("environment.four_bits", what, error, NF4_ERROR, "", 0.05)


def tell_rates(rig: Rig) -> None:
    """What the card can do at best: a matrix product and a copy, in the type that runs compute in."""
    import torch

    side = MATRIX_SIDE[rig.device]
    dtype = torch.bfloat16 if rig.is_cuda else torch.float32
    left, right = (torch.randn(side, side, device=rig.device, dtype=dtype) for _ in range(2))
    seconds = timed(lambda: left @ right, rig.is_cuda)
    flops = 2 * side**3 / seconds
    source = torch.empty(side * side * 4, device=rig.device, dtype=dtype)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / timed(lambda: target.copy_(source), rig.is_cuda)
    (rig.work / CARD_FILE).write_text(json.dumps({"flops": flops, "copy": copied}), encoding="utf-8")
    rig.tell(
        report.fact("environment.matrix", f"{side} x {side} matrix product in {dtype}", flops / 1e12, "TFLOP/s"),
        report.fact("environment.copy", "copy on the device, bytes read and written", copied / 1e9, "GB/s"),
    )  # fmt: skip


def timed(work: Any, is_cuda: bool, times: int = 5) -> float:
    """Seconds of one call, the mean of several after two that warm up."""
    import torch

    def wait() -> None:
        if is_cuda:
            torch.cuda.synchronize()

    for _ in range(2):
        work()
    wait()
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - began) / times


def tell_context(rig: Rig) -> None:
    """What an empty process takes, against the range that the program assumes unmeasured."""
    if not rig.is_cuda:
        rig.tell(report.left_out("environment.context", "what an empty process takes", ONLY_A_CARD))
        return
    import torch

    from qlora_engine.memory.context import UNMEASURED
    from tests.gpu.offline import engine_calls

    found = engine_calls.context_measured(torch.__version__)
    if found.bytes_ is None:
        rig.tell(report.checked("environment.context", "what an empty process takes", False, found.problem))
        return
    is_inside = UNMEASURED.low_bytes <= found.bytes_ <= UNMEASURED.high_bytes
    rig.head("calibration", {"context_bytes": found.bytes_})
    rig.tell(
        report.Line(
            "environment.context", "what an empty process takes, against the value assumed where nothing is measured",
            report.PASS if is_inside else report.FAIL, found.bytes_, UNMEASURED.likely_bytes, "bytes",
            UNMEASURED.likely_bytes / found.bytes_ - 1,
            why=f"allowed: {report.shown(UNMEASURED.low_bytes, 'bytes')} to {report.shown(UNMEASURED.high_bytes, 'bytes')}",
        )
    )  # fmt: skip


def tell_doctor(rig: Rig) -> None:
    """`qlora doctor` ends well, and finds nothing wrong with the GPU."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "qlora_engine.cli.main", "doctor", "--json"],
            capture_output=True, text=True, timeout=DOCTOR_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        rig.tell(report.checked("doctor", "qlora doctor", False, f"no answer within {DOCTOR_SECONDS} s"))
        return
    if done.returncode:
        rig.tell(report.checked("doctor", "qlora doctor", False, done.stderr[-500:]))
        return
    findings = json.loads(done.stdout)["findings"]
    rig.tell(report.checked("doctor", "qlora doctor answers", True, measured=len(findings)))
    for found in findings:
        id_, what = f"doctor.{found['name']}", f"doctor: {found['name']}"
        must_be_good = rig.is_cuda and found["name"] in OF_THE_CARD
        rig.tell(
            report.checked(id_, what, found["state"] == "good", found["text"], found["state"])
            if must_be_good
            else report.fact(id_, what, found["state"], why=found["text"])
        )
