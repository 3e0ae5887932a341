"""A whole run with settings of a test, and what a reader of it can measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from qlora_engine.events import (
    CheckpointSaved,
    DatasetPrepared,
    EndingsCounted,
    EvaluationFinished,
    Event,
    ModelLoaded,
    Noticed,
    SampleAnswered,
    StepFinished,
)
from qlora_engine.runs.record import RunFolder
from tests.engine.training.conftest import MakeConfig
from tests.support import tiny_runs


@dataclass(frozen=True)
class Outcome:
    """A whole run, and what a reader of it can measure."""

    events: list[Event] = field(repr=False)

    def one(self, kind: type[Any]) -> Any:
        (found,) = tiny_runs.of(self.events, kind)
        return found

    @cached_property
    def folder(self) -> RunFolder:
        return RunFolder(tiny_runs.run_dir(self.events))

    @property
    def losses(self) -> list[float]:
        return tiny_runs.losses(self.events)

    @property
    def rates(self) -> list[float]:
        return [e.learning_rate for e in tiny_runs.of(self.events, StepFinished)]

    @property
    def norms(self) -> list[float | None]:
        return [e.grad_norm for e in tiny_runs.of(self.events, StepFinished)]

    @property
    def loaded(self) -> Any:
        return self.one(ModelLoaded).report

    @property
    def data(self) -> Any:
        return self.one(DatasetPrepared).report

    @property
    def evaluations(self) -> list[EvaluationFinished]:
        return tiny_runs.of(self.events, EvaluationFinished)

    @property
    def samples(self) -> list[tuple[int, str, int]]:
        return [(e.step, e.prompt, e.tokens) for e in tiny_runs.of(self.events, SampleAnswered)]

    @property
    def endings(self) -> list[tuple[int, int]]:
        return [(e.asked, e.limit) for e in tiny_runs.of(self.events, EndingsCounted)]

    def notices(self, code: str) -> list[Noticed]:
        return [e for e in tiny_runs.of(self.events, Noticed) if e.code == code]

    @property
    def checkpoints(self) -> list[tuple[int, str]]:
        return [(e.step, e.reason) for e in tiny_runs.of(self.events, CheckpointSaved)]

    @property
    def kept(self) -> list[str]:
        return [path.name for path in self.folder.checkpoints()]

    @property
    def fast(self) -> dict[str, Any]:
        """What the fast paths were found to be on the loaded model; test_fast_paths.py counts what each does."""
        return dict(self.folder.record()["fast_paths"])

    @property
    def peak(self) -> int:
        return int(self.folder.record()["measured_peak_bytes"])


def run(make_config: MakeConfig, settings: dict[str, Any]) -> Outcome:
    return Outcome(
        tiny_runs.train(make_config(**{path.replace(".", "__"): v for path, v in settings.items()}))
    )


def trained_tokens(make_config: MakeConfig, folder: Path, row: dict[str, Any], **settings: Any) -> int:
    """Trained tokens of a run over rows like `row`."""
    from tests.support.tiny import write_rows

    path = str(write_rows(folder / "rows.jsonl", [{**row, "instruction": f"Say {n}"} for n in range(12)]))
    changes = {f"data.{key}": value for key, value in settings.items()}
    return int(run(make_config, {"data.path": path, **changes}).data["trained_tokens"])
