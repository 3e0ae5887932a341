"""`qlora monitor`: JSON lines, a log, a live table, and its ends; with the stand-in driver on the loader's own path."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.cli.commands import monitor
from tests.engine.monitor.samples import GIB, cpu_sample, gpu, gpu_sample
from tests.support.fake_nvml import FakeDriver

ROOT = Path(__file__).resolve().parents[3]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(library: FakeDriver, tmp_path: Path) -> Iterator[Start]:
    """`qlora monitor` in a process of its own, which loads libnvidia-ml.so.1 as any program does; ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, gpus: int = 2, **changes: Any) -> subprocess.Popen[str]:
        environment = {
            **os.environ, "LD_LIBRARY_PATH": str(library.path.parent), "FAKE_NVML_GPUS": str(gpus),
            "QLORA_HOME": str(tmp_path),
        }  # fmt: skip
        command = [sys.executable, "-m", "qlora_engine.cli.main", "monitor", *arguments]
        options: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **changes,
        }
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=_hear_ctrl_c, **options)
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()


def _hear_ctrl_c() -> None:
    """A suite that was started in the background ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_json_lines(start: Start) -> None:
    process = start("--seconds", "1.5", "--hz", "4", "--json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    samples = [json.loads(line) for line in out.splitlines()]
    assert len(samples) == 6
    for sample in samples:
        assert {"time", "host", "gpus", "paged"} <= set(sample)
        assert [g["uuid"] for g in sample["gpus"]] == ["GPU-0000-0", "GPU-0000-1"]
        assert sample["gpus"][1]["used_bytes"] == 6 * GIB


def test_a_log(start: Start) -> None:
    process = start("--seconds", "0.5", "--hz", "4")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.fullmatch(r"(\d\d:\d\d:\d\d  6\.00 of 24\.00 GiB\n){2}", out)


def test_ctrl_c_is_a_good_end(start: Start) -> None:
    process = start("--json")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert time.monotonic() - began < 3


def test_a_reader_that_leaves_is_no_bug(start: Start) -> None:
    process = start("--json", "--hz", "20")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=30) == 1
    assert "Traceback" not in err
    process.stderr.close()


def test_each_sample_leaves_at_once(start: Start) -> None:
    process = start("--seconds", "2", "--hz", "4", "--json")
    assert process.stdout is not None
    delays = [time.time() - json.loads(line)["time"] for line in process.stdout]
    process.communicate(timeout=30)
    assert max(delays) < 0.25


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hz", "0"), "error: the rate must be more than 0 and at most 100 Hz, not 0; hint: try 4"),
        (("--seconds", "-1"), "error: the time must be more than 0 seconds, not -1; hint: try 10"),
        (
            ("--pid", "4194400"),
            "error: there is no process 4194400; hint: see running runs with `qlora runs`",
        ),
        (("--hz", "often"), "error: "),
    ],
)
def test_wrong_input(arguments: tuple[str, ...], words: str, start: Start) -> None:
    process = start(*arguments)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith(words)


def test_a_live_table_on_a_terminal(start: Start) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = start("--seconds", "0.6", "--hz", "4", stdout=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait(timeout=30) == 0
    text = shown.decode()
    for words in ("GPU 0", "GPU 1", "NVIDIA stand-in", "6.00 GiB of 24.00 GiB", "host memory", "page faults"):
        assert words in text
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_every_row_says_its_figure() -> None:
    block = {
        **gpu_sample()["paged"],
        "on_gpu_bytes": GIB,
        "on_cpu_bytes": GIB // 2,
        "uncertainty_bytes": GIB // 16,
    }
    block |= {"residency_kind": "estimated", "to_cpu_bytes_per_second": GIB / 4}
    found = dict(monitor.rows(gpu_sample(paged=block)))
    assert found["  memory"] == "18.00 GiB of 24.00 GiB"
    assert found["  processes"] == "15.00 GiB here, 1.00 GiB others"
    assert found["  utilisation"] == "97 %"
    assert found["  power"] == "352 of 450 W"
    assert found["  held back by"] == "nothing"
    assert found["  PCIe"] == "976.56 KiB/s in, 1.91 MiB/s out"
    assert found["paged optimizer memory"] == "1.50 GiB"
    assert found["  on the CPU"] == "512.00 MiB ± 64.00 MiB (estimated)"
    assert found["  moving"] == "0 B/s to the GPU, 256.00 MiB/s to the CPU (estimated)"
    assert "  faults" not in found
    assert found["host memory"] == "24.00 GiB of 64.00 GiB"
    assert found["  managed"] == "1.00 GiB (estimated)"


def test_what_is_unknown_says_why() -> None:
    device = gpu(
        temperature_celsius=None,
        encoder_ratio=None,
        unavailable={"temperature_celsius": "this GPU does not tell it"},
    )
    found = dict(
        monitor.rows(gpu_sample(gpus=[device], paged=None, unavailable={"paged": "nothing to tell yet"}))
    )
    assert found["  temperature"] == "n/a (this GPU does not tell it)"
    assert found["  encoder"] == "n/a"
    assert found["paged optimizer memory"] == "n/a (nothing to tell yet)"
    found = dict(monitor.rows(cpu_sample(host=None, unavailable={"host": "PermissionError"})))
    assert found["GPU"] == "n/a (no NVIDIA driver is installed)"
    assert found["host"] == "n/a (PermissionError)"


def test_counted_page_moves_have_rows_of_their_own_and_say_why_not() -> None:
    counted = {
        "moving_kind": "measured",
        "gpu_page_faults_per_second": 30.0,
        "cpu_page_faults_per_second": 4.0,
    }
    found = dict(monitor.rows(gpu_sample(paged={**gpu_sample()["paged"], **counted})))
    assert found["  moving"] == "0 B/s to the GPU, 0 B/s to the CPU (measured)"
    assert found["  faults"] == "30/s by the GPU, 4/s by the CPU"
    refused = {**gpu_sample()["paged"], "page_moves_reason": "another profiler has CUPTI already"}
    found = dict(monitor.rows(gpu_sample(paged=refused)))
    assert found["  page moves"] == "n/a (another profiler has CUPTI already)"


def test_shared_gpu_memory_has_a_row_where_windows_tells_it() -> None:
    sample = gpu_sample()
    assert "  shared GPU memory" not in dict(monitor.rows(sample))
    sample["host"]["process_shared_gpu_bytes"] = GIB
    assert dict(monitor.rows(sample))["  shared GPU memory"] == "1.00 GiB"
