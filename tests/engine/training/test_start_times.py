"""What the start of a run took: every part counted once, said before the first step, kept with the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from bitsandbytes.backends.cpu import ops as cpu_kernels
from bitsandbytes.nn import Linear4bit
from transformers import LlamaForCausalLM

from qlora_engine import config_io
from qlora_engine.control import Control
from qlora_engine.events import Event, ModelLoaded, Noticed, PhaseChanged, PlanMade, RunStarted, StepFinished
from qlora_engine.jobs import TrainJob
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import recipe
from qlora_engine.training.start_times import DRY_STEP, IMPORTS, StartTimes
from tests.engine.training.conftest import MakeConfig
from tests.support import tiny_runs


def test_parts_are_counted_from_the_end_of_the_one_before() -> None:
    ticks: Iterator[float] = iter([3.0, 3.5, 5.0, 6.0])
    times = StartTimes(1.0, lambda: next(ticks))
    times.ended("one")
    times.ended("two")
    times.ended("one")
    assert times.to_json() == {"one": 3.5, "two": 0.5}
    assert times.told().message == "Ready to train after 4.0 s: one 3.5, two 0.5"


def test_events_pass_and_say_what_has_ended() -> None:
    def events() -> Generator[Event, None, str]:
        yield PhaseChanged("preparing", "")
        yield PhaseChanged("loading", "")
        yield ModelLoaded({})
        return "parts"

    ticks = iter([2.0, 4.0])
    times, seen = StartTimes(1.0, lambda: next(ticks)), []

    def outer() -> Generator[Event, None, None]:
        seen.append((yield from times.over(events())))

    assert [type(event) for event in outer()] == [PhaseChanged, PhaseChanged, ModelLoaded]
    assert seen == ["parts"]
    assert times.to_json() == {"planning": 1.0, "loading the model": 2.0}


def test_a_reader_that_leaves_closes_what_it_read() -> None:
    closed = []

    def events() -> Generator[Event, None, None]:
        try:
            yield PhaseChanged("preparing", "")
            yield PhaseChanged("loading", "")
        finally:
            closed.append(True)

    reading = StartTimes(0.0).over(events())
    next(reading)
    reading.close()
    assert closed == [True]


def test_a_run_says_what_its_start_took_before_its_first_step(make_config: MakeConfig) -> None:
    events = tiny_runs.train(make_config(training__max_steps=1))
    (said,) = [e for e in tiny_runs.of(events, Noticed) if e.code == "run.start"]
    assert events.index(said) < events.index(tiny_runs.of(events, StepFinished)[0])
    (started,) = tiny_runs.of(events, RunStarted)
    kept = RunFolder(Path(started.run_dir)).record()["start_seconds"]
    assert {IMPORTS, "reading the data", "loading the model", "trying the faster ways", DRY_STEP} <= set(kept)
    assert sum(kept.values()) == pytest.approx(float(said.message.split()[4]), abs=0.1)
    phases = [e.text for e in events[: events.index(said)] if isinstance(e, PhaseChanged)]
    assert phases[-2:] == [
        "Trying the faster ways on the loaded model",
        "Trying a step with the longest rows",
    ]
    (planned,) = tiny_runs.of(events, PlanMade)
    places = [events.index(e) for e in events if isinstance(e, PhaseChanged) and e.text in phases[-2:]]
    assert places[0] < events.index(planned) < places[1], "what takes long is told while it does"


class CountedKernels:
    """bitsandbytes' library, with a count of what is called."""

    def __init__(self, library: Any) -> None:
        self.library, self.calls = library, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self.library, name)


def test_what_is_computed_before_the_first_step(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes with the model's own logits: six of the trial and one of the loss. Each weight is dequantized for the plain model's two
    passes forward and its one back, where what the first block reads needs no gradient, and to be kept. The clock of a
    busy machine would not show one more."""
    kernels, passes, loaded = CountedKernels(cpu_kernels.lib), [], []
    monkeypatch.setattr(cpu_kernels, "lib", kernels)
    forward, made = LlamaForCausalLM.forward, Linear4bit.__init__
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    monkeypatch.setattr(Linear4bit, "__init__", lambda self, *a, **k: loaded.append(1) or made(self, *a, **k))
    for event in recipe.train(TrainJob(config_io.to_dict(make_config(training__max_steps=1))), Control()):
        if isinstance(event, Noticed) and event.code == "run.start":
            break
    dequantized = sum(
        count for name, count in kernels.calls.items() if "dequantize_blockwise_cpu_nf4" in name
    )
    assert len(passes) == 7
    assert dequantized == 4 * len(loaded) - 3
