"""Part 4: tokens a second and peak against other programs on the same rows, and what one step spends its time on.

Imports the ML stack.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.gpu.offline import engine_calls, environment, report, rivals
from tests.gpu.offline.environment import CARD_FILE
from tests.gpu.offline.rig import ONLY_A_CARD, Rig

SHAPES: dict[str, dict[str, Any]] = {
    "cuda": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    },
    "cpu": {"max_position_embeddings": 512},
}  # fmt: skip
"""On a card Llama 3.2 1B."""
ROWS, SEQ_LEN, WORDS = {"cuda": 96, "cpu": 12}, {"cuda": 1024, "cpu": 96}, {"cuda": (60, 330), "cpu": (4, 20)}
MICRO_BATCH, ACCUMULATION = {"cuda": 4, "cpu": 2}, 2
PROFILED_STEP = {"cuda": 5, "cpu": 2}
SYNCHRONISING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("4-bit weights unpacked", ("dequant", "quantize", "gemm_4bit")),
    ("attention", ("flash", "attention", "fmha", "sdpa")),
    ("matrix products", ("gemm", "cutlass", "cublas", "nvjet", "xmma", "wgmma", "mm")),
    ("copies", ("memcpy", "memset", "copy")),
    ("reductions and softmax", ("reduce", "softmax", "logsumexp", "scan")),
    ("optimizer", ("optimizer", "adam")),
)


def run(rig: Rig) -> None:
    environment.identify(rig)
    if not (rig.work / CARD_FILE).exists():
        environment.tell_rates(rig)
    load, model_facts = prepared(rig)
    ours = tell_ours(rig, load, model_facts, packing=False)
    others: dict[str, Callable[[rivals.Load], rivals.Pace]] = {
        "bare loop": rivals.bare_loop,
        "trl": rivals.trl,
    }
    for name, train in others.items():
        tell_rival(rig, load, name, train, ours)
    if rig.has_time(20):
        tell_ours(rig, load, model_facts, packing=True)
    tell_rival(
        rig, load, "unsloth", rivals.unsloth, ours
    )  # last: it changes the libraries for all that comes after


def prepared(rig: Rig) -> tuple[rivals.Load, Any]:
    """A folder with random weights and rows of many lengths; every program gets the rows as the program reads them."""
    from tests.support.tiny import make_tiny, write_rows

    with torch.device(rig.device):
        folder = make_tiny("llama", rig.work / "raced", **SHAPES[rig.device])
    if rig.is_cuda:
        torch.cuda.empty_cache()
    rng = random.Random(7)
    vocabulary = ["water", "plants", "seven", "evening", "capital", "number", "quick", "brown", "lazy"]
    rows = [
        {"instruction": f"Say {n}", "input": "", "output": " ".join(rng.choices(vocabulary, k=rng.randint(*WORDS[rig.device])))}
        for n in range(ROWS[rig.device])
    ]  # fmt: skip
    write_rows(rig.work / "raced.jsonl", rows)
    tokens = engine_calls.token_rows(rig.work / "raced.jsonl", folder, SEQ_LEN[rig.device])
    load = rivals.Load(folder, tokens, MICRO_BATCH[rig.device], ACCUMULATION, rig.device, SEQ_LEN[rig.device])
    return load, engine_calls.folder_facts(folder)


def tell_ours(rig: Rig, load: rivals.Load, facts: Any, *, packing: bool) -> rivals.Pace | None:
    """A run of the program itself; its fifth step is profiled where rows are not packed."""
    from qlora_engine.events import RunFinished, StepFinished
    from tests.support import tiny_runs

    name = "packed" if packing else "ours"
    config = tiny_runs.tiny_config(
        load.folder, rig.work / "raced.jsonl", rig.work / "race-runs", model__device=rig.device, lora__rank=rivals.RANK,
        lora__alpha=float(rivals.ALPHA), data__held_out_fraction=0.0, data__seq_len=load.seq_len, data__packing=packing,
        training__micro_batch=load.micro_batch, training__effective_batch=load.rows_per_step, training__max_steps=load.steps,
        training__optimizer="paged_adamw_8bit" if rig.is_cuda else "adamw_torch_fused", training__learning_rate=2e-4,
        output__name=name,
    )  # fmt: skip
    clock, steps, profiled, end = rivals.Clock(load), [], None, None
    with contextlib.ExitStack() as stack:
        for event in engine_calls.run_events(config):
            end = event
            if not isinstance(event, StepFinished):
                continue
            steps.append(event)
            if event.step == PROFILED_STEP[rig.device]:
                stack.close()
            if not packing and event.step == PROFILED_STEP[rig.device] - 1:
                profiled = stack.enter_context(profiler(rig))
    if not isinstance(end, RunFinished):
        rig.tell(report.checked(f"speed.{name}", f"the program's own run, {name}", False, repr(end)[:300]))
        return None
    kept = [step for step in steps[2:] if packing or step.step != PROFILED_STEP[rig.device]] or steps
    rate = sum(step.tokens for step in kept) / sum(step.step_seconds for step in kept)
    pace = rivals.Pace(rate, clock.peak())
    words = f"{load.micro_batch} x {ACCUMULATION} rows of up to {load.seq_len} tokens"
    rig.tell(report.fact(f"speed.{name}", f"this program{', packed' if packing else ''}: real tokens a second, {words}", rate, "tokens/s"))  # fmt: skip
    tell_use(rig, name, pace, facts, load)
    if profiled is not None:
        tell_profile(rig, profiled, next(s for s in steps if s.step == PROFILED_STEP[rig.device]))
    return pace


def tell_use(rig: Rig, name: str, pace: rivals.Pace, facts: Any, load: rivals.Load) -> None:
    """Multiplications a second that the model needs (6N + 4N of the head with checkpointing) of what the device can do."""
    if pace.peak_bytes is not None:
        rig.tell(report.fact(f"speed.{name}.peak", f"{name}: peak allocated", pace.peak_bytes, "bytes"))
    rates = rig.work / CARD_FILE
    best = json.loads(rates.read_text(encoding="utf-8"))["flops"]
    head = facts.vocab_size * facts.hidden_size
    needed = (6 * facts.quantized_parameters + 4 * head) * pace.tokens_per_second
    rig.tell(report.fact(f"speed.{name}.use", f"{name}: share of the device's matrix rate", needed / best, "share"))  # fmt: skip


def tell_rival(
    rig: Rig, load: rivals.Load, name: str, train: Callable[[rivals.Load], rivals.Pace], ours: rivals.Pace | None
) -> None:  # fmt: skip
    id_ = f"speed.{name.replace(' ', '_')}"
    why_not = why_absent(name, rig)
    if why_not:
        rig.tell(report.left_out(id_, name, why_not))
        return
    if not rig.has_time(25 if rig.is_cuda else 5):
        rig.tell(report.left_out(id_, name, "no time was left"))
        return
    try:
        pace = train(load)
    except Exception as error:  # noqa: BLE001 - another program's failure is a line, not the end of the part
        rig.tell(report.checked(id_, f"{name} trains the same rows", False, repr(error)[:400]))
        return
    rig.tell(report.fact(id_, f"{name}: real tokens a second, same rows", pace.tokens_per_second, "tokens/s"))
    if pace.peak_bytes is not None:
        rig.tell(report.fact(f"{id_}.peak", f"{name}: peak allocated", pace.peak_bytes, "bytes"))
    if ours is None:
        return
    ratio = ours.tokens_per_second / pace.tokens_per_second
    what = f"this program's speed against {name}'s"
    is_judged = rig.is_cuda  # on the CPU these shapes only measure overheads
    rig.tell(report.checked(f"{id_}.ratio", what, ratio >= 1.0, measured=ratio) if is_judged else report.fact(f"{id_}.ratio", what, ratio))  # fmt: skip


def why_absent(name: str, rig: Rig) -> str:
    """Why another program is not measured here; empty when it is there."""
    if name == "bare loop":
        return ""
    if name == "unsloth" and not rig.is_cuda:
        return ONLY_A_CARD
    if importlib.util.find_spec(name) is not None:
        return ""
    return {
        "trl": "it is not among the wheels",
        "unsloth": "it is not installed, and needs packages built for its own versions of torch",
    }[name]


def profiler(rig: Rig) -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU]
    return torch.profiler.profile(activities=[*activities, torch.profiler.ProfilerActivity.CUDA] if rig.is_cuda else activities)  # fmt: skip


def tell_profile(rig: Rig, profiled: Any, step: Any) -> None:
    """What the device did in one step, by kind; how often the program waited for it."""
    averages = list(profiled.key_averages())
    counts = {one.key: one.count for one in averages}
    reads = counts.get("aten::_local_scalar_dense", 0)
    rig.tell(report.fact("speed.reads", "numbers read back from the device in one step", reads, "count"))
    if not rig.is_cuda:
        rig.tell(report.left_out("speed.profile", "kernels of one step by kind, idle time, synchronisations", ONLY_A_CARD))  # fmt: skip
        return
    waits = sum(counts.get(name, 0) for name in SYNCHRONISING)
    spent = kinds_of({one.key: one.self_device_time_total for one in averages if one.self_device_time_total})  # fmt: skip
    total = sum(spent.values()) / 1e6
    rig.tell(
        report.fact("speed.waits", "synchronisations in one step", waits, "count"),
        report.fact("speed.step", "the profiled step", step.step_seconds, "seconds"),
        report.fact("speed.busy", "the device at work in it", total / step.step_seconds, "share"),
        *(report.fact(f"speed.kind.{kind}", f"of that: {kind}", micro / 1e6 / total, "share") for kind, micro in spent.items()),
    )  # fmt: skip


def kinds_of(times: Mapping[str, float]) -> dict[str, float]:
    """Microseconds by kind of kernel; operators' names contain `::` and are counted through their kernels."""
    found: dict[str, float] = {}
    for name, micro in times.items():
        if "::" in name and not name.startswith("void"):
            continue
        kind = next((kind for kind, words in KINDS if any(word in name.lower() for word in words)), "other")
        found[kind] = found.get(kind, 0.0) + micro
    return dict(sorted(found.items(), key=lambda one: one[1], reverse=True))
