"""Which known models fit a machine, and how long their rows may be. Pure arithmetic, no torch."""

from __future__ import annotations

import bisect
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.memory import experts, gpus, static
from qlora_engine.memory.context import UNMEASURED, Context, context_of
from qlora_engine.memory.variants import variant_of
from qlora_engine.models import known
from qlora_engine.models.known import KnownModel
from qlora_engine.models.spec import ModelFacts

USUAL_LENGTH = 1024
"""Tokens per row that a model must take to count as one that fits."""
LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)


@dataclass(frozen=True)
class Room:
    """Where a run would go: its device, what it may take there, and what a process takes besides. `title` names it;
    `host_bytes` is what the computer beside a GPU has for experts, None where that is not known."""

    title: str
    device: str
    usable_bytes: int
    context: Context = UNMEASURED
    host_bytes: int | None = None


@dataclass(frozen=True)
class Choice:
    """A known model in a room: bytes with rows of `USUAL_LENGTH`, and the longest rows that fit, None where none do.
    `host_bytes`: so much of a mixture's experts wait in the computer's memory, where they fit in no other way."""

    model: KnownModel
    likely_bytes: int
    longest: int | None
    host_bytes: int = 0

    def fits(self, room: Room) -> bool:
        return self.likely_bytes <= room.usable_bytes


def room_here() -> Room:
    """The first GPU of this machine, with what is free of it, else the computer's memory."""
    import psutil

    from qlora_engine.monitor.nvml import DeviceMemory, Handle, Nvml

    available = psutil.virtual_memory().available
    nvml = Nvml()
    if nvml.start():
        try:
            device = nvml.device(0)
            found = nvml.memory(device) if isinstance(device, Handle) else None
            name = nvml.name(device) if isinstance(device, Handle) else ""
            if isinstance(found, DeviceMemory) and isinstance(name, str):
                return Room(name, "cuda", found.free_bytes, context_of(name), available)
        finally:
            nvml.stop()
    return Room("this computer, without a GPU", "cpu", available)


def room_of(gpu: str) -> Room:
    """A GPU of the table.

    Raises:
        EngineError: it is not there.
    """
    found = gpus.find(gpu)
    return Room(found.name, "cuda", found.usable_bytes, context_of(found.name))


def choices(config: TrainingConfig, room: Room, *, query: str = "", is_chat: bool = False) -> list[Choice]:
    """Every known model that `query` and `is_chat` leave, one row at a time, otherwise as `config` says; largest first."""
    found = [one for one in known.known_models() if one.matches(query) and (one.is_chat or not is_chat)]
    made: dict[str, Choice] = {}  # many models are another's sizes with other weights
    for model in found:
        sizes = repr(sorted(model.config.items()))
        if sizes not in made:
            made[sizes] = choice_of(model, config, room)
    chosen = [replace(made[repr(sorted(model.config.items()))], model=model) for model in found]
    return sorted(chosen, key=lambda one: -one.model.facts().parameters)


def choice_of(model: KnownModel, config: TrainingConfig, room: Room) -> Choice:
    """One of them. Experts go to the computer's memory where that is what it takes."""
    found = _choice(model, config, room)
    if found.fits(room) or room.device != "cuda" or not model.facts().stacked:
        return found
    facts = experts.as_configured(model.facts(), config.quantization)
    moved = sum(experts.moved_to_host(facts, is_double_quant=config.quantization.double_quant))
    if moved > (room.host_bytes or moved):
        return found
    away = _choice(model, with_value(config, "quantization.expert_placement", "host"), room)
    return replace(away, host_bytes=moved) if away.fits(room) else found


def largest_model(config: TrainingConfig, room: Room, seq_len: int, micro_batch: int) -> str | None:
    """The largest known model whose likely memory fits with these very settings: that takes rows of that length, and has
    the layers that are named."""
    by_size = sorted((model.facts() for model in known.known_models()), key=lambda facts: -facts.parameters)
    return next((facts.name for facts in by_size if _takes(facts, config, seq_len) and _fits(facts, config, room, seq_len, micro_batch)), None)  # fmt: skip


def to_json(choice: Choice, room: Room, cached: Collection[str | None] = ()) -> dict[str, Any]:
    """What `qlora models --json` says of it."""
    model, facts = choice.model, choice.model.facts()
    return {
        "name": model.name,
        "title": model.title,
        "hub_id": model.hub_id,
        "licence": model.licence,
        "is_chat": model.is_chat,
        "model_type": facts.model_type,
        "parameters": facts.parameters,
        "active_parameters": facts.active_parameters,
        "context": facts.max_positions,
        "download_bytes": model.download_bytes,
        "is_cached": model.hub_id in cached,
        "likely_bytes": choice.likely_bytes,
        "fits": choice.fits(room),
        "longest_that_fits": choice.longest,
        "host_bytes": choice.host_bytes,
    }


def _choice(model: KnownModel, config: TrainingConfig, room: Room) -> Choice:
    facts = model.facts()
    likely = _likely(facts, config, room, min(USUAL_LENGTH, facts.max_positions or USUAL_LENGTH))
    return Choice(model, likely, _longest(facts, config, room))


def _longest(facts: ModelFacts, config: TrainingConfig, room: Room) -> int | None:
    """By halving: memory never shrinks when rows grow."""
    limit = min(facts.max_positions or LENGTHS[-1], LENGTHS[-1])
    lengths = [*(n for n in LENGTHS if n < limit), limit]
    fitting = bisect.bisect_left(
        lengths, True, key=lambda length: _likely(facts, config, room, length) > room.usable_bytes
    )
    return lengths[fitting - 1] if fitting else None


def _takes(facts: ModelFacts, config: TrainingConfig, seq_len: int) -> bool:
    if facts.max_positions is not None and facts.max_positions < seq_len:
        return False
    targets = config.lora.targets
    wanted = (targets,) if isinstance(targets, str) else targets
    return all(static.target_linears(facts, one if isinstance(targets, str) else (one,)) for one in wanted)


def _fits(facts: ModelFacts, config: TrainingConfig, room: Room, seq_len: int, micro_batch: int) -> bool:
    return _likely(facts, config, room, seq_len, micro_batch) <= room.usable_bytes


def _likely(facts: ModelFacts, config: TrainingConfig, room: Room, seq_len: int, micro_batch: int = 1) -> int:
    found = variant_of(
        facts, config, seq_len=seq_len, micro_batch=micro_batch, device=room.device, context=room.context
    )
    return found.device_likely
