"""Loads what is spoken with: a model in 4 bits, and the adapters of runs on it. Imports the ML stack."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_engine import adapters, out_of_memory
from qlora_engine.bridge import Emit, events_while
from qlora_engine.config import TrainingConfig
from qlora_engine.control import Control
from qlora_engine.data.templates import chosen
from qlora_engine.device import DevicePlan, plan_device
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.evaluate.origin import BASE, TUNED, BaseKey, Origin, base_key, origin_of_run, why_not_beside
from qlora_engine.evaluate.voices import Voice, Voices
from qlora_engine.events import Event, ModelLoaded, PhaseChanged, Progressed
from qlora_engine.export import source as export_source
from qlora_engine.models import loading, prepare, spec
from qlora_engine.out_of_memory import is_out_of_memory
from qlora_engine.runs.record import RunFolder


@dataclass(frozen=True)
class ChatModel:
    """A loaded base, who speaks on it, and how to talk to each. `origin` is what it was loaded for."""

    voices: Voices
    tokenizer: Any
    origin: Origin
    key: BaseKey
    plan: DevicePlan
    max_positions: int | None
    report: loading.LoadReport

    @property
    def sides(self) -> tuple[str, ...]:
        return self.voices.sides

    @property
    def facts(self) -> dict[str, Any]:
        """What SessionReady and SidesChanged tell: of the base, of the run it was loaded for, and of each side."""
        config, run = self.origin.config, self.origin.run
        first = self.voices.of(TUNED)
        return {
            "model": config.model.name,
            "run_id": run.run_id if run else None,
            "run_dir": str(run.path) if run else None,
            "has_adapter": first is not None,
            "sides": list(self.sides),
            "adapter_step": self.origin.step,
            "variant": adapters.variant_name(config.lora) if first else None,
            "can_scale_adapter": first is not None and first.can_scale,
            "device": self.report.device,
            "compute_dtype": self.report.compute_dtype,
            "quant_type": self.report.quant_type,
            "is_double_quant": self.report.is_double_quant,
            **self._template(config),
            "system_prompt": config.data.system_prompt,
            "max_positions": self.max_positions,
            "voices": {side: self._voice(self.voices.of(side)) for side in self.sides},
        }

    def config_of(self, side: str) -> TrainingConfig:
        """The settings that a side was trained with; the base is asked as the run it was loaded for."""
        voice = self.voices.of(side)
        return (voice.origin if voice else self.origin).config

    @contextlib.contextmanager
    def speaking(self, side: str, strength: float = 1.0) -> Iterator[Any]:
        """The model as one side hears it: `base` without an adapter, the others with theirs, scaled by `strength`."""
        with self.voices.speaking(side, strength) as model:
            yield model

    def add_run(self, run: RunFolder) -> str:
        """Put the adapter of another run on the loaded base; the side that speaks for it.

        Raises:
            EngineError: another base, other quantization settings, or the adapter does not fit.
        """
        known = self.voices.side_of(run.path)
        if known is not None:
            return known
        reason = why_not_beside(self.key, base_key(run.record()))
        if reason:
            raise EngineError(
                "chat.other_base",
                f"run {run.run_id!r} cannot be put beside the others: {reason}",
                "choose a run of the same base and quantization, or load that run instead",
            )
        return self.voices.add(self._free_side(run.run_id), origin_of_run(run)).side

    def _free_side(self, run_id: str) -> str:
        side, number = run_id, 2
        while side in (*self.sides, BASE, TUNED):
            side, number = f"{run_id}-{number}", number + 1
        return side

    def _voice(self, voice: Voice | None) -> dict[str, Any]:
        origin = voice.origin if voice else self.origin
        run = origin.run if voice else None
        return {
            "run_id": run.run_id if run else None,
            "run_dir": str(run.path) if run else None,
            "variant": adapters.variant_name(origin.config.lora) if voice else None,
            "adapter_step": origin.step if voice else None,
            "can_scale": voice is not None and voice.can_scale,
            "system_prompt": origin.config.data.system_prompt,
        }

    def _template(self, config: TrainingConfig) -> dict[str, str]:
        template = chosen(self.tokenizer, config.data)
        return {"chat_template": template.name, "chat_template_reason": template.why}


def load_chat_model(origin: Origin, control: Control) -> Generator[Event, None, ChatModel]:
    """Load the base in the 4 bits it was trained in, and put the adapter on it.

    Raises:
        EngineError: the base is missing, another one, or does not fit.
        Cancelled: asked to stop.
    """
    config = origin.config
    plan = plan_device(config.model, config.quantization.compute_dtype)
    base = yield from _ready_base(origin, control)
    yield PhaseChanged("loading", f"Loading {config.model.name} in 4 bits on {plan.title}")
    control.check()

    def work(emit: Emit) -> loading.LoadedModel:
        def report(phase: str, done: int, total: int | None, unit: str) -> None:
            control.check()
            emit(Progressed(phase, done, total, unit))

        return loading.load_quantized(
            base,
            config.quantization,
            plan,
            trust_remote_code=config.model.trust_remote_code,
            report_progress=report,
        )

    loaded = yield from events_while(work)
    yield ModelLoaded(asdict(loaded.report))
    control.check()
    voices = Voices(loaded.model.eval())
    if origin.adapter is not None:
        voices.add(TUNED, origin)
    found = spec.facts_of_folder(base, config.model.name)
    key = _key_of_loaded(base, loaded.report)
    return ChatModel(voices, loaded.tokenizer, origin, key, plan, found.max_positions, loaded.report)


def _ready_base(origin: Origin, control: Control) -> Generator[Event, None, Path]:
    if origin.run is not None:
        record = origin.run.record()
        base = export_source.base_path(record)
        export_source.check_base(record, base)
        return base
    settings = origin.config.model
    yield PhaseChanged("preparing", f"Looking for the model {settings.name}")

    def work(emit: Emit) -> Path:
        def report(phase: str, done: int, total: int | None, unit: str) -> None:
            emit(Progressed(phase, done, total, unit))

        return prepare.ensure_ready(settings.name, settings.revision, settings.offline, control, report)

    return (yield from events_while(work))


def _key_of_loaded(base: Path, report: loading.LoadReport) -> BaseKey:
    hashes = loading.fingerprint(base).items()
    files = tuple(sorted((name, digest) for name, digest in hashes if name.endswith(".safetensors")))
    return BaseKey(files, report.quant_type, report.is_double_quant)


@contextlib.contextmanager
def memory_told() -> Iterator[None]:
    """Work on a loaded model whose memory runs out says so.

    Raises:
        EngineError: memory is out, the GPU's or the computer's.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        out_of_memory.release()
        raise no_room(error) from error


def no_room(error: BaseException) -> EngineError:
    """The sentence for memory that ran out during an answer."""
    code, whose = out_of_memory.owner(error)
    return EngineError(
        code,
        f"{whose} ran out of memory while the model was answering",
        "close other programs that use it, shorten the conversation, or ask for shorter answers",
        is_input_error=False,
    )


def require_known(settings: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse a setting nobody knows.

    Raises:
        EngineError: with the closest known name.
    """
    for name in settings:
        if name not in known:
            raise EngineError(
                "chat.setting", f"a chat has no setting {name!r}", did_you_mean(str(name), known)
            )
