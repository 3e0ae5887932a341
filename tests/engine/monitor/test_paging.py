"""What an optimizer keeps and pages, read off its tensors; with stand-in managed buffers by bitsandbytes' own rules."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import bitsandbytes.functional as bnb_functional
import pytest
import torch
from torch.utils._pytree import tree_map_only

from qlora_engine.config import TrainingSettings
from qlora_engine.memory.optimizer_state import state_bytes
from qlora_engine.monitor import paging
from qlora_engine.training import optim
from tests.engine.monitor.managed import managed_memory

SHAPES = ((400, 250), (399, 250), (300, 400), (16, 16), (64, 64))
"""100,000 elements and just below it, above, and around the 4,096 of 8-bit states."""


@pytest.fixture
def managed(monkeypatch: pytest.MonkeyPatch) -> None:
    managed_memory(monkeypatch)


def stepped(name: str, steps: int = 2) -> tuple[Any, list[torch.nn.Parameter]]:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = optim.build(TrainingSettings(optimizer=name), parameters)
    step(optimizer, parameters, steps)
    return optimizer, parameters


def step(optimizer: Any, parameters: list[torch.nn.Parameter], steps: int) -> None:
    for at in range(steps):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.01 * (at + 1))
        optim.step(optimizer)


@pytest.mark.parametrize("name", ["paged_adamw_32bit", "paged_adamw_8bit"])
def test_managed_bytes_are_exact_and_as_predicted(name: str, managed: None) -> None:
    optimizer, parameters = stepped(name)
    found = paging.optimizer_report(optimizer)
    own = sum(t.nbytes for t in bnb_functional.GlobalPageManager.get_instance().paged_tensors)
    predicted = state_bytes(name, [(p.numel(), 1) for p in parameters], can_page=True)
    assert (
        own == found.paged_bytes == paging.managed_bytes() == found.pageable_bytes == predicted.pageable > 0
    )
    assert found.eight_bit_bytes == predicted.eight_bit
    assert found.class_name.startswith("Paged")
    assert found.why_not_paged is None


def test_each_kind_of_parameter_says_what_becomes_of_it(managed: None) -> None:
    optimizer, _ = stepped("paged_adamw_32bit")
    kinds = {state.elements: (state, count) for state, count in paging.optimizer_report(optimizer).alike}
    assert set(kinds) == {100_000, 99_750, 120_000, 256, 4096}
    assert kinds[120_000][0].paged_bytes == 960_000
    assert kinds[120_000][0].why_not_paged is None
    assert kinds[99_750][0].paged_bytes == 0
    assert kinds[99_750][0].why_not_paged


@pytest.mark.parametrize(
    "name", ["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "lion_8bit", "adamw_torch_fused"]
)
def test_on_the_cpu_nothing_is_paged_and_bytes_are_as_predicted(name: str) -> None:
    optimizer, parameters = stepped(name)
    found = paging.optimizer_report(optimizer)
    predicted = state_bytes(name, [(p.numel(), 1) for p in parameters], can_page=False)
    assert found.paged_bytes == 0
    steps = 4 * len(parameters) if name == "adamw_torch_fused" else 0  # torch counts steps in a tensor
    assert found.state_bytes == pytest.approx(
        predicted.total + steps, abs=2048
    )  # the code tables of 8-bit states
    assert found.why_not_paged == (paging.ON_CPU if name.startswith("paged") else None)


def test_before_the_first_step_nothing_is_claimed() -> None:
    optimizer, _ = stepped("paged_adamw_32bit", steps=0)
    found = paging.optimizer_report(optimizer)
    assert (found.state_bytes, found.why_not_paged, found.alike) == (0, None, ())
    assert paging.state_count(optimizer) == 0


def test_paging_survives_a_resume_byte_for_byte(managed: None) -> None:
    optimizer, _ = stepped("paged_adamw_8bit", steps=3)
    before = paging.optimizer_report(optimizer)
    tensors, numbers = optim.export_state(optimizer)
    resumed, parameters = stepped("paged_adamw_8bit", steps=0)
    optim.import_state(resumed, tensors, numbers)
    assert paging.optimizer_report(resumed) == before
    step(resumed, parameters, 1)
    assert paging.optimizer_report(resumed) == before


def test_a_resume_that_loses_paging_is_seen(managed: None) -> None:
    """bitsandbytes' own `load_state_dict` makes ordinary tensors of them (bitsandbytes #782)."""
    optimizer, _ = stepped("paged_adamw_32bit")
    resumed, _ = stepped("paged_adamw_32bit", steps=0)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(
        tree_map_only(torch.Tensor, torch.clone, saved)
    )  # as a copy to a GPU makes new ones
    found = paging.optimizer_report(resumed)
    assert found.paged_bytes == 0
    assert found.pageable_bytes == paging.optimizer_report(optimizer).paged_bytes
    assert found.why_not_paged


@pytest.mark.parametrize(("elements", "reason"), [(100_000, paging.ORDINARY), (99_999, paging.TOO_SMALL)])
def test_why_a_device_tensor_is_not_paged(elements: int, reason: str) -> None:
    optimizer = SimpleNamespace(
        is_paged=True, state={OnDevice(elements): {"state1": torch.zeros(16), "step": 3}}
    )
    (found,) = paging.parameter_states(optimizer)
    assert (found.why_not_paged, found.paged_bytes, found.state_bytes) == (reason, 0, 64)
    report = paging.optimizer_report(optimizer)
    assert report.why_not_paged
    assert ("100,000" in report.why_not_paged) == (elements < 100_000)


class OnDevice:
    """What a report looks at of a parameter on a GPU."""

    device = SimpleNamespace(type="cuda")

    def __init__(self, elements: int) -> None:
        self.elements = elements

    def numel(self) -> int:
        return self.elements


def test_the_stand_in_follows_the_installed_library(managed: None) -> None:
    """If bitsandbytes changes its threshold, the stand-in and our constant are wrong."""
    import inspect

    source = inspect.getsource(bnb.optim.optimizer.Optimizer8bit.get_state_buffer.__wrapped__)  # type: ignore[attr-defined]
    assert "p.numel() < 1e5" in source
