"""What is spoken with: a run's adapter or a plain model, and whether two of them stand on one base. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_engine.config import ModelSettings, QuantizationSettings, TrainingConfig
from qlora_engine.errors import EngineError
from qlora_engine.runs import stored
from qlora_engine.runs.record import RunFolder

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
class BaseKey:
    """Which base an adapter stands on: the hashes of its weight files and how they were quantized."""

    files: tuple[tuple[str, str], ...]
    quant_type: str
    is_double_quant: bool

    @property
    def quantization_text(self) -> str:
        return (
            f"{self.quant_type.upper()} {'with' if self.is_double_quant else 'without'} double quantization"
        )

    @property
    def hash_text(self) -> str:
        """One short hash over all files."""
        return hashlib.sha256(json.dumps(self.files).encode()).hexdigest()[:16]


def find_origin(source: str, settings: Mapping[str, Any]) -> Origin:
    """The run or the model that `source` names.

    Raises:
        EngineError: the run has neither an adapter nor a checkpoint.
    """
    try:
        run = RunFolder.open(source)
    except EngineError as error:
        if error.code != "run.missing":
            raise
        return Origin(_plain_config(source, settings))
    return origin_of_run(run, settings.get("device"))


def origin_of_run(run: RunFolder, device: object = None) -> Origin:
    """The run's best adapter, on `device` if one is named.

    Raises:
        EngineError: it has neither an adapter nor a checkpoint.
    """
    config = run.job()
    if device:
        config = replace(config, model=replace(config.model, device=str(device)))
    return Origin(config, run, adapter_of(run))


def adapter_of(run: RunFolder) -> Path:
    """The finished adapter, else the best checkpoint, else the newest.

    Raises:
        EngineError: there is none yet.
    """
    if (run.adapter_dir / "adapter_model.safetensors").is_file():
        stored.require_adapter(run.path)
        return run.adapter_dir
    complete = {path.name: path for path in run.checkpoints() if stored.is_intact(path)}
    best = complete.get(f"step-{run.record().get('best_step')}")
    newest = next(reversed(complete.values()), None)
    if best is None and newest is None:
        raise EngineError(
            "chat.no_adapter",
            f"run {run.run_id!r} has neither an adapter nor a checkpoint yet (it is {run.state()})",
            "train it further, or talk to its base model",
        )
    return best or newest  # type: ignore[return-value]


def base_key(record: Mapping[str, Any]) -> BaseKey | None:
    """The base of a run as its `run.json` tells it; None for a run that ended before it had loaded one."""
    fingerprint = (record.get("model") or {}).get("fingerprint") or {}
    files = tuple(sorted((n, str(d)) for n, d in fingerprint.items() if n.endswith(".safetensors")))
    report = record.get("load_report") or {}
    if not files or "quant_type" not in report:
        return None
    return BaseKey(files, str(report["quant_type"]), bool(report.get("is_double_quant")))


def why_not_beside(loaded: BaseKey, other: BaseKey | None) -> str:
    """Why an adapter of base `other` cannot be put on the `loaded` one, with both figures; empty when it can."""
    if other is None:
        return "it has not loaded a model yet"
    if loaded.files != other.files:
        return f"it was trained on another base: its weights have hash {other.hash_text}, the loaded ones {loaded.hash_text}"
    if loaded != other:
        return (
            f"it was trained on {other.quantization_text}, and the loaded base is {loaded.quantization_text}"
        )
    return ""


def _plain_config(name: str, settings: Mapping[str, Any]) -> TrainingConfig:
    model = ModelSettings(
        name=name,
        revision=settings.get("revision"),
        device=str(settings.get("device", "auto")),
        offline=bool(settings.get("offline", False)),
    )
    wanted = {k: settings[k] for k in ("quant_type", "double_quant", "compute_dtype") if k in settings}
    return TrainingConfig(model=model, quantization=QuantizationSettings(**wanted))
