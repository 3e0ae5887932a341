"""Part 6: what NVML and CUPTI say of memory, against torch's allocator and what was moved on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.gpu import scenarios
from tests.gpu.offline import environment, report
from tests.gpu.offline.rig import ONLY_A_CARD, Rig
from tests.gpu.scenarios import GIB, MIB


def run(rig: Rig) -> None:
    environment.identify(rig)
    tell_sample(rig)
    steps: dict[str, Callable[[Rig, dict[str, Any]], None]] = {
        "grow_torch": tell_growth,
        "touch_from_cpu": tell_touched,
        "count_moves": tell_moves,
    }
    for scenario, tell in steps.items():
        if not rig.is_cuda:
            rig.tell(report.left_out(f"driver.{scenario}", scenario.replace("_", " "), ONLY_A_CARD))
        elif not rig.has_time(30):
            rig.tell(report.left_out(f"driver.{scenario}", scenario.replace("_", " "), "no time was left"))
        else:
            tell(rig, scenarios.in_own_process(scenario))


def tell_sample(rig: Rig) -> None:
    """The monitor answers: with a card by NVML, without one with the reason."""
    from qlora_engine import monitor

    (sample,) = monitor.stream(seconds=0.1, hz=scenarios.HZ)
    gpus = sample["gpus"]
    why = "" if gpus else str(sample.get("driver") or sample.get("nvml") or "no GPU")
    is_right = bool(gpus) == rig.is_cuda and sample["host"]["total_bytes"] > 0
    rig.tell(report.checked("driver.sample", "the monitor sees the cards there are", is_right, why, len(gpus)))  # fmt: skip


def tell_growth(rig: Rig, found: dict[str, Any]) -> None:
    """2 GiB more in torch are 2 GiB more on the device."""
    rig.tell(report.compared("driver.growth", "NVML's growth, against what torch reserved more", found["nvml"], found["torch"], "bytes", 0.01 + 64 * MIB / found["torch"]))  # fmt: skip
    if not found["own"]:
        rig.tell(report.left_out("driver.own", "this process's memory by NVML", str(found["why_no_own"] or "the driver lists no process of ours")))  # fmt: skip
        return
    is_right = found["reserved"] <= found["own"] <= found["reserved"] + 3 * GIB
    rig.tell(report.checked("driver.own", "this process's memory by NVML: torch's and the context's", is_right, measured=found["own"]))  # fmt: skip


def tell_touched(rig: Rig, found: dict[str, Any]) -> None:
    """Half of 1 GiB managed is read by the CPU, then fetched back: where the sampler says it is."""
    touched, back = found["touched"], found["back"]
    rig.tell(report.compared("driver.filled", "managed and on the GPU, as accounted", found["filled"]["on_gpu_bytes"], GIB, "bytes", 0.0))  # fmt: skip
    if touched["on_cpu_bytes"] is None:
        rig.tell(report.left_out("driver.touched", "where managed memory is", str(touched["residency_reason"])))  # fmt: skip
        return
    for id_, what, sample, wanted in (
        ("driver.touched", "on the computer after it read half", touched, GIB // 2),
        ("driver.back", "on the computer after it was fetched back", back, 0),
    ):
        off, uncertainty = abs(sample["on_cpu_bytes"] - wanted), sample["uncertainty_bytes"]
        verdict = report.PASS if off <= uncertainty else report.FAIL
        why = f"{sample['residency_kind']}, uncertainty {report.shown(uncertainty, 'bytes')}"
        rig.tell(report.Line(id_, what, verdict, sample["on_cpu_bytes"], wanted, "bytes", why=why))


def tell_moves(rig: Rig, found: dict[str, Any]) -> None:
    """CUPTI's counts while 128 MiB go to the computer and come back."""
    if found["why_not"] is not None:
        rig.tell(report.left_out("driver.moves", "page moves counted by CUPTI", str(found["why_not"])))
        return
    for id_, what in (("to_cpu", "moved to the computer, by CUPTI"), ("to_gpu", "moved to the GPU, by CUPTI")):  # fmt: skip
        rig.tell(report.compared(f"driver.{id_}", what, found[id_], 128 * MIB, "bytes", 0.07))
    rig.tell(report.checked("driver.lost", "no record was lost", found["lost"] == 0, measured=found["lost"]))
