"""A run's memory trace: every sample complete, on disk before it is told; paging measurable across a resume."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig, TrainingSettings, with_value
from qlora_engine.control import Control
from qlora_engine.events import MemorySampled, Noticed, OptimizerBuilt, RunFinished, RunStopped, StepFinished
from qlora_engine.jobs import ResumeJob, TrainJob
from qlora_engine.memory import tracker
from qlora_engine.monitor import parts as bands
from qlora_engine.monitor import trace
from qlora_engine.monitor.page_moves import PageMoves
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import memory_trace, optim, recipe
from qlora_engine.training.fast.install import FastPaths
from qlora_engine.training.memory_trace import MemoryTrace
from tests.engine.monitor.conftest import until
from tests.engine.monitor.managed import managed_memory
from tests.support import tiny
from tests.support.fake_nvml import GIB, MIB, FakeDriver

NAMED = {f"{name}_bytes" for name in bands.HOST_PARTS if name != "rest"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], RunFolder]:
    """A whole run of six steps on the CPU, sampled at 20 Hz: its events and its folder."""
    return run_in(tmp_path_factory.mktemp("run"))


def run_in(folder: Path) -> tuple[list[Any], RunFolder]:
    model = tiny.make_tiny("llama", folder / "model", tie_word_embeddings=True)
    data = tiny.write_rows(folder / "rows.jsonl", tiny.instruction_rows(24))
    config = TrainingConfig()
    for path, value in {
        "model.name": str(model), "model.device": "cpu", "data.path": str(data), "data.held_out_fraction": 0.2,
        "output.runs_dir": str(folder / "runs"), "lora.rank": 4, "training.max_steps": 6, "training.effective_batch": 4,
        "training.micro_batch": 2, "training.optimizer": "paged_adamw_32bit",
    }.items():  # fmt: skip
        config = with_value(config, path, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_trace.MemoryTrace.__init__, "__defaults__", (None, 20.0))
        events = list(recipe.train(TrainJob(config_io.to_dict(config)), Control()))
    assert isinstance(events[-1], RunFinished)
    return events, RunFolder.open(events[-1].result["run_dir"])


def test_every_sample_of_a_cpu_run_is_complete(run: tuple[list[Any], RunFolder]) -> None:
    _, folder = run
    found = trace.read(folder.memory_path)
    assert found.unreadable_lines == 0
    assert len(found.samples) > 3
    for sample in found.samples:
        assert {"time", "host", "paged", "parts"} <= set(sample)
        assert set(sample["parts"]) >= NAMED - {"activations_bytes"}
        assert sample["paged"]["managed_bytes"] == 0
        assert sample["paged"]["on_cpu_bytes"] == 0
        assert sum(p.bytes_ for p in bands.run_parts(sample)) == sample["host"]["process_resident_bytes"]
    last = found.samples[-1]
    assert set(last["parts"]) == NAMED
    assert all(last["parts"][name] > 0 for name in NAMED)
    assert last["paged"]["why_not_paged"].startswith("on the CPU")
    assert next(p.name for p in bands.run_parts(last)) == "quantized_weights"


def test_gradients_are_read_by_the_training_thread_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Backward replaces `.grad` without the GIL: a reader on the sampler's thread ended the engine with a SIGSEGV."""
    readers: set[int] = set()
    original = torch.nn.Parameter.grad

    def noted(self: torch.nn.Parameter) -> torch.Tensor | None:
        readers.add(threading.get_ident())
        return original.__get__(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Parameter, "grad", property(noted, original.__set__), raising=False)
        run_in(tmp_path_factory.mktemp("threads"))
    assert readers == {threading.get_ident()}


def test_what_is_told_is_on_disk(run: tuple[list[Any], RunFolder]) -> None:
    events, folder = run
    told = [event.sample for event in events if isinstance(event, MemorySampled)]
    stored = {sample["time"]: sample for sample in trace.read(folder.memory_path).samples}
    assert told
    for sample in told:
        assert stored[sample["time"]] == trace.decode(trace.encode(sample))


def test_the_parts_are_the_estimates_and_the_peak_is_their_sum(run: tuple[list[Any], RunFolder]) -> None:
    events, folder = run
    record = folder.record()
    estimated = record["estimate"]["double_quant"]["parts"]
    measured = trace.read(folder.memory_path).samples[-1]["parts"]
    for name in ("quantized_weights", "quantization_constants", "adapters"):
        assert measured[f"{name}_bytes"] == pytest.approx(estimated[name], rel=0.02), name
    assert measured["optimizer_bytes"] == record["optimizer"]["state_bytes"]
    steps = [event for event in events if isinstance(event, StepFinished)]
    model = sum(
        measured[f"{n}_bytes"]
        for n in ("quantized_weights", "quantization_constants", "unquantized_weights", "adapters")
    )
    transient = measured["activations_bytes"] + measured["adapters_bytes"]
    assert steps[-1].peak_memory_bytes == model + transient + measured["optimizer_bytes"]


