"""The events an engine job emits, and their JSON form.

Every event is a frozen dataclass of JSON-ready fields. A job yields any number of them and ends with
exactly one terminal event: `RunFinished`, `RunStopped` or `RunFailed` (`RunLeft` where the reader goes first). Units are in the names; unknown
is None.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qlora_engine import parsing

JSON: TypeAlias = Any


@dataclass(frozen=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True)
class RunStarted(Event):
    """A training run has its folder and its engine process."""

    run_id: str
    run_dir: str
    pid: int
    is_resumed: bool
    unix_time: float
    from_step: int = 0


@dataclass(frozen=True)
class PhaseChanged(Event):
    """`phase` is one of: preparing, downloading, loading, tokenizing, training, evaluating, saving,
    measuring, exporting, generating, verifying, uploading. `text` is the sentence a person reads."""

    phase: str
    text: str


@dataclass(frozen=True)
class Progressed(Event):
    """Progress inside a phase; `total` is None while unknown. `unit`: bytes, rows, tensors, tokens, steps."""

    phase: str
    done: int
    total: int | None
    unit: str


@dataclass(frozen=True)
class ModelLoaded(Event):
    """What was really built, asserted on the loaded tensors. `report` is models.loading.LoadReport as JSON."""

    report: Mapping[str, JSON]


@dataclass(frozen=True)
class AdaptersAttached(Event):
    trainable_parameters: int
    adapter_bytes: int
    target_modules: tuple[str, ...]
    dtype: str
    variant: str


@dataclass(frozen=True)
class DatasetPrepared(Event):
    """`report` is data.report.DataReport as JSON: rows, dropped rows with reasons, token counts, hashes."""

    report: Mapping[str, JSON]


@dataclass(frozen=True)
class OptimizerBuilt(Event):
    """What bitsandbytes or torch really built. `why_not_paged` explains a "paged" optimizer that pages nothing."""

    requested: str
    class_name: str
    state_bytes: int
    paged_bytes: int
    pageable_bytes: int
    eight_bit_bytes: int
    why_not_paged: str | None


@dataclass(frozen=True)
class PlanMade(Event):
    """What the run will do. `estimate` is the memory estimate as JSON, or None."""

    total_steps: int
    steps_per_epoch: int
    micro_batch: int
    accumulation: int
    train_rows: int
    held_out_rows: int
    tokens_per_epoch: int
    seq_len: int
    device: str
    compute_dtype: str
    predicted_peak_bytes: int | None
    estimate: Mapping[str, JSON] | None


@dataclass(frozen=True)
class StepFinished(Event):
    """One optimizer step. `loss` is the sum over trained tokens divided by their number in the whole step."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens: int
    trained_tokens: int
    step_seconds: float
    tokens_per_second: float
    eta_seconds: float | None
    peak_memory_bytes: int | None
    unix_time: float


@dataclass(frozen=True)
class EvaluationFinished(Event):
    """Held-out loss: summed negative log-likelihood over trained tokens divided by their number."""

    step: int
    loss: float
    trained_tokens: int
    seconds: float
    is_best: bool
    unix_time: float


@dataclass(frozen=True)
class SampleAnswered(Event):
    """A fixed prompt answered at `step` (0: before training)."""

    step: int
    prompt: str
    answer: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class EndingsCounted(Event):
    """Held-out questions answered greedily by the adapter of `step`, up to `limit` tokens each: `ended` of the `asked`
    ended by themselves. `taught`: rows among them whose own answer ends with a token that ends a turn, and trains it."""

    step: int
    asked: int
    ended: int
    taught: int
    limit: int
    seconds: float


@dataclass(frozen=True)
class MemorySampled(Event):
    """One reading of monitor.sampler, as JSON."""

    sample: Mapping[str, JSON]


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """`reason`: steps, time, stop, pause, finish, orphaned, requested."""

    step: int
    path: str
    total_bytes: int
    reason: str
    seconds: float
    unix_time: float


