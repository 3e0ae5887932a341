"""Streams a model's linear weights from its files, one at a time, and measures what each way to store them loses.

Imports the ML stack. At most a few copies of one weight are in memory, whatever the model's size.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qlora_engine.control import Control
from qlora_engine.device import DevicePlan
from qlora_engine.errors import EngineError
from qlora_engine.events import Event, Progressed
from qlora_engine.models import loading, spec, weight_reader
from qlora_engine.models.files import StoredTensor
from qlora_engine.quantization.report import Measure, ModuleErrors, WeightErrors
from qlora_engine.quantization.roundtrip import round_trip
from qlora_engine.quantization.variants import Options, Variant

NORMAL_MEDIAN = 0.6744897501960817
"""The median magnitude of N(0, 1): its 0.75 quantile."""
NEIGHBOURS = 32
LOOKED_AT = 4096
"""Blocks of so many neighbours that are looked at to tell weights that were quantized before."""
Clock = Callable[[], float]


@dataclass(frozen=True)
class Place:
    """A linear layer that training quantizes: its module in the model, its tensor in the files."""

    module: str
    layer: int
    tensor: str
    folder: Path
    stored: StoredTensor

    def read(self) -> torch.Tensor:
        """The weight (out, in) as it is stored.

        Raises:
            EngineError: it holds NaN or infinity.
        """
        weight = weight_reader.read(self.folder, self.stored)
        if not bool(torch.isfinite(weight).all()):
            raise EngineError(
                "quality.not_finite", f"{self.tensor} holds numbers that are not finite",
                "download the model again; nothing can be trained on these weights",
            )  # fmt: skip
        return weight


@dataclass
class _Sums:
    """What is added up over modules, in float64."""

    parameters: int = 0
    energy: float = 0.0
    lost: float = 0.0
    stored_bytes: int = 0
    largest: float = 0.0

    def add(self, other: _Sums) -> None:
        self.parameters += other.parameters
        self.energy += other.energy
        self.lost += other.lost
        self.stored_bytes += other.stored_bytes
        self.largest = max(self.largest, other.largest)

    def measure(self) -> Measure:
        return Measure(
            bits=8 * self.stored_bytes / self.parameters,
            relative_error=math.sqrt(self.lost / self.energy) if self.energy else 0.0,
            snr_db=10 * math.log10(self.energy / self.lost) if self.lost and self.energy else None,
            largest_error=self.largest,
        )


def places_of(path: Path, facts: spec.ModelFacts) -> list[Place]:
    """Every linear layer that training quantizes, in the order of the model.

    Raises:
        EngineError: a layer's weight is not in the files under its name.
    """
    headers = spec.headers_of_folder(path)
    renamed = loading.text_model_arguments(path, facts).get("key_mapping", {})
    stored = {_renamed(name, renamed): name for name in headers}
    found = []
    for layer in range(facts.layers):
        for linear in facts.linears:
            if not linear.is_quantized:
                continue
            module = linear.path.replace("*", str(layer))
            tensor = stored.get(f"{module}.weight")
            if tensor is None:
                raise EngineError(
                    "quality.module", f"the files of {facts.name} have no {module}.weight",
                    "report this model as a bug", is_input_error=False,
                )  # fmt: skip
            found.append(Place(module, layer, tensor, path, headers[tensor]))
    return found


def measure(
    places: Sequence[Place], options: Options, plan: DevicePlan, control: Control, seconds: float | None = None,
    clock: Clock = time.monotonic,
) -> Generator[Event, None, WeightErrors]:  # fmt: skip
    """Measure all layers, or as many as the options and `seconds` allow, always spread over the depth.

    Raises:
        EngineError: a weight cannot be read.
        Cancelled: asked to stop.
    """
    began = clock()
    layers = max(place.layer for place in places) + 1
    wanted = _spread(layers, options.max_layers or layers)
    by_layer = {layer: [p for p in places if p.layer == layer] for layer in wanted}
    total = sum(len(found) for found in by_layer.values())
    measured: dict[str, ModuleErrors] = {}
    sums: dict[str, _Sums] = {variant.key: _Sums() for variant in options.variants}
    done_layers: list[int] = []
    for layer in wanted:
        if seconds is not None and done_layers and clock() - began > seconds:
            break
        for place in by_layer[layer]:
            measured[place.module] = _measure_one(place, options.variants, plan, control, sums)
            yield Progressed("measuring", len(measured), total, "modules")
        done_layers.append(layer)
    return WeightErrors(
        layers=layers,
        measured_layers=tuple(sorted(done_layers)),
        parameters=next(iter(sums.values())).parameters,
        modules=tuple(measured[p.module] for p in places if p.module in measured),
        totals={key: found.measure() for key, found in sums.items()},
        is_out_of_time=len(done_layers) < len(wanted),
        distinct_in_32=_distinct(next(p for p in places if p.module in measured)),
        seconds=clock() - began,
    )


def _measure_one(
    place: Place,
    variants: Sequence[Variant],
    plan: DevicePlan,
    control: Control,
    sums: Mapping[str, _Sums],
) -> ModuleErrors:
    stored = place.read().to(plan.name)
    weight, original = stored.to(plan.torch_dtype), stored.float()
    energy = _energy(original)
    measures = {}
    for variant in variants:
        control.check()
        trip = round_trip(weight, variant)
        lost = original - trip.weight.float()
        found = _Sums(original.numel(), energy, _energy(lost), trip.stored_bytes, float(lost.abs_().max()))
        sums[variant.key].add(found)
        measures[variant.key] = found.measure()
    peak, tail = _shape(original, energy)
    return ModuleErrors(place.module, place.layer, original.numel(), peak, tail, measures)


def _shape(weight: torch.Tensor, energy: float) -> tuple[float, float]:
    """(largest magnitude, root mean square) over the typical weight; mostly zeros have none but their root mean square."""
    magnitudes = weight.abs()
    mean_square = math.sqrt(energy / weight.numel())
    typical = float(magnitudes.median()) / NORMAL_MEDIAN or mean_square
    return (float(magnitudes.max()) / typical, mean_square / typical) if typical else (0.0, 1.0)


def _distinct(place: Place) -> float:
    """Different values in 32 neighbouring weights, the mean over the first blocks of a layer; zeros count as none."""
    blocks = place.read().float().reshape(-1)[: LOOKED_AT * NEIGHBOURS]
    blocks = blocks[: len(blocks) // NEIGHBOURS * NEIGHBOURS].view(-1, NEIGHBOURS)
    blocks = blocks[blocks.any(dim=1)]
    if not len(blocks):
        return float(NEIGHBOURS)
    ordered = blocks.sort(dim=1).values
    return float((ordered[:, 1:] != ordered[:, :-1]).sum(dim=1).add(1).float().mean())


def _energy(tensor: torch.Tensor) -> float:
    """Sum of squares, without a copy in float64."""
    return float(torch.linalg.vector_norm(tensor)) ** 2


def _spread(layers: int, count: int) -> list[int]:
    """`count` layers at even distances, the first and the last among them, in an order of which every beginning is
    spread too: the ends, then the middles of what lies between."""
    count = min(count, layers)
    chosen = [layers // 2] if count == 1 else [round(i * (layers - 1) / (count - 1)) for i in range(count)]
    order = [0, count - 1] if count > 1 else [0]
    gaps = [(0, count - 1)]
    while gaps:
        low, high = gaps.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [chosen[place] for place in order]


def _renamed(name: str, mapping: Mapping[str, str]) -> str:
    """A stored name as the model built from these files has it."""
    for pattern, replacement in mapping.items():
        name = re.sub(pattern, replacement, name)
    return name
