"""The strip at the bottom: memory now, against the prediction, and where the run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.presenters import numerals
from app.presenters.run_fold import RunFold
from app.presenters.words import bytes_text, duration_text, gib_figure, gib_measured, percent_text, ratio_text


@dataclass(frozen=True)
class StripState:
    device_text: str
    device_tip: str
    memory_text: str
    used_share: float | None
    own_share: float
    tick_share: float | None
    paged_text: str
    host_text: str
    host_share: float | None
    sensors_text: str
    run_text: str


def strip_state(sample: Mapping[str, Any] | None, run: RunFold, predicted_bytes: int | None) -> StripState:
    if sample is None:
        return StripState("Looking for a GPU", "", "", None, 0.0, None, "", "", None, "", _run_text(run))
    host = sample["host"]
    total, used = host["total_bytes"], host["total_bytes"] - host["available_bytes"]
    gpu = next(iter(sample.get("gpus") or ()), None)
    host_text = f"host {gib_figure(used, 1)} / {gib_measured(total, 1)}"
    if gpu is None:
        return _without_gpu(sample, run, predicted_bytes, host_text)
    whole = gpu.get("total_bytes")
    on_card = gpu.get("used_bytes")
    return StripState(
        device_text=f"GPU {gpu['index']} {gpu.get('name') or ''}".strip(),
        device_tip="\n".join(f"{k}: {v}" for k, v in (gpu.get("unavailable") or {}).items()),
        memory_text=f"{gib_figure(on_card, 1)} / {gib_measured(whole, 1)}"
        if whole and on_card is not None
        else "n/a",
        used_share=on_card / whole if whole and on_card is not None else None,
        own_share=(gpu.get("own_bytes") or 0) / whole if whole else 0.0,
        tick_share=predicted_bytes / whole if predicted_bytes and whole else None,
        paged_text=_paged_text(run),
        host_text=host_text,
        host_share=used / total,
        sensors_text=_sensors(gpu),
        run_text=_run_text(run),
    )


def _without_gpu(
    sample: Mapping[str, Any], run: RunFold, predicted_bytes: int | None, host_text: str
) -> StripState:
    """The computer's memory, and the engine's share of it."""
    host = sample["host"]
    total, used = host["total_bytes"], host["total_bytes"] - host["available_bytes"]
    latest = run.memory[-1] if run.is_live and run.memory else {}
    engine = (latest.get("host") or {}).get("process_resident_bytes")
    return StripState(
        device_text="CPU run: no NVIDIA GPU",
        device_tip=str(sample.get("gpu_problem") or ""),
        memory_text=host_text,
        used_share=used / total,
        own_share=(engine or 0) / total,
        tick_share=predicted_bytes / total if predicted_bytes and total else None,
        paged_text=f"engine {bytes_text(engine)}" if engine else "",
        host_text="",
        host_share=None,
        sensors_text=f"CPU {percent_text(host['cpu_ratio'])}",
        run_text=_run_text(run),
    )


def _paged_text(run: RunFold) -> str:
    paged = (run.memory[-1].get("paged") if run.memory else None) or {}
    managed = paged.get("managed_bytes")
    if managed is None:
        return ""
    on_cpu = paged.get("on_cpu_bytes")
    return f"paged {bytes_text(managed)}" + (f", {bytes_text(on_cpu)} on the CPU" if on_cpu else "")


def _sensors(gpu: Mapping[str, Any]) -> str:
    found = []
    if gpu.get("utilisation_ratio") is not None:
        found.append(percent_text(gpu["utilisation_ratio"]))
    if gpu.get("temperature_celsius") is not None:
        found.append(numerals.measured(numerals.decimal(gpu["temperature_celsius"], 0), "\u00b0C"))
    if gpu.get("power_watts") is not None:
        found.append(numerals.measured(numerals.decimal(gpu["power_watts"], 0), "W"))
    return " \u00b7 ".join(found)


def _run_text(run: RunFold) -> str:
    if run.state == "idle":
        return "Nothing is training in this window"
    if not run.is_live:
        return {"finished": "Run finished", "stopped": "Run stopped", "failed": "Run failed"}[run.state]
    step = run.last_step
    if step is None or run.state != "running":
        return run.phase_text
    eta = f", {duration_text(run.seconds_left)} left" if run.seconds_left is not None else ""
    return f"Step {ratio_text(step.step, step.total_steps)}{eta}"
