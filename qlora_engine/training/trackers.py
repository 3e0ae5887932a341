"""A run's numbers as other programs show them: TensorBoard files always, a tracker's own client where one is chosen.

A client is imported only when it is chosen. One that is not installed refuses the run before anything is loaded; one that
fails later is said once, and the run goes on without it. Imports no ML stack by itself.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.events import (
    TERMINAL,
    EvaluationFinished,
    Event,
    Noticed,
    RunFailed,
    RunFinished,
    RunStarted,
    StepFinished,
)
from qlora_engine.runs.record import RunFolder

log = logging.getLogger(__name__)
FOLDER = "tensorboard"
STEP_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "epoch": "train/epoch",
    "tokens_per_second": "train/tokens_per_second",
    "peak_memory_bytes": "memory/peak_bytes",
}
HELD_OUT = "held_out/loss"
FLUSH_SECONDS = 10.0
LONGEST_PARAM = 500
"""Characters; MLflow takes no more."""


class Tracker(Protocol):
    """Where numbers go. Any method may raise anything."""

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def close(self, state: str) -> None:
        """`state`: finished, stopped or failed."""
        ...


Opener = Callable[[TrainingConfig, RunFolder, RunStarted], Tracker]


def tracked(run: Iterator[Event], config: TrainingConfig, folder: RunFolder) -> Iterator[Event]:
    """The events of `run`, their numbers sent to the trackers before they are passed on; what fails there is among them.

    Raises:
        EngineError: the chosen tracker is not installed. Everything that `run` raises.
    """
    openers: dict[str, Opener] = {"TensorBoard": TensorBoard}
    if config.output.tracker != "none":
        openers[config.output.tracker] = _client(config.output.tracker)
    open_ones: dict[str, Tracker] = {}
    state = "failed"
    try:
        for event in run:
            if isinstance(event, RunStarted):
                yield event
                yield from _opened(openers, open_ones, config, folder, event)
                continue
            if isinstance(event, TERMINAL):
                state = _state(event)
                yield from _closed(open_ones, state)
            else:
                yield from _logged(open_ones, event)
            yield event
    except Cancelled:
        state = "stopped"
        raise
    finally:
        for _ in _closed(open_ones, state):
            pass  # the run has failed, which is the word that counts


def _opened(
    openers: Mapping[str, Opener],
    open_ones: dict[str, Tracker],
    config: TrainingConfig,
    folder: RunFolder,
    started: RunStarted,
) -> Iterator[Event]:
    for name, make in openers.items():
        try:
            open_ones[name] = make(config, folder, started)
        except Exception as error:  # noqa: BLE001 - whatever another program's client does, training is worth more
            yield _failed(name, error)


def _logged(open_ones: dict[str, Tracker], event: Event) -> Iterator[Event]:
    numbers, step = numbers_of(event)
    if not numbers:
        return
    for name, tracker in list(open_ones.items()):
        try:
            tracker.log(numbers, step)
        except Exception as error:  # noqa: BLE001 - as above
            del open_ones[name]
            yield _failed(name, error)


def _closed(open_ones: dict[str, Tracker], state: str) -> Iterator[Event]:
    for name in list(open_ones):
        try:
            open_ones.pop(name).close(state)
        except Exception as error:  # noqa: BLE001 - as above
            yield _failed(name, error)


def _failed(name: str, error: Exception) -> Noticed:
    log.warning("tracker %s failed", name, exc_info=error)
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return Noticed(
        "warning",
        "tracker.failed",
        f"{name} takes no more of this run: {reason}",
        "the run goes on without it",
    )


def _state(event: Event) -> str:
    if isinstance(event, RunFinished):
        return "finished"
    return "failed" if isinstance(event, RunFailed) else "stopped"


def numbers_of(event: Event) -> tuple[dict[str, float], int]:
    """What is sent of an event, by name, and its step; nothing of most events."""
    if isinstance(event, StepFinished):
        told = {name: getattr(event, field) for field, name in STEP_NAMES.items()}
        return {name: float(value) for name, value in told.items() if value is not None}, event.step
    if isinstance(event, EvaluationFinished):
        return {HELD_OUT: event.loss}, event.step
    return {}, 0


class TensorBoard:
    """Event files in the run's folder. A resumed run writes one more, which takes back the steps that were lost."""

    def __init__(self, config: TrainingConfig, folder: RunFolder, started: RunStarted) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        place = folder.path / FOLDER
        place.mkdir(mode=0o700, exist_ok=True)
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventsWriter(str(place / "events"), f".{os.getpid()}")
        self._flushed = 0.0
        for path in place.iterdir():
            path.chmod(0o600)
        if started.is_resumed:
            restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.write_event(
                self._event(wall_time=time.time(), step=started.from_step + 1, session_log=restart)
            )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._writer.write_event(
            self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        )
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:  # which waits for the disk
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self, state: str) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases. A resumed run goes on under its id, against its own steps."""

    def __init__(self, config: TrainingConfig, folder: RunFolder, started: RunStarted) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=config.output.tracker_project, id=folder.run_id, name=folder.run_id, resume="allow",
            dir=str(folder.path), config=config_io.to_dict(config), settings=wandb.Settings(console="off"),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})

    def close(self, state: str) -> None:
        self._run.finish(exit_code=1 if state == "failed" else 0)


class Mlflow:
    """MLflow. Its own id of the run is kept in the record, so that a resumed run goes on there."""

    def __init__(self, config: TrainingConfig, folder: RunFolder, started: RunStarted) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment(config.output.tracker_project)
        known = folder.record().get("mlflow_run_id")
        run = (
            self._mlflow.start_run(run_id=known) if known else self._mlflow.start_run(run_name=folder.run_id)
        )
        if not known:
            folder.update(mlflow_run_id=run.info.run_id)
            self._mlflow.log_params(_params(config))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step)

    def close(self, state: str) -> None:
        self._mlflow.end_run(status={"finished": "FINISHED", "stopped": "KILLED"}.get(state, "FAILED"))


class Trackio:
    """Trackio. A resumed run goes on under its name."""

    def __init__(self, config: TrainingConfig, folder: RunFolder, started: RunStarted) -> None:
        trackio = importlib.import_module("trackio")
        self._run = trackio.init(
            project=config.output.tracker_project,
            name=folder.run_id,
            resume="allow",
            config=config_io.to_dict(config),
        )
        self._trackio = trackio

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(numbers), step=step)

    def close(self, state: str) -> None:
        self._trackio.finish()


CLIENTS: dict[str, Opener] = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}


def _client(name: str) -> Opener:
    """The opener of the chosen tracker, its program imported.

    Raises:
        EngineError: it is not installed, or cannot be imported.
    """
    try:
        importlib.import_module(name)
    except Exception as error:
        raise EngineError(
            "tracker.missing",
            f"the tracker {name} cannot be used: {error}",
            f"install it with `pip install {name}`, or set output.tracker to none",
        ) from error
    return CLIENTS[name]


def _params(config: TrainingConfig) -> dict[str, str]:
    tables = config_io.to_dict(config)
    return {
        f"{table}.{name}": str(value)[:LONGEST_PARAM]
        for table, values in tables.items()
        if isinstance(values, Mapping)
        for name, value in values.items()
    }
