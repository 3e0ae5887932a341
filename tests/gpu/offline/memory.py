"""Part 3: the peak of a step as predicted, by formula and by rehearsal, and as the allocator saw it. Imports the ML stack."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tests.gpu.offline import engine_calls, environment, report
from tests.gpu.offline.rig import ONLY_A_CARD, Rig
from tests.gpu.offline.settings import DOUBLE, Group, Setting, groups

REHEARSAL_MAY_BE_OFF = {"cuda": 0.05, "cpu": 0.03}
FORMULA_MAY_BE_OFF = {"cuda": 0.08, "cpu": 0.05}
"""On the CPU, where both can be tried at any time: 1.8 % and 4 %, of shapes so tiny that single tensors show."""
DEVICE_MAY_BE_OFF = 0.15
SETTING_SECONDS = 12


@dataclass(frozen=True)
class Measured:
    """Bytes at the peak of the second step, and its seconds. `reserved` is None where no allocator keeps it."""

    peak: int
    reserved: int | None
    seconds: float


@dataclass(frozen=True)
class Base:
    """A 4-bit base: the bytes it takes, how many parameters are quantized, and what its constants were to take."""

    bytes_: int
    quantized: int
    constants: int


def run(rig: Rig) -> None:
    environment.identify(rig)
    if rig.is_cuda:
        engine_calls.context_measured(torch.__version__)
    shares: list[float] = []
    bases: dict[tuple[str, bool], Base] = {}
    for group in groups(rig.device):
        if not rig.has_time(2 * SETTING_SECONDS):
            rig.tell(report.left_out(f"memory.{name_of(group)}", group.words, "no time was left"))
            continue
        try:
            run_group(rig, group, shares, bases)
        except Exception as error:  # noqa: BLE001 - one base that cannot be built must not take the others along
            rig.tell(report.checked(f"memory.{name_of(group)}", f"{group.words}: its base", False, repr(error)[:400]))  # fmt: skip
        clear(rig)
    tell_saving(rig, bases)
    if shares:
        tell_reserve(rig, shares)
    elif not rig.is_cuda:
        rig.tell(report.left_out("memory.reserve", "what the allocator reserves beyond the peak", ONLY_A_CARD))  # fmt: skip


def name_of(group: Group) -> str:
    return f"{group.model}.{'double' if group.is_double_quant else 'single'}"


def run_group(rig: Rig, group: Group, shares: list[float], bases: dict[tuple[str, bool], Base]) -> None:
    facts, base, base_bytes = built(rig, group)
    for index, setting in enumerate(group.settings):
        id_ = f"memory.{name_of(group)}.{index}"
        what = f"{group.words}, {setting.words}"
        if not rig.has_time(SETTING_SECONDS):
            rig.tell(report.left_out(id_, what, "no time was left"))
            continue
        config = engine_calls.settings({**setting.changes, DOUBLE: group.is_double_quant}, setting.rows)
        found = engine_calls.predicted(facts, config, setting.seq_len, setting.rows, rig.device)
        if index == 0:
            constants = found.formula.parts["quantization_constants"]
            bases[group.model, group.is_double_quant] = Base(
                base_bytes, facts.quantized_parameters, constants
            )
            tell_base(rig, group, found, base_bytes)
        if base is None:
            facts, base, _ = built(rig, group)
        try:
            measured, base = measure(rig, base, config, setting, facts.vocab_size)
        except torch.OutOfMemoryError as error:
            base = None  # half a step's tensors may hang on it
            clear(rig)
            rig.tell(report.checked(id_, what, False, str(error)[:200]))
            continue
        tell_setting(rig, id_, what, measured, found, setting)
        if measured.reserved is not None:
            moving = sum(found.rehearsal.parts[name] for name in ("activations", "step_temporary", "gradients"))  # fmt: skip
            shares.append((measured.reserved - measured.peak) / moving)


def built(rig: Rig, group: Group) -> tuple[Any, Any, int]:
    """(facts, a 4-bit base on the device, the bytes it takes)."""
    from tests.support.tiny import make_tiny

    config = engine_calls.settings({DOUBLE: group.is_double_quant})
    clear(rig)
    before = allocated(rig)
    if group.is_folder:
        folder = rig.work / f"{group.model}-{group.sizes['hidden_size']}"
        if not folder.exists():
            make_tiny(group.model, folder, **group.sizes)
        facts = engine_calls.folder_facts(folder)
    else:
        facts = engine_calls.known_facts(group.model)
    if group.is_loaded:
        loaded = engine_calls.load(folder, config, rig.device)
        tell_loaded(rig, group, facts, loaded)
        base = loaded.model
    else:
        base = engine_calls.random_base(facts, config, rig.device)
    clear(rig)
    return facts, base, allocated(rig) - before if rig.is_cuda else engine_calls.model_bytes(base)


def tell_loaded(rig: Rig, group: Group, facts: Any, loaded: Any) -> None:
    """Of a base from a folder: what was really built. Experts are stacked tensors, which 4 bits need not have reached."""
    experts = [
        p for name, p in loaded.model.named_parameters() if ".experts." in name and p.dtype != torch.uint8
    ]
    left = sum(p.nbytes for p in experts)
    id_, words = (
        f"memory.{name_of(group)}.loaded",
        f"{loaded.report.quantized_parameters:,} parameters in 4 bits",
    )
    rig.tell(report.fact(id_, f"{group.words}: loaded from a folder", loaded.report.quantized_parameters, "count"))  # fmt: skip
    if any(not one.is_quantized for one in facts.stacked):
        rig.tell(report.left_out(f"{id_}.experts", f"{group.words}: experts in 4 bits", f"this version leaves them in 16 bits: {left:,} bytes"))  # fmt: skip
    elif "moe" in group.model:
        rig.tell(report.checked(f"{id_}.experts", f"{group.words}: experts in 4 bits", not experts, words, left))  # fmt: skip


def measure(rig: Rig, base: Any, config: Any, setting: Setting, vocab: int) -> tuple[Measured, Any]:
    """Two steps of a run with these settings; the second has its optimizer's state. Gives the base back."""
    one = engine_calls.trainee(base, config)
    batch = engine_calls.random_batch(vocab, setting.rows, setting.seq_len, rig.device, packed=setting.packed)  # fmt: skip
    managed = engine_calls.managed_bytes()
    one.step(batch)
    managed = engine_calls.managed_bytes() - managed if rig.is_cuda else 0
    if not rig.is_cuda:
        measured = engine_calls.counted_step(one, batch)
        return Measured(measured, None, 0.0), engine_calls.put_back(one)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    began = time.perf_counter()
    one.step(batch)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return Measured(peak + managed, reserved + managed, seconds), engine_calls.put_back(one)


