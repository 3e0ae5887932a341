"""What a replay asks of whom, and which of it runs keep already. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.evaluate import answers
from qlora_engine.evaluate.answers import StoredAnswer
from qlora_engine.evaluate.drawing import GenerationSettings
from qlora_engine.evaluate.origin import BASE, BaseKey, Origin, base_key, origin_of_run
from qlora_engine.jobs import ReplayJob
from qlora_engine.runs.record import RunFolder

SETTINGS = tuple(field.name for field in fields(GenerationSettings))


@dataclass(frozen=True, eq=False)
class Column:
    """Who answers. `side`: the run's folder, or `base` and the hash of its weights; `origin` keeps the answers."""

    side: str
    origin: Origin
    key: BaseKey
    is_base: bool

    @property
    def run(self) -> RunFolder:
        assert self.origin.run is not None
        return self.origin.run

    def to_json(self) -> dict[str, Any]:
        return {
            "side": self.side,
            "is_base": self.is_base,
            "run_id": None if self.is_base else self.run.run_id,
            "run_dir": None if self.is_base else str(self.run.path),
            "model": self.origin.config.model.name,
        }


@dataclass(frozen=True, eq=False)
class Cell:
    """One prompt for one column; `place` is the prompt's."""

    place: int
    prompt: str
    column: Column
    key: str


@dataclass(frozen=True)
class Plan:
    """`known`: kept answers by the key of their cell."""

    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    known: dict[str, StoredAnswer]
    settings: GenerationSettings


def plan_of(job: ReplayJob) -> Plan:
    """Raises EngineError when a run is not there or has nothing that could answer, or a setting is unknown."""
    for name in job.settings:
        if name not in (*SETTINGS, "device"):
            raise EngineError(
                "chat.setting", f"an answer has no setting {name!r}", did_you_mean(str(name), SETTINGS)
            )
    settings = GenerationSettings(**{k: v for k, v in job.settings.items() if k != "device"})
    columns = columns_of(job)
    cells = _cells(job.prompts, columns, settings)
    return Plan(tuple(columns), tuple(cells), {} if job.again else _known(columns), settings)


def columns_of(job: ReplayJob) -> list[Column]:
    """The base of each group of runs that share one, then the runs, in the order asked for.

    Raises:
        EngineError: a run is not there, or has nothing that could answer.
    """
    if not job.run_dirs or not job.prompts:
        raise EngineError("replay.empty", "there is nothing to ask", "choose a run and a prompt set")
    runs = []
    for run_dir in dict.fromkeys(job.run_dirs):
        run = RunFolder.open(run_dir)
        origin, key = origin_of_run(run, job.settings.get("device")), base_key(run.record())
        if key is None:
            raise EngineError(
                "run.unreadable", f"the record of run {run.run_id!r} names no base", "train it again"
            )
        runs.append(Column(str(run.path), origin, key, is_base=False))
    groups = {column.key: column for column in reversed(runs)}
    bases = [
        Column(BASE if len(groups) == 1 else f"{BASE} {key.hash_text}", first.origin, key, is_base=True)
        for key, first in reversed(groups.items())
    ]
    return [*(bases if job.with_base else ()), *runs]


def _cells(prompts: Sequence[str], columns: Sequence[Column], settings: GenerationSettings) -> list[Cell]:
    """Prompt by prompt, so that the first row of the table is whole first."""
    speakers = {c.side: answers.speaker_of(c.origin, is_base=c.is_base) for c in columns}
    found = []
    for place, prompt in enumerate(prompts):
        for column in columns:
            messages = messages_of(prompt, column.origin)
            key = answers.key_of(speakers[column.side], messages, asdict(settings))
            found.append(Cell(place, prompt, column, key))
    return found


def messages_of(prompt: str, origin: Origin) -> list[dict[str, str]]:
    system = origin.config.data.system_prompt
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": prompt}]


def _known(columns: Sequence[Column]) -> dict[str, StoredAnswer]:
    found: dict[str, StoredAnswer] = {}
    for column in columns:
        found |= answers.read(column.run)
    return found
