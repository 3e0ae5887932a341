"""The events of a short run, as an engine tells them."""

from __future__ import annotations

import math

from qlora_engine import events as ev

BEGAN = 1_790_000_000.0


def started(run_dir: str = "/runs/demo", *, is_resumed: bool = False, from_step: int = 0) -> ev.RunStarted:
    return ev.RunStarted("demo", run_dir, 4242, is_resumed, BEGAN, from_step)


def plan(total: int = 60, predicted: int | None = 700 * 1024**2) -> ev.PlanMade:
    return ev.PlanMade(total, 90, 4, 2, 360, 40, 22_719, 80, "cpu", "float32", predicted, None)


def step(number: int, total: int = 60, loss: float | None = None) -> ev.StepFinished:
    found = 3.2 * math.exp(-number / 20) + 0.4 if loss is None else loss
    return ev.StepFinished(
        number, total, number / 90, found, 1e-3 * (1 - number / total), 0.8, 480, 170, 1.9, 252.0,
        1.9 * (total - number), 584 * 1024**2, BEGAN + 2 * number,
    )  # fmt: skip


def evaluation(number: int, loss: float, *, is_best: bool = True) -> ev.EvaluationFinished:
    return ev.EvaluationFinished(number, loss, 880, 3.0, is_best, BEGAN + 2 * number)


def checkpoint(number: int) -> ev.CheckpointSaved:
    return ev.CheckpointSaved(
        number, f"/runs/demo/checkpoints/step-{number}", 28_000_000, "time", 0.2, BEGAN + 2 * number
    )


def memory(at: float, engine: int = 600 * 1024**2) -> ev.MemorySampled:
    mib = 1024**2
    return ev.MemorySampled(
        {
            "time": BEGAN + at,
            "host": {
                "total_bytes": 24 * 1024**3, "available_bytes": 20 * 1024**3, "cpu_ratio": 0.9,
                "process_resident_bytes": engine,
            },
            "gpus": [], "gpu_problem": "no NVIDIA driver is installed", "paged": None, "torch": None,
            "parts": {"quantized_weights_bytes": 51 * mib, "adapters_bytes": 10 * mib, "activations_bytes": 390 * mib},
        }
    )  # fmt: skip


def whole_run(steps: int = 60) -> list[ev.Event]:
    """From the first word to the last, without the terminal event."""
    told: list[ev.Event] = [
        started(), ev.PhaseChanged("loading", "Loading starter"),
        ev.ModelLoaded({"quant_type": "nf4", "is_double_quant": True, "compute_dtype": "float32"}),
        ev.AdaptersAttached(2_442_240, 9_768_960, ("q_proj", "v_proj"), "float32", "LoRA"),
        ev.DatasetPrepared({"train_rows": 360, "held_out_rows": 40}), plan(steps), evaluation(0, 3.168),
        ev.PhaseChanged("training", "Training"),
    ]  # fmt: skip
    for number in range(1, steps + 1):
        told.append(step(number, steps))
        told.append(memory(2.0 * number))
        if number % 20 == 0:
            told += [evaluation(number, 3.168 * math.exp(-number / 25) + 0.3), checkpoint(number)]
    return told


def finished() -> ev.RunFinished:
    return ev.RunFinished(
        {"run_id": "demo", "run_dir": "/runs/demo", "loss_before": 3.168, "loss_after": 0.6}
    )
