"""Events and jobs survive their JSON form."""

from __future__ import annotations

import dataclasses
import math
import typing

import pytest

from qlora_engine import events, jobs
from qlora_engine.events import EVENT_TYPES, StepFinished

SAMPLES = {int: 3, float: 0.5, str: "text", bool: True}


def example(cls: type) -> typing.Any:
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        origin = typing.get_origin(hint)
        if origin is tuple:
            values[field.name] = ("a", "b")
        elif origin is not None and hasattr(origin, "keys"):
            values[field.name] = {"a": 1, "b": [1, 2]}
        else:
            values[field.name] = SAMPLES.get(hint)
    return cls(**values)


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_every_event_survives(name: str) -> None:
    event = example(EVENT_TYPES[name])
    line = events.encode(event)
    assert "\n" not in line
    assert events.decode(line) == event


def test_nan_becomes_null() -> None:
    event = dataclasses.replace(example(StepFinished), loss=math.nan, grad_norm=math.inf)
    decoded = events.decode(events.encode(event))
    assert isinstance(decoded, StepFinished)
    assert decoded.loss is None
    assert decoded.grad_norm is None


@pytest.mark.parametrize("line", ["", "{", "[]", '{"event": "Nonsense"}', '{"event": "Paused"}', "17"])
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        events.decode(line)


@pytest.mark.parametrize(
    "job",
    [
        jobs.TrainJob({"lora": {"rank": 8}}),
        jobs.ResumeJob("/runs/a"),
        jobs.ExportJob("/runs/a", "merged", "/out", {"dtype": "bf16"}),
        jobs.ChatJob("/runs/a"),
    ],
)
def test_every_job_survives(job: jobs.Job) -> None:
    assert jobs.decode(jobs.encode(job)) == job
