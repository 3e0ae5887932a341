"""Checkpoints: written aside, fsynced and renamed; safetensors and JSON only. Imports torch.

A checkpoint holds the adapter, the optimizer's state, the schedule, the random generators and the position in the
data: N steps straight equal N/2, a stop, a resume and N/2 (CORRECTNESS 24).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qlora_engine import parsing
from qlora_engine.errors import EngineError
from qlora_engine.runs.record import CHECKPOINT_MARK, RunFolder, is_complete, write_aside
from qlora_engine.training import optim

ADAPTER_FILE = "adapter.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
RNG_FILE = "rng.safetensors"
STATE_FILE = "state.json"
DISK_MARGIN_BYTES = 64 * 1024**2


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
    loss_before: float | None = None
    last_held_out_loss: float | None = None


def save(
    folder: RunFolder,
    model: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    state: TrainState,
    scaler: Any,
) -> Path:
    """Write `checkpoints/step-N` as a whole or not at all; an existing complete one is replaced.

    Raises:
        EngineError: the disk is too full or not writable; nothing is lost, the last checkpoint still stands.
    """
    tensors, numbers = optim.export_state(optimizer)
    adapter = {name: t.detach().cpu().contiguous() for name, t in get_peft_model_state_dict(model).items()}
    needed = sum(t.nbytes for t in [*tensors.values(), *adapter.values()]) + DISK_MARGIN_BYTES
    require_disk(folder.path, needed, "a checkpoint")
    final = folder.checkpoints_dir / f"step-{state.step}"
    aside = folder.checkpoints_dir / f".step-{state.step}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(adapter, aside / ADAPTER_FILE)
        save_file(tensors, aside / OPTIMIZER_FILE)
        save_file(_rng_tensors(), aside / RNG_FILE)
        _write_json(aside / STATE_FILE, _plain_state(state, optimizer, scheduler, numbers, scaler))
        _seal(aside)
        _swap_in(aside, final)
        _sync_folder(folder.checkpoints_dir)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise _not_written(state.step, error) from error
    return final


def rewrite_state(
    checkpoint: Path, optimizer: torch.optim.Optimizer, scheduler: Any, state: TrainState, scaler: Any
) -> None:
    """Bring the loop's position up to date in a checkpoint of this very step, whose tensors are the same.

    Raises:
        EngineError: the disk is full or not writable; the checkpoint stands as it was.
    """
    _, numbers = optim.export_state(optimizer)
    plain = _plain_state(state, optimizer, scheduler, numbers, scaler)
    try:
        write_aside(checkpoint / STATE_FILE, json.dumps(plain).encode())
    except OSError as error:
        raise _not_written(state.step, error) from error


def find(folder: RunFolder) -> Found:
    """The newest checkpoint whose every byte is as it was written, and the damaged ones that are newer."""
    damaged: list[str] = []
    for path in sorted(folder.checkpoints_dir.glob("step-*"), key=step_of, reverse=True):
        if step_of(path) < 0:
            continue
        if is_complete(path) and is_intact(path):
            return Found(path, tuple(damaged))
        damaged.append(path.name)
    return Found(None, tuple(damaged))


def discard(folder: RunFolder, names: Iterable[str]) -> None:
    """Delete damaged checkpoints, so that none is taken for the newest again."""
    for name in names:
        shutil.rmtree(folder.checkpoints_dir / name, ignore_errors=True)


def is_intact(checkpoint: Path) -> bool:
    """True when the files have the checksums of the checkpoint's mark and the loop's position can be read."""
    try:
        parsing.from_json((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        mark = parsing.from_json((checkpoint / CHECKPOINT_MARK).read_text(encoding="utf-8"))
        return all(_crc32(checkpoint / name) == crc for name, crc in mark["crc32"].items())
    except (OSError, ValueError, KeyError):
        return False


def step_of(checkpoint: Path) -> int:
    """The N of `step-N`; -1 for another name."""
    number = checkpoint.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def load(
    checkpoint: Path, model: Any, optimizer: torch.optim.Optimizer, scheduler: Any, scaler: Any
) -> TrainState:
    """Put model, optimizer, schedule and random generators back to where the checkpoint was written.

    Raises:
        EngineError: it does not fit this model or these settings.
    """
    plain = parsing.from_json((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    load_adapter(checkpoint, model)
    try:
        optim.import_state(optimizer, load_file(checkpoint / OPTIMIZER_FILE), plain["optimizer_numbers"])
    except ValueError as error:
        raise EngineError(
            "checkpoint.mismatch",
            f"the checkpoint {checkpoint.name} does not fit this run: {error}",
            "resume with the settings the run was started with",
        ) from error
    for group, saved in zip(optimizer.param_groups, plain["param_groups"], strict=True):
        group.update(saved)
    scheduler.load_state_dict(plain["scheduler"])
    if plain["scaler"]:
        scaler.load_state_dict(plain["scaler"])
    state = TrainState(**plain["train_state"])
    _restore_rng(load_file(checkpoint / RNG_FILE), plain["python_rng"])
    return state


def load_adapter(checkpoint: Path, model: Any) -> None:
    """Put the adapter's weights back, bit for bit.

    Raises:
        EngineError: a weight is missing or has another shape.
    """
    weights = load_file(checkpoint / ADAPTER_FILE)
    expected = {name: tensor.shape for name, tensor in get_peft_model_state_dict(model).items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    if expected != found:
        other = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        raise EngineError(
            "checkpoint.mismatch",
            f"the adapter in {checkpoint.name} has other weights than this run: {other[0]} and {len(other) - 1} more",
            "resume with the settings the run was started with",
        )
    set_peft_model_state_dict(model, weights)


def prune(folder: RunFolder, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one, and what dead writers left behind."""
    protected = {path.name for path in folder.checkpoints()[-keep:]} | {f"step-{best_step}"}
    for path in folder.checkpoints_dir.glob("step-*"):
        if path.name not in protected:
            shutil.rmtree(path, ignore_errors=True)
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


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _seal(folder: Path) -> None:
    """Fsync every file and write the mark that names them with sizes and checksums; without it nothing is a
    checkpoint. The loop's position is not in it: `rewrite_state` replaces that file, as a whole or not at all."""
    sizes, checksums = {}, {}
    for path in sorted(folder.iterdir()):
        _sync_file(path)
        if path.name != STATE_FILE:
            sizes[path.name] = path.stat().st_size
            checksums[path.name] = _crc32(path)
    _write_json(folder / CHECKPOINT_MARK, {"files": sizes, "crc32": checksums})
    _sync_file(folder / CHECKPOINT_MARK)
    _sync_folder(folder)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value


def _swap_in(aside: Path, final: Path) -> None:
    """Rename `aside` to `final`; a damaged one that stands there is moved away first and deleted after."""
    replaced = final.with_name(f".{final.name}.replaced.tmp")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    aside.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
