"""What happens in a job, in the words of a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qlora_engine.cli import output
from qlora_engine.counting import counted
from qlora_engine.events import (
    CheckFinished,
    CheckpointSaved,
    Continued,
    EndingsCounted,
    EvaluationFinished,
    Event,
    ModelLoaded,
    Noticed,
    OptimizerBuilt,
    Paused,
    PhaseChanged,
    PlanMade,
    Progressed,
    RunStarted,
    SampleAnswered,
    StepFinished,
)
from qlora_engine.runs import endings

BAR_CELLS = 20
ROUTINE = ("training", "evaluating", "generating")
"""Phases that come round again and again; a log names each once."""
ANNOUNCED = {
    "converting": "Converting the model, once (up to half a minute for the starter)",
    "downloading": "Downloading the model",
}
"""Phases that begin without a word of their own."""
DEVICES = {"cpu": "the CPU"}


class Story:
    """The sentences of a run, without those that were said already."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def of(self, event: Event) -> list[str]:
        """What to tell of `event`; empty when there is nothing new."""
        match event:
            case Progressed():
                return self._once(event.phase, ANNOUNCED.get(event.phase))
            case PhaseChanged() if event.phase in ROUTINE:
                return self._once(event.phase, event.text)
        words = sentence(event)
        return [words] if words else []

    def _once(self, key: str, words: str | None) -> list[str]:
        if words is None or key in self._said:
            return []
        self._said.add(key)
        return [words]


def sentence(event: Event) -> str | None:
    """A happening in words; None for what is only a number moving."""
    told = _SENTENCES.get(type(event))
    return told(event) if told else None


def numbers(event: Event) -> str | None:
    """The figures of a step or of progress inside a phase."""
    match event:
        case StepFinished():
            left = "" if event.eta_seconds is None else f"  {output.duration(event.eta_seconds)} left"
            return (
                f"step {event.step}/{event.total_steps}  loss {event.loss:.4f}  "
                f"{event.tokens_per_second:.0f} tokens/s{left}"
            )
        case Progressed():
            return f"{event.phase}: {amount(event)}"
    return None


def bar(done: int, total: int | None) -> str:
    """`[#####...............] ` for a log; empty while the end is unknown."""
    if not total:
        return ""
    filled = BAR_CELLS * min(done, total) // total
    return f"[{'#' * filled}{'.' * (BAR_CELLS - filled)}] "


def amount(event: Progressed) -> str:
    if event.unit == "bytes":
        total = f" of {output.size(event.total)}" if event.total is not None else ""
        return f"{output.size(event.done)}{total}"
    total = f" of {event.total}" if event.total is not None else ""
    return f"{event.done}{total} {event.unit}"


def _loaded(event: ModelLoaded) -> str:
    report = event.report
    packed, constants = report.get("packed_bytes"), report.get("constants_bytes")
    nested = " with double quantization" if report.get("is_double_quant") else ""
    return (
        f"Loaded as {str(report.get('quant_type', '4-bit')).upper()}{nested}: {output.size(packed)} of 4-bit weights, "
        f"{output.size(constants)} of quantization constants, {output.size(report.get('unquantized_bytes'))} not quantized; "
        f"computing in {report.get('compute_dtype', output.NOT_AVAILABLE)} on {_device(report.get('device'))}"
    )


def _optimizer(event: OptimizerBuilt) -> str:
    paged = f", {output.size(event.paged_bytes)} of it paged" if event.paged_bytes else ""
    reason = f" ({event.why_not_paged})" if event.why_not_paged else ""
    return f"Optimizer {event.class_name} keeps {output.size(event.state_bytes)}{paged}{reason}"


def _plan(event: PlanMade) -> str:
    at_once = f", {event.micro_batch} at a time" if event.accumulation > 1 else ""
    rows = (
        f"Plan: {counted(event.total_steps, 'step')} of {counted(event.micro_batch * event.accumulation, 'row')}{at_once}; "
        f"{counted(event.train_rows, 'row')} to train on, {event.held_out_rows} held out, none longer than {event.seq_len} tokens"
    )
    return "\n".join(filter(None, (rows, _memory(event))))


def _memory(event: PlanMade) -> str:
    """The predicted peak, and what it would be with the other choice of double quantization."""
    sides = [
        (event.estimate or {}).get(name, {}).get("peak_bytes") for name in ("double_quant", "single_quant")
    ]
    if None not in sides:
        double, single = map(output.size, sides)
        return f"Memory needed at the peak: about {double} with double quantization, {single} without"
    if event.predicted_peak_bytes is not None:
        return f"Memory needed at the peak: about {output.size(event.predicted_peak_bytes)}"
    return ""


def _held_out(event: EvaluationFinished) -> str:
    if event.step == 0:
        return f"Held-out loss before training: {event.loss:.4f}"
    best = ", the lowest so far" if event.is_best else ""
    return f"Held-out loss at step {event.step}: {event.loss:.4f}{best}"


def _checkpoint(event: CheckpointSaved) -> str | None:
    """Nothing for the one that belongs to finishing: the adapter is saved at the same moment."""
    if event.reason == "finish":
        return None
    return f"Checkpoint of step {event.step} saved ({output.size(event.total_bytes)})"


def _device(name: object) -> str:
    return DEVICES.get(str(name), str(name)) if name else output.NOT_AVAILABLE


def _mark(passed: bool | None) -> str:
    return {True: "passed", False: "FAILED", None: "not run"}[passed]


def _started(event: RunStarted) -> str:
    return f"{'Going on with run' if event.is_resumed else 'Run'} {event.run_id}, kept in {event.run_dir}"


def _answered(event: SampleAnswered) -> str:
    when = f"at step {event.step}" if event.step else "before training"
    return f"Answer {when} to {event.prompt!r}: {' '.join(event.answer.split()) or '(nothing)'}"


def _noticed(event: Noticed) -> str:
    return f"{event.message}{'; ' + event.hint if event.hint else ''}"


def _proved(event: CheckFinished) -> str:
    return f"  {_mark(event.passed)}: {event.name} ({event.detail})"


_SENTENCES: dict[type[Event], Callable[[Any], str | None]] = {
    RunStarted: _started,
    PhaseChanged: lambda event: str(event.text),
    ModelLoaded: _loaded,
    OptimizerBuilt: _optimizer,
    PlanMade: _plan,
    EvaluationFinished: _held_out,
    SampleAnswered: _answered,
    EndingsCounted: endings.sentence,
    CheckpointSaved: _checkpoint,
    CheckFinished: _proved,
    Noticed: _noticed,
    Paused: lambda event: f"Paused at step {event.step}",
    Continued: lambda event: f"Going on from step {event.step}",
}
