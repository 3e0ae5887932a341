"""The jobs an engine can be given, and which function carries each out.

A job is a frozen dataclass of JSON-ready fields, so that it crosses a process boundary. Its handler is a
generator `handler(job, control) -> Iterator[Event]`, imported only when it runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from qlora_engine import parsing
from qlora_engine.control import Control
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.events import TERMINAL, Event, RunFailed, RunStopped
from qlora_engine.out_of_memory import is_out_of_memory, owner


@dataclass(frozen=True)
class Job:
    """Base of all jobs."""


@dataclass(frozen=True)
class TrainJob(Job):
    """A new run. `config` is the job file as nested plain values (config_io.to_dict).

    `run_dir`: the folder of a planned run (runs.plans), which is started there; empty: a folder of its own.
    `detached`: it goes on when whoever started it is gone, and takes commands from its folder (runs.commands).
    """

    config: Mapping[str, Any]
    run_dir: str = ""
    detached: bool = False


@dataclass(frozen=True)
class ResumeJob(Job):
    """Go on with a stopped or crashed run from its newest good checkpoint.

    `accept` names what may differ from what the checkpoint was made with: paths of settings, `base`, `data`, `template`,
    `owner` (it ran on another computer and is over), or `all`. `detached` as in TrainJob.
    """

    run_dir: str
    accept: tuple[str, ...] = ()
    detached: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "accept", tuple(self.accept))  # JSON knows lists only


@dataclass(frozen=True)
class PrepareModelJob(Job):
    """Download or convert a model so that it can be loaded; result: {"path", "facts"}."""

    name: str
    revision: str | None = None
    offline: bool = False


WORST_ROWS = ("longest", "most_cut", "fewest_trained", "most_unknown")


@dataclass(frozen=True)
class DataReportJob(Job):
    """Read and tokenize the data as a run would; result: {"report", "rows": shown rows, "asked"}.

    `ask` wants single rows: {"numbers": [...]}, {"first": number, "count": n}, {"worst": kind}, {"search": text}, or
    {"write_clean": path}; `asked` has the answers under the same names (data.inspection).
    """

    config: Mapping[str, Any]
    show_rows: int = 5
    ask: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataDeskJob(Job):
    """A long-lived look at data, so that a page of rows costs no start of a process.

    Commands: {"command": "data", "request": int, "topic": str, "config": {...}, "ask": {...}}, with the topics of
    data.desk, and {"command": "stop"}. Each is answered by one DataAnswered, unless a newer one of its topic came first.
    """


@dataclass(frozen=True)
class ChatJob(Job):
    """A long-lived chat: loads once, then answers commands until stopped.

    `source` is a run folder or a model name. Commands: {"command": "ask", "request": int, "messages": [...],
    "sides": ["base", "tuned"], "settings": {...}}, {"command": "add_adapter", "run_dir": str}, {"command":
    "remove_adapter", "side": str}, {"command": "interrupt"}, {"command": "stop"}.
    """

    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReplayJob(Job):
    """Ask every prompt of every run, and of the base under them; what a run keeps is not asked again (`again`: it is).

    `settings`: fields of evaluate.generate.GenerationSettings, and `device`. Each answer comes as AnswerFinished, its
    `request` the prompt's place and its `side` the column's; result: {"columns", "answers", "asked", "kept"}.
    """

    run_dirs: Sequence[str]
    prompts: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    with_base: bool = True
    again: bool = False


@dataclass(frozen=True)
class PredictionsJob(Job):
    """Score every held-out row of a run and answer its `rows` best and worst, and the first `same` of all, which are those of
    any run that held out the same rows; result: evaluate.predictions' document."""

    run_dir: str
    rows: int = 10
    device: str | None = None
    same: int = 0


@dataclass(frozen=True)
class ExportJob(Job):
    """Write a run's result in another form; result: {"path", "checks", "bytes"}."""

    run_dir: str
    format: str
    out: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PushJob(Job):
    """Upload an export to `repository` (owner/name); result: {"repository", "url", "is_private", "files", "bytes"}."""

    folder: str
    repository: str
    is_public: bool = False
    allow_unproven: bool = False


@dataclass(frozen=True)
class RehearseJob(Job):
    """Trace one symbolic QLoRA step and count its memory; result: the estimate as JSON."""

    config: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class QualityJob(Job):
    """Measure what 4 bits cost on a model, weight by weight and on held-out rows; `options` of
    quantization.variants.Options; result: quantization.report.QualityReport as JSON."""

    config: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


Handler = Callable[[Any, Control], Iterator[Event]]

_HANDLERS: dict[type[Job], str] = {
    TrainJob: "qlora_engine.training.recipe:train",
    ResumeJob: "qlora_engine.training.recipe:resume",
    PrepareModelJob: "qlora_engine.models.prepare:prepare_job",
    DataReportJob: "qlora_engine.data.reporting:report_job",
    DataDeskJob: "qlora_engine.data.desk:desk_job",
    ChatJob: "qlora_engine.evaluate.chat:chat_job",
    ReplayJob: "qlora_engine.evaluate.replay:replay_job",
    PredictionsJob: "qlora_engine.evaluate.predictions:predictions_job",
    ExportJob: "qlora_engine.export.run:export_job",
    PushJob: "qlora_engine.export.push:push_job",
    RehearseJob: "qlora_engine.memory.rehearsal:rehearse_job",
    QualityJob: "qlora_engine.quantization.quality:quality_job",
}


def handler_of(job: Job) -> Handler:
    """The generator function that carries `job` out; imports its module."""
    module, name = _HANDLERS[type(job)].split(":")
    return cast(Handler, getattr(importlib.import_module(module), name))


def carry_out(job: Job, control: Control) -> Iterator[Event]:
    """Run a job to its end: its events, then exactly one terminal event, whatever happens."""
    try:
        for event in handler_of(job)(job, control):
            yield event
            if isinstance(event, TERMINAL):
                return
        yield RunFailed("engine.no_end", "The engine ended without a result", "report this as a bug")
    except Cancelled:
        yield RunStopped("stopped by the user", is_resumable=False, result={})
    except EngineError as error:
        yield RunFailed(
            error.code, error.message, error.hint, is_input_error=error.is_input_error, accept=error.accept
        )
    except Exception as error:
        if is_out_of_memory(error):
            code, whose = owner(error)
            yield RunFailed(
                code,
                f"{whose[0].upper()}{whose[1:]} ran out of memory",
                "close other programs or use a smaller model",
            )
            return
        logging.getLogger(__name__).exception("%s failed", type(job).__name__)
        yield RunFailed(
            "engine.bug",
            f"The engine failed unexpectedly: {type(error).__name__}: {_first_line(error)}",
            "this is a bug; the log has the details",
            log_tail=traceback.format_exc(),
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"


def encode(job: Job) -> str:
    """One line of JSON."""
    return json.dumps({"job": type(job).__name__, **dataclasses.asdict(job)}, ensure_ascii=False)


def decode(line: str) -> Job:
    """The job of a line written by `encode`.

    Raises:
        ValueError: not a job.
    """
    payload = parsing.from_json(line)
    kinds = {cls.__name__: cls for cls in _HANDLERS}
    if not isinstance(payload, dict) or payload.get("job") not in kinds:
        raise ValueError(f"not a job: {line[:80]!r}")
    cls = kinds[payload.pop("job")]
    return cls(**payload)