@dataclass(frozen=True)
class Noticed(Event):
    """Something the person should know, in words. `level`: info or warning."""

    level: str
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Paused(Event):
    step: int


@dataclass(frozen=True)
class Continued(Event):
    step: int


@dataclass(frozen=True)
class TokenStreamed(Event):
    """A piece of an answer. `side`: base, tuned, or a run put beside them; `request` is the number the asker gave."""

    request: int
    side: str
    text: str


@dataclass(frozen=True)
class AnswerFinished(Event):
    request: int
    side: str
    text: str
    tokens: int
    seconds: float
    is_complete: bool
    """True when the model ended its turn by itself (an end token), False when cut by length or by Stop."""
    calls: tuple[Mapping[str, JSON], ...] | None = ()
    """Of the tools it was given: each `name` and `arguments`; None where this template's way of calling is not known."""
    message: Mapping[str, JSON] = field(default_factory=dict)
    """The answer as a turn of later questions, thought and calls (`tool_calls`) told apart; empty where there is none."""


@dataclass(frozen=True)
class SessionReady(Event):
    """A long-lived job (chat) has loaded and takes commands. `facts` says what is loaded."""

    facts: Mapping[str, JSON]


@dataclass(frozen=True)
class SidesChanged(Event):
    """Adapters were put on the loaded base or taken off. `facts` are SessionReady's, anew."""

    facts: Mapping[str, JSON]


@dataclass(frozen=True)
class CheckFinished(Event):
    """One step of an export's proof. `passed` is None when it could not be run here, with the reason in `detail`."""

    name: str
    passed: bool | None
    detail: str
    numbers: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class DataAnswered(Event):
    """What a data desk was asked under `topic`; `error` is {"code", "message", "hint"} where there is no answer."""

    request: int
    topic: str
    answer: Mapping[str, JSON]
    error: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFinished(Event):
    """Terminal: the job did all it was asked. `result` depends on the job."""

    result: Mapping[str, JSON]


@dataclass(frozen=True)
class RunStopped(Event):
    """Terminal: the person stopped it. `is_resumable`: a checkpoint holds all work done."""

    reason: str
    is_resumable: bool
    result: Mapping[str, JSON]


@dataclass(frozen=True)
class RunFailed(Event):
    """Terminal: it failed. `exit_code` is the engine process's, None when it did not die. `accept`: a ResumeJob that accepts
    these goes on all the same, as `message` says with what consequence."""

    code: str
    message: str
    hint: str
    exit_code: int | None = None
    log_tail: str = ""
    is_input_error: bool = False
    accept: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunLeft(Event):
    """Terminal for whoever reads, not for the run: it goes on without this reader, who asked for that."""

    run_dir: str


TERMINAL = (RunFinished, RunStopped, RunFailed, RunLeft)
EVENT_TYPES: dict[str, type[Event]] = {cls.__name__: cls for cls in Event.__subclasses__()}


def encode(event: Event) -> str:
    """One line of JSON, without newline. NaN and infinities become null: JSON has none."""
    payload: dict[str, JSON] = {"event": type(event).__name__}
    payload.update({f.name: _plain(getattr(event, f.name)) for f in dataclasses.fields(event)})
    return json.dumps(payload, ensure_ascii=False, allow_nan=False)


def decode(line: str) -> Event:
    """The event of a line written by `encode`.

    Raises:
        ValueError: not JSON, not an object, an unknown event, or missing fields.
    """
    payload = parsing.from_json(line)
    if not isinstance(payload, dict) or payload.get("event") not in EVENT_TYPES:
        raise ValueError(f"not an event: {line[:80]!r}")
    cls = EVENT_TYPES[payload.pop("event")]
    names = {f.name for f in dataclasses.fields(cls)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in payload.items() if k in names}
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error


def _plain(value: JSON) -> JSON:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