def test_what_the_optimizer_pages_is_recorded_by_kind(run: tuple[list[Any], RunFolder]) -> None:
    events, folder = run
    (built,) = [event for event in events if isinstance(event, OptimizerBuilt)]
    record = folder.record()["optimizer"]
    assert record["class_name"] == built.class_name == "PagedAdamW32bit"
    assert sum(kind["state_bytes"] * kind["parameters"] for kind in record["kinds"]) == built.state_bytes
    assert all(kind["why_not_paged"] for kind in record["kinds"])
    assert record["managed_bytes"] == 0


def test_the_model_is_counted_once(run: tuple[list[Any], RunFolder]) -> None:
    shared = torch.nn.Linear(8, 8, bias=False)
    model = torch.nn.ModuleList([shared, torch.nn.Linear(8, 8, bias=False)])
    model[1].weight = shared.weight
    shared.weight.requires_grad_(False)
    model.register_buffer("table", torch.zeros(10))
    found = memory_trace.model_parts(model)
    assert found == {
        "quantized_weights": 0, "quantization_constants": 0, "unquantized_weights": 8 * 8 * 4 + 40, "adapters": 0,
    }  # fmt: skip
    assert sum(found.values()) == tracker.model_bytes(model)


class Graphics:
    """torch's CUDA allocator and one GPU of the stand-in driver, as the trace asks them."""

    def __init__(self, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated, self.reserved = 3 * GIB, 4 * GIB
        uuid = SimpleNamespace(uuid="0000-0")
        for name, answer in {
            "memory_allocated": lambda index: self.allocated,
            "memory_reserved": lambda index: self.reserved,
            "max_memory_allocated": lambda index: 5 * GIB,
            "reset_peak_memory_stats": lambda index: None,
            "get_device_properties": lambda index: uuid,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        self.device = driver.devices[0]

    def hold(self, managed_on_gpu: int) -> None:
        self.device.used = self.reserved + GIB // 2 + managed_on_gpu


@pytest.fixture
def graphics(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Graphics:
    managed_memory(monkeypatch)
    monkeypatch.setattr("qlora_engine.monitor.residency._platform", lambda: "linux")
    return Graphics(driver, monkeypatch)


def gpu_parts(folder: Path) -> Any:
    """What a run hands to its trace: one adapter of 40,000,000 parameters whose 305 MiB of state are paged."""
    torch.manual_seed(0)
    model = torch.nn.Linear(20_000, 2_000, bias=False)
    folder.mkdir()
    (folder / "checkpoints").mkdir()
    run = RunFolder(folder)
    run.write_record({"run_id": "x", "state": "running"})
    return SimpleNamespace(
        plan=SimpleNamespace(kind="cuda", index=0), model=model, folder=run, transient_peak_bytes=None, fast=FastPaths(),
        optimizer=optim.build(TrainingSettings(optimizer="paged_adamw_32bit"), model.parameters()),
        config=SimpleNamespace(training=SimpleNamespace(optimizer="paged_adamw_32bit")),
    )  # fmt: skip


def step(parts: Any) -> None:
    for parameter in parts.model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optim.step(parts.optimizer)
    parts.optimizer.zero_grad(set_to_none=True)


def newest_where(parts: Any, wanted: Any) -> dict[str, Any]:
    """The first sample on disk for which `wanted` is true."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        sample = trace.newest(parts.folder.memory_path)
        if sample is not None and sample.get("gpus") and wanted(sample):
            found.append(sample)
        return bool(found)

    until(look, 10)
    return found[0]


def test_a_gpu_run_and_its_resume(graphics: Graphics, tmp_path: Path) -> None:
    state = 2 * 40_000_000 * 4
    parts = gpu_parts(tmp_path / "run")
    graphics.hold(0)
    with MemoryTrace(parts, hz=50.0) as traced:
        newest_where(parts, lambda s: s["gpus"][0].get("used_bytes") and s["paged"]["managed_bytes"] == 0)
        step(parts)
        graphics.hold(state)
        built = traced.optimizer_built()
        assert (built.paged_bytes, built.pageable_bytes, built.state_bytes) == (state, state, state)
        sample = newest_where(
            parts, lambda s: s["paged"]["managed_bytes"] and s["gpus"][0]["used_bytes"] > 4.6 * GIB
        )
        assert sample["paged"]["on_gpu_bytes"] == state
        assert sample["torch"] == {
            "gpu_uuid": "0000-0", "allocated_bytes": 3 * GIB, "reserved_bytes": 4 * GIB, "peak_bytes": 5 * GIB,
        }  # fmt: skip
        assert sample["parts"]["adapters_bytes"] == 160_000_000
        assert "unavailable" in sample
        assert traced.peak_bytes() == 5 * GIB + state
        assert list(traced.new_samples())

        graphics.reserved = 24 * GIB - GIB // 4 - GIB // 2 - state + 100 * MIB  # 100 MiB too much
        graphics.hold(state - 100 * MIB)
        sample = newest_where(
            parts, lambda s: s["paged"].get("residency_kind") == "estimated" and s["paged"]["on_cpu_bytes"]
        )
        until(lambda: newest_where(parts, lambda s: True)["paged"]["on_cpu_bytes"] == 100 * MIB)

    tensors, numbers = optim.export_state(parts.optimizer)
    resumed = gpu_parts(tmp_path / "resumed")
    graphics.reserved = 4 * GIB
    graphics.hold(0)
    optim.import_state(resumed.optimizer, tensors, numbers)
    with MemoryTrace(resumed, hz=50.0) as traced:
        sample = newest_where(resumed, lambda s: True)
        assert sample["paged"]["was_restored"] is True
        assert sample["paged"]["paged_bytes"] == state
        assert sample["paged"]["on_cpu_bytes"] == sample["paged"]["managed_bytes"]
        step(resumed)
        graphics.hold(state)
        assert traced.optimizer_built() == built  # the same bytes paged before and after
        sample = newest_where(resumed, lambda s: s["paged"]["was_restored"] is False)
        assert sample["paged"]["on_cpu_bytes"] == 0
    assert resumed.folder.record()["optimizer"] == {
        **parts.folder.record()["optimizer"],
        "managed_bytes": 2 * state,
    }


def test_counted_page_moves_are_in_every_sample(graphics: Graphics, tmp_path: Path) -> None:
    class Counted(PageMoves):
        def block(self) -> dict[str, Any]:
            return {"moving_kind": "measured", "to_gpu_bytes_per_second": 5.0, "to_cpu_bytes_per_second": 7.0,
                    "gpu_page_faults_per_second": 3.0, "cpu_page_faults_per_second": 2.0}  # fmt: skip

    parts = gpu_parts(tmp_path / "run")
    graphics.hold(0)
    with MemoryTrace(parts, Counted(), hz=50.0) as traced:
        step(parts)
        newest_where(parts, lambda s: s["paged"]["managed_bytes"] > 0)
        assert not [event for event in traced.new_samples() if isinstance(event, Noticed)]
    for sample in trace.read(parts.folder.memory_path).samples:
        assert Counted().block().items() <= sample["paged"].items()


def test_a_checkpoint_is_noticed(graphics: Graphics, tmp_path: Path) -> None:
    parts = gpu_parts(tmp_path / "run")
    graphics.hold(0)
    with MemoryTrace(parts, hz=50.0):
        step(parts)
        newest_where(parts, lambda s: s["paged"]["managed_bytes"] and not s["paged"]["was_read_by_cpu"])
        (parts.folder.checkpoints_dir / "step-1").mkdir()
        newest_where(parts, lambda s: s["paged"]["was_read_by_cpu"])
        step(parts)
        newest_where(parts, lambda s: not s["paged"]["was_read_by_cpu"])


def test_a_full_disk_does_not_end_the_run_or_the_live_picture(
    graphics: Graphics, tmp_path: Path, caplog: Any
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs the always-full device of Linux")
    parts = gpu_parts(tmp_path / "run")
    parts.folder.memory_path = Path("/dev/full")
    with MemoryTrace(parts, hz=50.0) as traced:
        told: list[Any] = []
        until(lambda: told.extend(traced.new_samples()) is None and len(told) > 3)
    assert caplog.text.count("No space left on device") == 1


def test_leaving_closes_the_file_and_forgets_the_optimizer(graphics: Graphics, tmp_path: Path) -> None:
    parts = gpu_parts(tmp_path / "run")
    for _ in range(3):
        with MemoryTrace(parts, hz=50.0):
            newest_where(parts, lambda s: True)
    size = parts.folder.memory_path.stat().st_size
    step(parts)
    assert parts.folder.memory_path.stat().st_size == size
    assert not parts.optimizer._optimizer_step_post_hooks
    for line in parts.folder.memory_path.read_text().splitlines():
        json.loads(line)


def test_a_stopped_run_goes_on_in_the_same_trace(run: tuple[list[Any], RunFolder], tmp_path: Path) -> None:
    config = with_value(run[1].job(), "output.runs_dir", str(tmp_path))
    control = Control()
    events: list[Any] = []
    for event in recipe.train(TrainJob(config_io.to_dict(config)), control):
        events.append(event)
        if isinstance(event, StepFinished) and event.step == 3:
            control.request_stop()
    assert isinstance(events[-1], RunStopped)
    folder = RunFolder.open(events[-1].result["run_dir"])
    before = trace.read(folder.memory_path).samples
    resumed = list(recipe.resume(ResumeJob(str(folder.path)), Control()))
    after = trace.read(folder.memory_path)
    assert after.samples[: len(before)] == before
    assert len(after.samples) > len(before)
    assert after.unreadable_lines == 0
    first, second = ([e for e in es if isinstance(e, OptimizerBuilt)] for es in (events, resumed))
    assert first == second
