"""What a step of a class without a formula of its own holds: a count of its linear layers, brought to scale by its rehearsal.

The count alone is rough. A rehearsal at three lengths gives the curve from it to what the class really does; the curve
is kept on disk by the configuration, the libraries and the way of training, and serves every length, rank and micro-batch.
Pure arithmetic, no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_engine import installed, kept, parsing, paths
from qlora_engine.config import TrainingConfig
from qlora_engine.memory import static
from qlora_engine.memory.passes import FP32, Shape
from qlora_engine.models.spec import ModelFacts

SCHEMA = 6
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
SIDES = ("double_quant", "single_quant")


@dataclass(frozen=True)
class Point:
    """At one length: what the count said, and what the rehearsal found, in bytes."""

    counted: float
    activations: int
    step_temporary: int


@dataclass(frozen=True)
class Count:
    """Bytes of one step by the count: what grows with the tokens, what the loss takes, what is there once."""

    kept: float
    working: float
    loss: float

    @property
    def total(self) -> float:
        return self.kept + max(self.working, self.loss)


def count(facts: ModelFacts, config: TrainingConfig, shape: Shape, loss_bytes: int) -> Count:
    """A block keeps the inputs and outputs of its layers; with checkpointing one does, of the others their input alone."""
    t, layers = shape.tokens, max(1, facts.layers)
    stream = facts.hidden_size * shape.stream_bytes * t
    adapted = {linear.path for linear in static.target_linears(facts, config.lora.targets)}
    widths: dict[str, float] = defaultdict(float)
    largest = 0
    for linear in facts.linears:
        rank = config.lora.rank if linear.path in adapted else 0
        width = (linear.in_features + linear.out_features) * shape.element_bytes
        width += rank * shape.adapter_bytes + (linear.in_features * shape.adapter_bytes if rank else 0)
        widths["all"] += width * linear.count
        largest = max(largest, linear.in_features * linear.out_features * shape.element_bytes)
    for one in facts.stacked:
        used = min(facts.experts_per_token or 1, one.experts)
        width = (one.in_features + one.out_features) * shape.element_bytes
        if config.lora.experts:
            width += (config.lora.rank + one.in_features) * shape.adapter_bytes
        widths["all"] += width * used * one.count
        largest = max(largest, one.in_features * one.out_features * shape.element_bytes)
    block = (widths["all"] / layers + 4 * facts.hidden_size * FP32) * t
    if config.training.gradient_checkpointing:
        again = -(-layers // (config.training.checkpoint_every or 1))
        inputs = stream if is_on_host(config, shape) else again * stream
        return Count(inputs + (layers - again) * block, 2 * block + largest, loss_bytes)
    return Count(layers * block, block + largest, loss_bytes)


def is_on_host(config: TrainingConfig, shape: Shape) -> bool:
    """Whether the inputs of recomputed blocks wait beside the GPU."""
    return shape.is_cuda and config.training.gradient_checkpointing and config.training.offload_inputs


def scaled(points: Sequence[Point], counted: float) -> tuple[int, int]:
    """(activations, temporaries) at a count, on the curve through the points: straight where attention keeps nothing of pairs
    of tokens, else bent with the square of the length. Never less than nothing."""
    return (
        max(0, round(_through([(one.counted, one.activations) for one in points], counted))),
        max(0, round(_through([(one.counted, one.step_temporary) for one in points], counted))),
    )


def _through(points: Sequence[tuple[float, float]], x: float) -> float:
    """Lagrange's polynomial through the points."""
    total = 0.0
    for index, (at, value) in enumerate(points):
        share = 1.0
        for other, (away, _) in enumerate(points):
            share *= (x - away) / (at - away) if other != index else 1.0
        total += share * value
    return total


def is_measured(facts: ModelFacts, config: TrainingConfig, device: str) -> bool:
    """Whether a rehearsal of this class, trained in this way, has given the curve."""
    return facts.source == "table" or points_of(facts, config, device, SIDES[0]) is not None


def points_of(facts: ModelFacts, config: TrainingConfig, device: str, side: str) -> tuple[Point, ...] | None:
    """The points of a class; of the 16-bit sides those of the 4-bit one."""
    try:
        plain = parsing.from_json(_file(facts, config, device).read_text(encoding="utf-8"))
        found = plain.get(side) or plain[SIDES[0]]
        points = tuple(Point(**one) for one in found)
        return points if len({one.counted for one in points}) == len(points) > 1 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep(
    facts: ModelFacts, config: TrainingConfig, device: str, points: Mapping[str, Sequence[Point]]
) -> None:
    """Keep the points by side."""
    plain = {side: [vars(point) for point in found] for side, found in points.items()}
    kept.keep(_file(facts, config, device), plain)


def _file(facts: ModelFacts, config: TrainingConfig, device: str) -> Path:
    """Of one class trained one way; what the count follows (lengths, rows, ranks) is left out."""
    training, lora = config.training, config.lora
    way = [
        device, training.gradient_checkpointing, training.checkpoint_every or 1, training.offload_inputs, training.loss, config.data.packing, lora.dtype, lora.dropout > 0,
        lora.dora, lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        lora.rank if lora.experts else None, config.quantization.experts,
    ]  # fmt: skip
    versions = [installed.version(name) for name in LIBRARIES]
    key = json.dumps([SCHEMA, versions, way, dict(facts.config)], sort_keys=True, default=str)
    return paths.cache_dir() / "profiles" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
