"""Checkpoints: written aside, fsynced and renamed; safetensors and JSON only. Imports torch.

A checkpoint holds the adapter, the optimizer's state, the schedule, the random generators and the position in the
data: N steps straight equal N/2, a stop, a resume and N/2 (CORRECTNESS 24).
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qlora_engine import adapters, config_io
from qlora_engine.config import all_knobs
from qlora_engine.errors import EngineError
from qlora_engine.models.experts import lora
from qlora_engine.runs import sealed
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.sealed import sync_folder, write_aside, write_mark
from qlora_engine.runs.stored import (
    CHECKPOINT_MARK,
    JOB_FILE,
    RECORD_FILE,
    STATE_FILE,
    is_intact,
    step_folders,
    step_of,
)
from qlora_engine.training import optim
from qlora_engine.training.watchdog import require_finite

ADAPTER_FILE = "adapter.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
RNG_FILE = "rng.safetensors"
SCHEMA_VERSION = 1
DISK_MARGIN_BYTES = 64 * 1024**2
RATE_SETTINGS = frozenset(
    path for path, knob in all_knobs().items() if knob.resume in ("rate", "length", "optimizer")
)
GROUP_KEYS = {
    "training.beta1": ("betas",),
    "training.beta2": ("betas",),
    "training.epsilon": ("eps",),
    "training.weight_decay": ("weight_decay",),
    **dict.fromkeys(RATE_SETTINGS, ("lr", "initial_lr")),
}
"""What of an optimizer's group follows which setting."""


@dataclass(frozen=True)
class Found:
    """The newest good checkpoint (None: there is none), and the names of newer ones that are damaged."""

    path: Path | None
    damaged: tuple[str, ...]

    @property
    def step(self) -> int:
        return step_of(self.path) if self.path else 0


@dataclass
class TrainState:
    """Where the loop stands. Counted in optimizer steps; JSON-ready."""

    step: int = 0
    tokens_seen: int = 0
    elapsed_seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    evaluated_step: int | None = None
    micro_batch: int = 1
    reliefs: list[str] = field(default_factory=list)
    """What was changed besides, when memory ran out (training.recovery)."""
    applied_steps: int = 0
    """Steps that changed the weights."""
    loss_before: float | None = None
    last_held_out_loss: float | None = None


def save(
    folder: RunFolder,
    model: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    state: TrainState,
    scaler: Any,
    made: Mapping[str, Any],
) -> Path:
    """Write `checkpoints/step-N` as a whole or not at all; an existing complete one is replaced.

    Raises:
        EngineError: the disk is too full or not writable; nothing is lost, the last checkpoint still stands.
    """
    tensors, numbers = optim.export_state(optimizer)
    adapter = {name: t.detach().cpu().contiguous() for name, t in adapters.weights_of(model).items()}
    require_finite(adapter, f"the adapter of step {state.step}")
    needed = sum(t.nbytes for t in [*tensors.values(), *adapter.values()]) + DISK_MARGIN_BYTES
    require_disk(folder.path, needed, "a checkpoint")
    final = folder.checkpoints_dir / f"step-{state.step}"
    aside = folder.checkpoints_dir / f".step-{state.step}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        folder.checkpoints_dir.mkdir(mode=sealed.PRIVATE_FOLDER, exist_ok=True)
        aside.mkdir(mode=sealed.PRIVATE_FOLDER)
        save_file(adapter, aside / ADAPTER_FILE)
        save_file(tensors, aside / OPTIMIZER_FILE)
        save_file(_rng_tensors(), aside / RNG_FILE)
        _write_state(aside, _plain_state(state, optimizer, scheduler, numbers, scaler, made))
        _copy_description(folder, aside, made)
        _seal(aside)
        swap_in(aside, final)
        sync_folder(folder.checkpoints_dir)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise _not_written(state.step, error) from error
    return final


def rewrite_state(
    checkpoint: Path,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    state: TrainState,
    scaler: Any,
    made: Mapping[str, Any],
) -> None:
    """Bring the loop's position up to date in a checkpoint of this very step, whose tensors are the same.

    Raises:
        EngineError: the disk is full or not writable; the checkpoint stands as it was.
    """
    _, numbers = optim.export_state(optimizer)
    plain = _plain_state(state, optimizer, scheduler, numbers, scaler, made)
    try:
        _write_state(checkpoint, plain)
    except OSError as error:
        raise _not_written(state.step, error) from error


def find(folder: RunFolder) -> Found:
    """The newest checkpoint whose every byte is as it was written, and the damaged ones that are newer."""
    damaged: list[str] = []
    for path in reversed(step_folders(folder.path)):
        if is_intact(path) and _schema_of(path) <= SCHEMA_VERSION:
            return Found(path, tuple(damaged))
        damaged.append(path.name)
    return Found(None, tuple(damaged))


def made_with(checkpoint: Path) -> dict[str, Any]:
    """What it was made with (training.identity)."""
    return dict(sealed.read(checkpoint / STATE_FILE)["made_with"])


def discard(folder: RunFolder, names: Iterable[str]) -> None:
    """Delete checkpoints: damaged ones, so that none is taken for the newest again, and old ones."""
    for name in names:
        place = folder.checkpoints_dir / name
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def load(
    checkpoint: Path,
    model: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    scaler: Any,
    changed: Iterable[str] = (),
) -> TrainState:
    """Put model, optimizer, schedule and random generators back to where the checkpoint was written.

    `changed` are the settings that are no more those of the checkpoint: of them the present value counts.

    Raises:
        EngineError: it does not fit this model or these settings.
    """
    plain, changes = sealed.read(checkpoint / STATE_FILE), set(changed)
    load_adapter(checkpoint, model)
    try:
        if "training.optimizer" not in changes:
            _load_optimizer(checkpoint, optimizer, plain, changes)
        _load_schedule(scheduler, plain["scheduler"], is_another=bool(changes & RATE_SETTINGS))
        if plain["scaler"]:
            scaler.load_state_dict(plain["scaler"])
        state = TrainState(**plain["train_state"])
        _restore_rng(load_file(checkpoint / RNG_FILE), plain["python_rng"])
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise EngineError(
            "checkpoint.mismatch",
            f"the checkpoint {checkpoint.name} does not fit this run: {error}",
            "resume with the settings the run was started with",
        ) from error
    return state


