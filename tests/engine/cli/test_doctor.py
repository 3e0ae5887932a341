"""`qlora doctor`: real facts of this machine, and sentences for machines we do not have."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_engine.cli.commands import doctor

MACHINE: dict[str, Any] = {
    "platform": "Linux",
    "python": "3.12.1",
    "cores": 8,
    "memory_bytes": 64 * 1024**3,
    "home": "/data",
    "is_home_writable": True,
    "disk_free_bytes": 500 * 1024**3,
    "has_display": False,
    "has_starter": True,
    "driver_version": "575.10",
    "libraries": dict.fromkeys(doctor.LIBRARIES, "1.0"),
}
GPU = {"name": "RTX 4090", "capability": "8.9", "total_bytes": 24 * 1024**3, "has_bf16": True}
TORCH: dict[str, Any] = {
    "version": "2.13",
    "cuda_version": "12.8",
    "is_cuda_available": True,
    "devices": [GPU],
    "has_cpu_bf16": False,
}
BNB = {
    "version": "0.50",
    "native_library": "CudaBNBNativeLibrary",
    "has_cuda_library": True,
    "can_page": True,
}


def finding(name: str, machine: dict[str, Any], ml: dict[str, Any]) -> doctor.Finding:
    return next(found for found in doctor.diagnose(machine, ml) if found.name == name)


def test_this_machine(qlora: Any) -> None:
    document = qlora("doctor", "--json").document
    assert document["ml"]["errors"] == []
    assert document["ml"]["torch"]["version"].startswith("2.")
    assert document["ml"]["bitsandbytes"]["native_library"]
    assert document["machine"]["libraries"]["torch"]
    assert {found["name"] for found in document["findings"]} >= {"system", "gpu", "paging", "disk", "window"}


def test_a_gpu_machine_reads_well() -> None:
    ml = {"torch": TORCH, "bitsandbytes": BNB, "errors": []}
    assert finding("gpu", MACHINE, ml).text == "RTX 4090 (24.00 GiB, compute 8.9), driver 575.10"
    assert finding("torch", MACHINE, ml).text == "2.13, computes in bf16"
    assert finding("paging", MACHINE, ml).state == "good"


@pytest.mark.parametrize(
    ("machine", "torch", "words"),
    [
        ({"driver_version": None}, {"devices": [], "is_cuda_available": False}, "no NVIDIA driver"),
        ({}, {"devices": [], "is_cuda_available": False, "cuda_version": None}, "built without CUDA"),
        ({}, {"devices": [], "is_cuda_available": False}, "finds no GPU"),
    ],
)
def test_why_there_is_no_gpu(machine: dict[str, Any], torch: dict[str, Any], words: str) -> None:
    ml = {"torch": {**TORCH, **torch}, "bitsandbytes": {**BNB, "can_page": False}}
    assert words in finding("gpu", {**MACHINE, **machine}, ml).text
    assert "page nothing here" in finding("paging", {**MACHINE, **machine}, ml).text


def test_an_old_gpu_computes_in_fp16() -> None:
    old = {**TORCH, "devices": [{**GPU, "has_bf16": False}]}
    assert "fp16" in finding("torch", MACHINE, {"torch": old, "bitsandbytes": BNB}).text


@pytest.mark.parametrize(
    ("changed", "state", "words"),
    [
        ({"is_home_writable": False}, "bad", "QLORA_HOME"),
        ({"disk_free_bytes": 1024**3}, "note", "larger models need more"),
    ],
)
def test_disk_problems_have_a_next_step(changed: dict[str, Any], state: str, words: str) -> None:
    found = finding("disk", {**MACHINE, **changed}, {"torch": None, "bitsandbytes": None})
    assert found.state == state
    assert words in found.hint


def test_a_probe_that_dies_is_told(qlora: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    result = qlora("doctor")
    assert result.code == 0
    assert "exit code 1" in result.out
    assert "PROBLEM" in result.out


@pytest.mark.parametrize(
    ("told", "state", "words"),
    [
        ({"bytes": 520 * 1024**2, "problem": "", "source": "measured on this machine on 2026-05-14 with driver 575.10"}, "good", "takes 520.00 MiB on the GPU, measured on this machine"),
        ({"bytes": None, "problem": "the driver does not tell", "source": ""}, "note", "could not be measured: the driver does not tell"),
    ],
)  # fmt: skip
def test_what_an_empty_process_takes(told: dict[str, Any], state: str, words: str) -> None:
    found = finding("context", MACHINE, {"torch": TORCH, "bitsandbytes": BNB, "context": told})
    assert found.state == state
    assert words in found.text


def test_without_a_gpu_nothing_is_measured() -> None:
    assert doctor.context_facts({"torch": {**TORCH, "devices": []}}) is None
    assert doctor.context_facts({"torch": None}) is None
