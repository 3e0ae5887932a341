"""The `[checkpoint]` and `[output]` tables: what a run keeps, and where."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_engine.knobs import knob


@dataclass(frozen=True)
class CheckpointSettings:
    every_steps: int | None = knob(
        None,
        label="Save every",
        help="Steps between checkpoints. Empty: by time only.",
        unit="steps",
        lo=1,
        resume="safe",
    )
    every_minutes: float = knob(
        10.0,
        label="Save at least every",
        help="A checkpoint at least this often.",
        unit="minutes",
        lo=0,
        lo_open=True,
        hi=1440,
        resume="safe",
    )
    keep: int = knob(
        2,
        label="Checkpoints kept",
        help="Newest checkpoints kept, besides the best one.",
        lo=1,
        hi=100,
        resume="safe",
    )


@dataclass(frozen=True)
class OutputSettings:
    name: str | None = knob(
        None,
        label="Run name",
        help="Folder name of the run. Empty: model, data and time.",
        resume="safe",
    )
    runs_dir: str | None = knob(
        None,
        label="Runs folder",
        help="Where runs are kept. Empty: the program's own data folder.",
        resume="safe",
    )
    tracker: str = knob(
        "none",
        label="Tracker",
        help="Where the curves are sent besides the run's folder, with the tracker's own program and account. "
        "TensorBoard files are always written.",
        choices={"none": "None", "wandb": "Weights & Biases", "mlflow": "MLflow", "trackio": "Trackio"},
        is_expert=True,
        resume="safe",
    )
    tracker_project: str = knob(
        "qlora-studio",
        label="Tracker's project",
        help="Under which name the tracker keeps the runs together.",
        is_expert=True,
        resume="safe",
    )
    keep_awake: bool = knob(
        True,
        label="Keep the computer awake",
        help="The computer does not go to sleep by itself while the run trains.",
        is_expert=True,
        resume="safe",
    )
