"""What an empty process takes on a GPU: read from NVML, measured by a child, kept, and used in every total."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import child
from qlora_engine.control import Control
from qlora_engine.device import DevicePlan
from qlora_engine.errors import Cancelled
from qlora_engine.events import PhaseChanged
from qlora_engine.memory import advise, context, context_probe, explain, gpus
from qlora_engine.memory.context import MIB, UNMEASURED, Context, context_of
from qlora_engine.memory.context_probe import NoAnswerError, taken, used_by_uuid
from qlora_engine.monitor.nvml import Nvml
from tests.engine.memory.settings import config, estimated, facts
from tests.support import fake_nvml
from tests.support.fake_nvml import GIB, FakeDriver

PID = 4711
UUID = "0000-1"
GPU = "NVIDIA GeForce RTX 4090"
MEASURED = Context(500 * MIB, 500 * MIB, 660 * MIB, "measured on this machine")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    return FakeDriver(fake_nvml.compiled(tmp_path_factory.mktemp("driver")))


@pytest.fixture
def driver(library: FakeDriver) -> Iterator[FakeDriver]:
    """nvidia-ml-py talks to a stand-in with two GPUs."""
    with fake_nvml.bound(library) as bound:
        bound.reset(2)
        yield bound


@pytest.fixture
def nvml(driver: FakeDriver) -> Iterator[Nvml]:
    started = Nvml()
    assert started.start()
    yield started
    started.stop()


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the child answers, one word after the other; "hang" never answers."""
    answers: list[str] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        assert command == child.command("qlora_engine.memory.context_probe", "0")
        answer = answers.pop(0)
        script = "import time; time.sleep(60)" if answer == "hang" else f"print({answer!r})"
        return real([sys.executable, "-c", script], **options)

    monkeypatch.setattr(context.subprocess, "Popen", popen)
    monkeypatch.setattr(context, "_driver_version", lambda: "575.10")
    return answers


def answer(size: int | None, problem: str = "") -> str:
    return json.dumps({"bytes": size, "problem": problem})


# ------------------------------------------------------------ the child


def test_the_driver_lists_the_process(driver: FakeDriver, nvml: Nvml) -> None:
    driver.set_processes(1, [(1, 9 * GIB), (PID, 520 * MIB)])
    assert taken(nvml, UUID, PID, used_by_uuid(nvml)) == 520 * MIB


@pytest.mark.parametrize("listed", [[(99, 520 * MIB)], [(PID, 2**64 - 1)]], ids=["container", "wddm"])
def test_else_by_how_much_the_use_grew(listed: list[tuple[int, int]], driver: FakeDriver, nvml: Nvml) -> None:
    before = used_by_uuid(nvml)
    driver.devices[1].used += 610 * MIB
    driver.set_processes(1, listed)
    assert taken(nvml, UUID, PID, before) == 610 * MIB


@pytest.mark.parametrize("grown", [0, 20 * GIB])
def test_what_cannot_be_an_empty_process_is_no_answer(grown: int, driver: FakeDriver, nvml: Nvml) -> None:
    before = used_by_uuid(nvml)
    driver.devices[1].used += grown
    with pytest.raises(NoAnswerError, match="something else moved"):
        taken(nvml, UUID, PID, before)


def test_an_unknown_gpu_is_no_answer(nvml: Nvml) -> None:
    with pytest.raises(NoAnswerError, match="identity"):
        taken(nvml, "MIG-1", PID, {})