def _load_optimizer(
    checkpoint: Path, optimizer: torch.optim.Optimizer, plain: Mapping[str, Any], changes: set[str]
) -> None:
    optim.import_state(optimizer, load_file(checkpoint / OPTIMIZER_FILE), plain["optimizer_numbers"])
    new = {key for path, keys in GROUP_KEYS.items() if path in changes for key in keys}
    for group, saved in zip(optimizer.param_groups, plain["param_groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key not in new})


def _load_schedule(scheduler: Any, saved: Mapping[str, Any], *, is_another: bool) -> None:
    """The schedule where it stood; another one at the same number of steps."""
    if not is_another:
        scheduler.load_state_dict(saved)
        return
    scheduler.last_epoch = int(saved["last_epoch"])
    groups = scheduler.optimizer.param_groups
    for group, peak, share in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = peak * share(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in groups]


def load_adapter(checkpoint: Path, model: Any) -> None:
    """Put the adapter's weights back, bit for bit.

    Raises:
        EngineError: a weight is missing or has another shape.
    """
    weights = load_file(checkpoint / ADAPTER_FILE)
    expected = {name: tensor.shape for name, tensor in adapters.weights_of(model).items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    if expected != found:
        other = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        raise EngineError(
            "checkpoint.mismatch",
            f"the adapter in {checkpoint.name} has other weights than this run: {other[0]} and {len(other) - 1} more",
            "resume with the settings the run was started with",
        )
    lora.put(model, weights)


def prune(folder: RunFolder, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one, and what dead writers left behind."""
    protected = {path.name for path in folder.checkpoints()[-keep:]} | {f"step-{best_step}"}
    discard(folder, (path.name for path in step_folders(folder.path) if path.name not in protected))
    for leftover in folder.checkpoints_dir.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def newest(folder: RunFolder) -> Path | None:
    """The newest complete checkpoint, or None."""
    complete = folder.checkpoints()
    return complete[-1] if complete else None


def total_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def require_disk(where: Path, needed_bytes: int, what: str) -> None:
    """Raise unless the disk of `where` has room.

    Raises:
        EngineError: it has not, with both numbers.
    """
    free = shutil.disk_usage(where).free
    if free < needed_bytes:
        raise EngineError(
            "disk.full",
            f"{what} needs {needed_bytes / 2**20:.0f} MiB, and the disk of {where} has {free / 2**20:.0f} MiB left",
            "free some space, or choose another folder with output.runs_dir",
        )


def _not_written(step: int, error: Exception) -> EngineError:
    reason = getattr(error, "strerror", None) or str(error)
    return EngineError(
        "disk.write",
        f"the checkpoint of step {step} could not be written: {reason}",
        "make room on the disk, then resume from the last checkpoint",
        is_input_error=False,
    )


def _plain_state(
    state: TrainState,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    numbers: Mapping[str, Any],
    scaler: Any,
    made: Mapping[str, Any],
) -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {
        "train_state": asdict(state),
        "optimizer_numbers": dict(numbers),
        "param_groups": groups,
        "scheduler": scheduler.state_dict(),
        "python_rng": [version, list(internal), gauss],
        "scaler": scaler.state_dict(),
        "made_with": dict(made),
    }


def _rng_tensors() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _restore_rng(tensors: Mapping[str, torch.Tensor], python_rng: list[Any]) -> None:
    torch.set_rng_state(tensors["cpu"])
    for name, value in tensors.items():
        if name.startswith("cuda.") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(value, int(name[5:]))
    version, internal, gauss = python_rng
    random.setstate((version, tuple(internal), gauss))


def _write_state(folder: Path, plain: Mapping[str, Any]) -> None:
    write_aside(folder / STATE_FILE, sealed.sealed(plain))


def _copy_description(folder: RunFolder, aside: Path, made: Mapping[str, Any]) -> None:
    """The run's record and job, so that neither is lost while a checkpoint is whole."""
    record = {k: v for k, v in folder.record().items() if k != "rebuilt_from"}
    write_aside(aside / RECORD_FILE, sealed.sealed(record))
    config_io.save(config_io.from_dict(made["settings"]), aside / JOB_FILE)


def _seal(folder: Path) -> None:
    """Write the mark that names every file with size and checksum; without it nothing is a checkpoint. The loop's
    position carries its own: `rewrite_state` replaces that file, as a whole or not at all."""
    names = sorted(path.name for path in folder.iterdir() if path.name != STATE_FILE)
    write_mark(folder, folder / CHECKPOINT_MARK, names, schema_version=SCHEMA_VERSION)


def _schema_of(checkpoint: Path) -> int:
    version = sealed.read(checkpoint / CHECKPOINT_MARK).get("schema_version")
    return version if isinstance(version, int) else SCHEMA_VERSION + 1


def swap_in(aside: Path, final: Path) -> None:
    """Rename `aside` to `final`; a damaged one that stands there is moved away first and deleted after."""
    replaced = final.with_name(f".{final.name}.replaced.tmp")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    aside.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)
