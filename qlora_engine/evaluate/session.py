"""Loads what a chat talks to: a model in 4 bits, with the adapter of a run when a run is named. Imports the ML stack."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.helpers import rescale_adapter_scale

from qlora_engine import adapters
from qlora_engine.bridge import Emit, events_while
from qlora_engine.config import ModelSettings, QuantizationSettings, TrainingConfig
from qlora_engine.control import Control
from qlora_engine.data.templates import choose
from qlora_engine.device import plan_device
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.events import Event, ModelLoaded, PhaseChanged, Progressed
from qlora_engine.export import source as export_source
from qlora_engine.jobs import ChatJob
from qlora_engine.models import loading, prepare, spec
from qlora_engine.models.quiet import quiet
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import checkpoint

BASE, TUNED = "base", "tuned"
LOADING_SETTINGS = ("device", "quant_type", "double_quant", "compute_dtype", "revision", "offline")


@dataclass(frozen=True)
class Origin:
    """What was asked for. `adapter` is a run's `adapter/` or one of its checkpoints, None for a plain model."""

    config: TrainingConfig
    run: RunFolder | None = None
    adapter: Path | None = None

    @property
    def step(self) -> int | None:
        """The optimizer step of a checkpoint's adapter; None for a finished run's."""
        if self.adapter is None or not self.adapter.name.startswith("step-"):
            return None
        return int(self.adapter.name.removeprefix("step-"))


@dataclass(frozen=True)
class ChatModel:
    """A loaded model and how to talk to it. `facts` is what SessionReady tells."""

    model: Any
    tokenizer: Any
    origin: Origin
    max_positions: int | None
    facts: Mapping[str, Any]

    @property
    def sides(self) -> tuple[str, ...]:
        return (BASE,) if self.origin.adapter is None else (BASE, TUNED)

    @contextlib.contextmanager
    def speaking(self, side: str, strength: float = 1.0) -> Iterator[Any]:
        """The model as one side hears it: `base` without the adapter, `tuned` with its scaling times `strength`."""
        if side == TUNED and strength != 1.0:
            with rescale_adapter_scale(self.model, strength):
                yield self.model
        elif side == BASE and self.origin.adapter is not None:
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self.model


def find_origin(job: ChatJob) -> Origin:
    """The run or the model that `job.source` names.

    Raises:
        EngineError: the run has neither an adapter nor a checkpoint, or a setting is unknown.
    """
    settings = {k: v for k, v in job.settings.items() if k in LOADING_SETTINGS}
    try:
        run = RunFolder.open(job.source)
    except EngineError as error:
        if error.code != "run.missing":
            raise
        return Origin(_plain_config(job.source, settings))
    config = run.job()
    if "device" in settings:
        config = replace(config, model=replace(config.model, device=str(settings["device"])))
    return Origin(config, run, _adapter_of(run))


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
    model = _with_adapter(loaded.model, origin, base)
    model.eval()
    found = spec.facts_of_folder(base, config.model.name)
    facts = _facts(origin, loaded, found)
    return ChatModel(model, loaded.tokenizer, origin, found.max_positions, facts)


def _plain_config(name: str, settings: Mapping[str, Any]) -> TrainingConfig:
    model = ModelSettings(
        name=name,
        revision=settings.get("revision"),
        device=str(settings.get("device", "auto")),
        offline=bool(settings.get("offline", False)),
    )
    wanted = {k: settings[k] for k in ("quant_type", "double_quant", "compute_dtype") if k in settings}
    return TrainingConfig(model=model, quantization=QuantizationSettings(**wanted))


def _adapter_of(run: RunFolder) -> Path:
    """The finished adapter, else the best checkpoint, else the newest."""
    if (run.adapter_dir / "adapter_model.safetensors").is_file():
        return run.adapter_dir
    complete = {path.name: path for path in run.checkpoints()}
    best = complete.get(f"step-{run.record().get('best_step')}")
    chosen = best or checkpoint.newest(run)
    if chosen is None:
        raise EngineError(
            "chat.no_adapter",
            f"run {run.run_id!r} has neither an adapter nor a checkpoint yet (it is {run.state()})",
            "train it further, or talk to its base model",
        )
    return chosen


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


def _with_adapter(base: Any, origin: Origin, base_path: Path) -> Any:
    if origin.adapter is None:
        return base
    if origin.step is None:
        with quiet():
            return PeftModel.from_pretrained(base, str(origin.adapter), autocast_adapter_dtype=False)
    # The checkpoint brings the values; how they began (LoftQ takes long) does not matter any more.
    model, _ = adapters.attach(base, replace(origin.config.lora, init="default"), base_path=base_path)
    checkpoint.load_adapter(origin.adapter, model)
    return model


def _facts(origin: Origin, loaded: loading.LoadedModel, found: spec.ModelFacts) -> dict[str, Any]:
    config, run = origin.config, origin.run
    template = choose(loaded.tokenizer, config.data.chat_template)
    return {
        "model": config.model.name,
        "run_id": run.run_id if run else None,
        "run_dir": str(run.path) if run else None,
        "has_adapter": origin.adapter is not None,
        "sides": [BASE, TUNED] if origin.adapter is not None else [BASE],
        "adapter_step": origin.step,
        "variant": adapters.variant_name(config.lora) if origin.adapter is not None else None,
        "can_scale_adapter": origin.adapter is not None and not config.lora.dora,
        "device": loaded.report.device,
        "compute_dtype": loaded.report.compute_dtype,
        "quant_type": loaded.report.quant_type,
        "is_double_quant": loaded.report.is_double_quant,
        "chat_template": template.name,
        "chat_template_reason": template.why,
        "system_prompt": config.data.system_prompt,
        "max_positions": found.max_positions,
    }


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