def test_without_a_driver_the_child_says_why(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_probe.os, "dup2", lambda *_: None)
    monkeypatch.setattr(Nvml, "start", lambda self: False)
    assert context_probe.main(["0"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["bytes"] is None
    assert "NVML" in told["problem"]


# ------------------------------------------------------------ kept


def test_measured_once_and_kept(probe: list[str], home: Path) -> None:
    probe.append(answer(520 * MIB))
    first = context.ensure(GPU, "2.13")
    assert first.bytes_ == 520 * MIB
    assert context.ensure(GPU, "2.13") == first  # no second answer is left
    found = context_of()
    assert (found.low_bytes, found.likely_bytes) == (520 * MIB, 520 * MIB)
    assert 520 * MIB < found.high_bytes < UNMEASURED.high_bytes
    assert found.source.startswith("measured on this machine on 20")
    assert found.source.endswith("with driver 575.10")
    assert [file.name for file in home.iterdir()] == ["gpu-context.json"]


def test_another_driver_is_measured_again(probe: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    probe += [answer(520 * MIB), answer(480 * MIB)]
    context.ensure(GPU, "2.13")
    monkeypatch.setattr(context, "_driver_version", lambda: "580.01")
    context.ensure(GPU, "2.13")
    assert context_of().likely_bytes == 480 * MIB


def test_a_failure_is_remembered_and_the_range_stays(probe: list[str]) -> None:
    probe.append(answer(None, "the driver does not tell"))
    for _ in range(2):
        assert context.ensure(GPU, "2.13").problem == "the driver does not tell"
    assert context_of() == UNMEASURED


def test_a_child_without_an_answer(probe: list[str]) -> None:
    probe.append("Segmentation fault")
    assert "exit code 0 and no answer" in context.ensure(GPU, "2.13").problem


def test_a_child_that_hangs_is_ended(probe: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "PROBE_SECONDS", 0.3)
    probe.append("hang")
    assert "no answer within" in context.ensure(GPU, "2.13").problem


def test_the_run_can_be_stopped_meanwhile(probe: list[str]) -> None:
    def stop() -> None:
        raise Cancelled

    probe.append("hang")
    with pytest.raises(Cancelled):
        context.ensure(GPU, "2.13", check=stop)
    assert context.records() == ()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 99, "measured": []}', '{"schema": 1, "measured": [{}]}']
)
def test_a_damaged_file_is_no_measurement(text: str, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "gpu-context.json").write_text(text, encoding="utf-8")
    assert context_of() == UNMEASURED


def test_another_computers_measurement_does_not_count(
    probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe.append(answer(520 * MIB))
    context.ensure(GPU, "2.13")
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    assert context_of() == UNMEASURED


def test_another_gpu_keeps_its_range(probe: list[str]) -> None:
    probe.append(answer(520 * MIB))
    context.ensure(GPU, "2.13")
    assert context_of("RTX 4090").likely_bytes == 520 * MIB
    assert context_of("H200") == UNMEASURED


@pytest.mark.parametrize(
    ("table", "driver_name", "is_same"),
    [
        ("A100 80GB", "NVIDIA A100-SXM4-80GB", True),
        ("H100 80GB", "NVIDIA H100 80GB HBM3", True),
        ("RTX 4080 16GB", "NVIDIA GeForce RTX 4080", True),
        ("T4", "Tesla T4", True),
        ("RTX 4090", "NVIDIA GeForce RTX 4090 Laptop GPU", False),
        ("RTX 5070 Ti 16GB", "NVIDIA GeForce RTX 5070", False),
    ],
)
def test_names_of_one_kind(table: str, driver_name: str, is_same: bool) -> None:
    assert gpus.same_gpu(table, driver_name) is is_same


# ------------------------------------------------------------ used


def test_a_run_on_a_gpu_has_it_measured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_engine.training import setup

    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(setup.context, "ensure", lambda *one: asked.append(one))
    monkeypatch.setattr(setup.torch.cuda, "get_device_name", lambda index: f"{GPU} {index}")
    (told,) = setup._know_context(DevicePlan("cuda", 1, "bfloat16", ""), Control())
    assert isinstance(told, PhaseChanged)
    assert "an empty process" in told.text
    assert [(gpu, index) for gpu, _, index, _ in asked] == [(f"{GPU} 1", 1)]


def test_every_total_uses_it() -> None:
    one = facts("llama-7b")
    before = explain.compare(one, config(), seq_len=512, micro_batch=1)
    after = explain.compare(one, config(), seq_len=512, micro_batch=1, context=MEASURED)
    for name in ("double_quant", "lora_16bit"):
        was, now = before.bar(name).variant, after.bar(name).variant
        assert now.parts["device_context"] == 500 * MIB
        assert now.peak_bytes == was.peak_bytes
        assert was.device_likely - now.device_likely == 50 * MIB
        assert now.device_high - now.device_low < was.device_high - was.device_low
    assert after.bar("double_quant").part("device_context").source == MEASURED.source
    assert "140 MiB to 1.4 GiB" in before.bar("double_quant").part("device_context").source
    assert after.estimate.settings["device_context"] == MEASURED.source
    assert estimated("llama-7b", device="cpu").settings["device_context"] == ""


def test_the_largest_that_fits_knows_it() -> None:
    one, usable = facts("llama-3.1-8b"), gpus.find("RTX 4090").usable_bytes
    small, large = (
        advise.largest_that_fits(
            one,
            config(),
            seq_len=512,
            micro_batch=1,
            usable_bytes=usable,
            context=Context(size, size, size, ""),
        ).seq_len
        for size in (1400 * MIB, 140 * MIB)
    )
    assert small is not None and large is not None  # noqa: PT018
    assert small < large