def tell_base(rig: Rig, group: Group, found: engine_calls.Predicted, base_bytes: int) -> None:
    parts = found.formula.parts
    wanted = sum(parts[name] for name in ("quantized_weights", "quantization_constants", "unquantized_weights"))  # fmt: skip
    rig.tell(report.compared(f"memory.{name_of(group)}.base", f"{group.words}: the 4-bit base", base_bytes, wanted, "bytes", 0.01))  # fmt: skip


def tell_setting(
    rig: Rig, id_: str, what: str, measured: Measured, found: engine_calls.Predicted, setting: Setting
) -> None:
    rig.tell(
        report.compared(f"{id_}.rehearsal", f"{what}: peak, by rehearsal", measured.peak, found.rehearsal.peak_bytes, "bytes", REHEARSAL_MAY_BE_OFF[rig.device]),
        report.compared(f"{id_}.formula", f"{what}: peak, by formula", measured.peak, found.formula.peak_bytes, "bytes", FORMULA_MAY_BE_OFF[rig.device]),
    )  # fmt: skip
    if measured.reserved is None:
        return
    context = found.rehearsal.context
    shown = measured.reserved + context.likely_bytes
    rate = setting.rows * setting.seq_len / measured.seconds
    rig.tell(
        report.compared(f"{id_}.device", f"{what}: on the device, context included", shown, found.rehearsal.device_likely, "bytes", DEVICE_MAY_BE_OFF),
        report.at_most(f"{id_}.high", f"{what}: on the device, against the high end", shown, found.rehearsal.device_high, "bytes"),
        report.fact(f"{id_}.speed", f"{what}: tokens a second of one step", rate, "tokens/s"),
    )  # fmt: skip


def tell_saving(rig: Rig, bases: Mapping[tuple[str, bool], Base]) -> None:
    """Double quantization: what it saves on bases of which both were measured."""
    for (model, is_double), double in bases.items():
        single = bases.get((model, False))
        if not is_double or single is None:
            continue
        saved = single.bytes_ - double.bytes_
        rig.tell(
            report.compared(f"memory.{model}.saved", f"{model}: saved by double quantization", saved, single.constants - double.constants, "bytes", 0.02),
            report.fact(f"memory.{model}.bits", f"{model}: the same, in bits for each quantized parameter", 8 * saved / double.quantized),
        )  # fmt: skip


def tell_reserve(rig: Rig, shares: list[float]) -> None:
    """Reserved but not allocated at the peak, as a share of what comes and goes in a step."""
    low, likely, high = min(shares), statistics.median(shares), max(shares)
    rig.head("calibration", {"reserve_share": [low, likely, high], "reserve_settings": len(shares)})
    rig.tell(
        report.fact("memory.reserve.low", "reserved beyond the peak, share of the moving part, least", low, "share"),
        report.fact("memory.reserve", "the same, median", likely, "share"),
        report.fact("memory.reserve.high", "the same, most", high, "share"),
    )  # fmt: skip


def allocated(rig: Rig) -> int:
    return torch.cuda.memory_allocated() if rig.is_cuda else 0


def clear(rig: Rig) -> None:
    gc.collect()
    if rig.is_cuda:
        torch.cuda.empty_cache()
