"""Decoder blocks through torch's compiler: the same numbers, one compilation for all blocks and lengths, and none that does not pay."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from qlora_engine.config import LoraSettings, TrainingConfig, TrainingSettings
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.events import Noticed
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import compiling
from qlora_engine.training.fast import compiled, install
from tests.engine.training.conftest import MakeConfig
from tests.support import tiny_runs
from tests.support.fast_models import furthest, load, parts_of, rows, step

ON = TrainingSettings(compile_blocks="on", fused_elementwise=False)


@pytest.fixture(autouse=True)
def compiler_begins_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are made as ever, and not turned into machine code, which takes a minute: but for the one test that wants it."""
    import torch._dynamo

    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.suppress_errors = False


def parts(model: Any, settings: TrainingSettings, made: list[TokenRow]) -> Any:
    """What a run has when it chooses whether to compile."""
    fast = install.install(model, settings, made, device="cpu", spare_bytes=1 << 40)
    found = parts_of(model, fast)
    found.config, found.micro_batch, found.predicted_peak_bytes = TrainingConfig(training=settings), 3, 10**9
    found.plan = SimpleNamespace(name="cpu", kind="cpu", torch_dtype_name="float32")
    found.data, found.schedule = (
        SimpleNamespace(train=made),
        SimpleNamespace(rows_of=lambda _: range(len(made))),
    )
    return found


def choose(some: Any) -> Noticed:
    """The last that is said."""
    said = list(compiling.choose(some, lambda: None))
    assert isinstance(said[-1], Noticed)
    return said[-1]


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_compiled_blocks_compute_what_plain_ones_do_and_are_compiled_once(two_layers: Path) -> None:
    """For all blocks and rows of any length; what has no gradients is not compiled at all. One row alone lies otherwise in memory
    than several, for which the graph behind attention is made once more."""
    wanted_loss, wanted = step(load(two_layers), install.FastPaths())
    model = load(two_layers)
    some = parts(model, ON, rows())
    kept = some.fast.kept_bytes
    assert "are compiled" in choose(some).message
    assert some.fast.to_json()["compiled_blocks"]
    assert set(some.fast.why_not) == {"fused_adapters", "kept_weights_gib"}
    assert some.predicted_peak_bytes == 10**9 - kept < 10**9
    before = graphs()
    assert 0 < before < 8
    for micro_batch in (1, 2, 6):
        found_loss, found = step(model, some.fast, micro_batch)
        assert found_loss == pytest.approx(wanted_loss, rel=1e-4)
        assert furthest(found, wanted) < 1e-4
    assert graphs() <= before + 1
    before = graphs()
    with torch.no_grad():
        model(torch.tensor([rows()[0].input_ids]))
    assert graphs() == before


def clock(*seconds: float) -> Callable[[Any], float]:
    left = iter(seconds)
    return lambda _: next(left)


@pytest.mark.parametrize(("after", "is_compiled"), [(0.96, False), (0.9, True)])
def test_only_a_gain_beyond_the_clocks_own_keeps_them(
    two_layers: Path, monkeypatch: pytest.MonkeyPatch, after: float, is_compiled: bool
) -> None:
    model = load(two_layers)
    some = parts(model, replace(ON, compile_blocks="auto", fused_elementwise=True), rows())
    before, wanted = some.fast.to_json(), step(model, some.fast)
    monkeypatch.setattr(compiling._Passes, "seconds", clock(1.0, after))
    said = choose(some)
    assert some.fast.compiles_blocks == is_compiled
    if is_compiled:
        assert some.fast.compile_gain == pytest.approx(0.1)
        assert "10% less time" in said.message
        return
    assert "no gain" in some.fast.why_not.pop("compile_blocks")
    assert some.fast.to_json() == before
    found = step(model, some.fast)
    assert found[0] == wanted[0]
    assert all(torch.equal(found[1][name], wanted[1][name]) for name in wanted[1])
    assert not any("forward" in vars(block) for block in compiled.blocks_of(model))


def wrong(graph: Any, _: Any) -> Any:
    """A compiler that makes an error."""
    return lambda *inputs: tuple(
        out * 1.1 if isinstance(out, torch.Tensor) and out.is_floating_point() else out
        for out in graph(*inputs)
    )


def broken(graph: Any, _: Any) -> Any:
    raise RuntimeError("no compiler here")


@pytest.mark.parametrize(("backend", "reason"), [(wrong, "differ"), (broken, "no compiler here")])
def test_a_compiler_that_is_wrong_or_missing_leaves_everything_as_it_was(
    two_layers: Path, monkeypatch: pytest.MonkeyPatch, backend: Any, reason: str
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", backend)
    model = load(two_layers)
    some = parts(model, ON, rows())
    wanted = step(model, some.fast)
    assert reason in choose(some).message
    assert reason in some.fast.why_not["compile_blocks"]
    assert some.fast.fuses_adapters
    assert step(model, some.fast)[0] == wanted[0]


def test_what_draws_random_numbers_is_not_compiled(two_layers: Path) -> None:
    model = load(two_layers, LoraSettings(rank=4, dropout=0.3))
    state = torch.get_rng_state()
    some = parts(model, ON, rows())
    assert "random" in choose(some).message
    assert torch.equal(torch.get_rng_state(), state)


def test_blocks_that_recompute_are_not_compiled(two_layers: Path) -> None:
    some = parts(load(two_layers, is_checkpointed=True), ON, rows())
    assert "recompute" in choose(some).message
    assert not some.fast.compiles_blocks


def test_off_compiles_and_says_nothing(two_layers: Path) -> None:
    some = parts(load(two_layers), TrainingSettings(), rows())
    assert list(compiling.choose(some, lambda: None)) == []
    assert graphs() == 0


@pytest.mark.slow
def test_a_run_with_compile_blocks_learns_the_same_and_leaves_no_process(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """With real machine code, made in this process and kept among the program's own caches."""
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.delenv(compiled.CACHE_VARIABLE, raising=False)
    plain = tiny_runs.train(make_config())
    settings = {
        "training__compile_blocks": "on",
        "checkpoint__every_steps": 1,
        "training__gradient_checkpointing": False,
    }
    found = tiny_runs.train(make_config(**settings))
    assert tiny_runs.losses(found) == pytest.approx(tiny_runs.losses(plain), rel=1e-3)
    assert RunFolder(tiny_runs.run_dir(found)).record()["fast_paths"]["compiled_blocks"]
    assert psutil.Process().children(recursive=True) == []
    assert any((home / "cache" / "compiled").rglob("*.so"))
    assert os.environ.pop(compiled.CACHE_VARIABLE) == str(home / "cache" / "compiled")
