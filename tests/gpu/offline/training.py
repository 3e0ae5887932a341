"""Part 2: load, train, save, resume; every optimizer; where a paged state is. Imports the ML stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.gpu.offline import environment, report
from tests.gpu.offline.rig import ONLY_A_CARD, Rig

WIDE: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64,
}  # fmt: skip
"""On a card: wide enough that adapters of rank 256 have the 100,000 elements from which bitsandbytes pages."""
STEPS = {"cuda": 20, "cpu": 4}
OPTIMIZER_STEPS = {"cuda": 4, "cpu": 2}
SAME = {"cuda": 5e-3, "cpu": 0.0}
"""Not every CUDA kernel adds in the same order each time; on the CPU a resumed run is the same bit for bit."""


def run(rig: Rig) -> None:
    environment.identify(rig)
    from tests.support.tiny import make_tiny

    model = make_tiny("llama", rig.work / "trained", **(WIDE if rig.is_cuda else {}))
    tell_run(rig, model)
    for optimizer in optimizers():
        if not rig.has_time(15):
            rig.tell(report.left_out(f"training.{optimizer}", f"optimizer {optimizer}", "no time was left"))
            continue
        tell_optimizer(rig, model, optimizer)
    if rig.is_cuda:
        from tests.gpu import scenarios

        tell_paging(rig, scenarios.in_own_process("page_out"))
    else:
        rig.tell(
            report.left_out("paging", "a paged state sent to the computer's memory and back", ONLY_A_CARD)
        )


def optimizers() -> Iterator[str]:
    from qlora_engine.config import OPTIMIZERS

    yield from OPTIMIZERS


def config_for(rig: Rig, model: Path, name: str, **changes: Any) -> Any:
    from tests.support import tiny_runs

    folder = rig.work / name
    folder.mkdir(exist_ok=True)
    values = {
        "model__device": rig.device, "lora__rank": 256 if rig.is_cuda else 4, "training__eval_every_steps": STEPS[rig.device],
        "training__learning_rate": 1e-3, **changes,
    }  # fmt: skip
    return tiny_runs.tiny_config(model, tiny_runs.data_file(folder), folder / "runs", **values)


def tell_run(rig: Rig, model: Path) -> None:
    """One run straight through; the same stopped in the middle and resumed."""
    from qlora_engine.events import ModelLoaded, OptimizerBuilt, RunFinished
    from tests.support import tiny_runs

    steps = STEPS[rig.device]
    changes = {"training__max_steps": steps, "training__optimizer": "paged_adamw_8bit"}
    events = tiny_runs.train(config_for(rig, model, "straight", **changes))
    (loaded,) = tiny_runs.of(events, ModelLoaded)
    end = events[-1]
    built = loaded.report
    is_as_asked = built["quant_type"] == "nf4" and built["is_double_quant"] and str(built["device"]).startswith(rig.device)  # fmt: skip
    rig.tell(
        report.checked("training.loaded", "NF4 with double quantization on the device", bool(is_as_asked), f"{built['quantized_modules']} layers, {built['compute_dtype']}"),
        report.checked("training.finished", f"{steps} steps to the end, the adapter saved", isinstance(end, RunFinished) and any((tiny_runs.run_dir(events) / "adapter").glob("*.safetensors"))),
        report.checked("training.learns", "held-out loss is lower than before", end.result["loss_after"] < end.result["loss_before"], f"{end.result['loss_before']:.4f} before, {end.result['loss_after']:.4f} after"),
    )  # fmt: skip
    straight = tiny_runs.losses(events)
    first = stopped(config_for(rig, model, "stopped", **changes), steps // 2)
    resumed = tiny_runs.resume(tiny_runs.run_dir(first))
    again = tiny_runs.losses(first) + tiny_runs.losses(resumed)
    worst = max((abs(a - b) / b for a, b in zip(again, straight, strict=False)), default=1.0)
    is_same = len(again) == len(straight) and worst <= SAME[rig.device]
    (before,), (after,) = (tiny_runs.of(part, OptimizerBuilt) for part in (first, resumed))
    rig.tell(
        report.Line("training.resume", "stopped and resumed against straight, worst relative difference of a loss", report.PASS if is_same else report.FAIL, worst, 0.0, allowed=SAME[rig.device]),
        report.checked("training.resume.paged", "as many paged bytes after the resume as before", before.paged_bytes == after.paged_bytes, f"{before.paged_bytes:,} and {after.paged_bytes:,} bytes"),
    )  # fmt: skip


def stopped(config: Any, step: int) -> list[Any]:
    """The events of a run that is asked to stop after `step`."""
    from qlora_engine import config_io
    from qlora_engine.control import Control
    from qlora_engine.events import StepFinished
    from qlora_engine.jobs import TrainJob
    from qlora_engine.training import recipe

    control, seen = Control(), []
    for event in recipe.train(TrainJob(config_io.to_dict(config)), control):
        seen.append(event)
        if isinstance(event, StepFinished) and event.step == step:
            control.request_stop()
    return seen


def tell_optimizer(rig: Rig, model: Path, optimizer: str) -> None:
    """A few steps, and what the optimizer keeps against what was predicted."""
    from qlora_engine.errors import EngineError
    from qlora_engine.events import OptimizerBuilt, PlanMade, RunFinished
    from tests.support import tiny_runs

    config = config_for(
        rig, model, optimizer, training__optimizer=optimizer, training__max_steps=OPTIMIZER_STEPS[rig.device],
        data__held_out_fraction=0.0,
    )  # fmt: skip
    try:
        events = tiny_runs.train(config)
    except EngineError as error:
        rig.tell(report.checked(f"training.{optimizer}", f"optimizer {optimizer}", False, f"{error.code}: {error.message}"))  # fmt: skip
        return
    (built,), (planned,) = tiny_runs.of(events, OptimizerBuilt), tiny_runs.of(events, PlanMade)
    parts = planned.estimate["double_quant"]["parts"] if planned.estimate else {}
    wanted = parts.get("optimizer_resident", 0) + parts.get("optimizer_pageable", 0)
    words = f"{built.class_name}, {built.paged_bytes:,} bytes paged{'; ' + built.why_not_paged if built.why_not_paged else ''}"  # fmt: skip
    line = report.compared(f"training.{optimizer}", f"state of {optimizer}: {words}", built.state_bytes, wanted, "bytes", 0.01)  # fmt: skip
    is_paged = not rig.is_cuda or built.paged_bytes == parts.get("optimizer_pageable", 0)
    rig.tell(
        line,
        report.checked(f"training.{optimizer}.end", f"{optimizer} trains, and pages what was predicted", isinstance(events[-1], RunFinished) and is_paged),
    )  # fmt: skip


def tell_paging(rig: Rig, found: dict[str, Any]) -> None:
    """A state of known size, sent to the computer's memory by the driver within what is free, and used again."""
    if "why_not" in found:
        rig.tell(report.left_out("paging", "a paged state sent to the computer's memory", found["why_not"]))
        return
    out, back = found["out"], found["back"]
    rig.tell(
        report.checked("paging.driver", "the driver took the state out when asked", found["driver"] == "moved", str(found["driver"])),
        report.checked("paging.step", "the next step is right, whatever was moved", found["is_same"]),
    )  # fmt: skip
    if out["on_cpu_bytes"] is None:
        rig.tell(report.left_out("paging.seen", "the sampler sees where the state is", str(out["residency_reason"])))  # fmt: skip
        return
    off = abs(out["on_cpu_bytes"] - found["sent_bytes"])
    why = f"{out['residency_kind']}, uncertainty {report.shown(out['uncertainty_bytes'], 'bytes')}"
    rig.tell(
        report.Line("paging.out", "on the computer, by the sampler, against what was sent", report.PASS if off <= out["uncertainty_bytes"] else report.FAIL, out["on_cpu_bytes"], found["sent_bytes"], "bytes", why=why),
        report.checked("paging.back", "on the GPU again after a step", back["on_cpu_bytes"] <= back["uncertainty_bytes"], f"{back['on_cpu_bytes']:,} bytes on the computer"),
    )  # fmt: skip
