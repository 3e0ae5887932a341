"""What only an NVIDIA GPU can confirm about memory: managed bytes, where they are, and NVML against torch and nvidia-smi.

Managed buffers are never given back while a process lives, so each scenario is a process of its own. Filling the card
until the driver evicts pages can hang a GPU: that one runs only with QLORA_TEST_EVICTION=1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024**2
GIB = 1024**3
HZ = 4.0


@pytest.fixture(autouse=True)
def _needs_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")


def result_of(scenario: str) -> dict[str, Any]:
    """What a scenario of this module found, run in a process of its own."""
    script = f"import json; from tests.gpu import test_monitor as t; print(json.dumps(t.{scenario}()))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{scenario}: {found}")
    return found


class Engine:
    """This process's sampler with the sources that a run's trace has."""

    def __init__(self) -> None:
        import torch

        from qlora_engine.monitor import paging
        from qlora_engine.monitor.sampler import Sampler

        torch.zeros(1, device="cuda:0")  # the context is part of the baseline
        uuid = str(torch.cuda.get_device_properties(0).uuid)
        self.flags: dict[str, bool] = {}
        self.sampler = Sampler(
            HZ,
            paged_source=lambda: {"managed_bytes": paging.managed_bytes(), **self.flags},
            torch_source=lambda: {
                "gpu_uuid": uuid,
                "allocated_bytes": torch.cuda.memory_allocated(0),
                "reserved_bytes": torch.cuda.memory_reserved(0),
            },
        )
        self.sampler.start(own_beat=False)
        assert self.sampler.wait_for_driver(10.0)

    def sample(self) -> dict[str, Any]:
        """The next sample whose GPU figures were read after this call."""
        time.sleep(2 / HZ)
        return self.sampler.sample()

    def close(self) -> None:
        self.sampler.stop()


def managed_buffer(amount: int) -> Any:
    """A buffer as bitsandbytes makes one for a paged state, filled on the GPU."""
    import bitsandbytes.functional as functional
    import torch

    buffer = functional.get_paged(amount // 4, dtype=torch.float32, device=torch.device("cuda", 0))
    functional.fill(buffer, 0)
    functional.GlobalPageManager.get_instance().paged_tensors.append(buffer)
    torch.cuda.synchronize()
    return buffer


def used_by_run(sample: dict[str, Any]) -> dict[str, Any]:
    from qlora_engine.monitor.residency import gpu_of_run

    gpu = gpu_of_run(sample)
    assert gpu is not None, "the GPU that torch names by UUID is not among NVML's"
    return dict(gpu)


# ---------------------------------------------------------------- scenarios


def count_managed() -> dict[str, Any]:
    """A paged optimizer over tensors on both sides of 100,000 elements, two steps."""
    import torch

    from qlora_engine.config import TrainingSettings
    from qlora_engine.monitor import paging
    from qlora_engine.training import optim

    shapes = [(2048, 1024), (400, 250), (399, 250), (64, 64)]
    parameters = [torch.nn.Parameter(torch.randn(shape, device="cuda:0")) for shape in shapes]
    optimizer = optim.build(TrainingSettings(optimizer="paged_adamw_32bit"), parameters)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.01)
        optim.step(optimizer)
    before = paging.optimizer_report(optimizer)
    tensors, numbers = optim.export_state(optimizer)
    resumed = optim.build(TrainingSettings(optimizer="paged_adamw_32bit"), parameters)
    managed = paging.managed_bytes()
    optim.import_state(resumed, tensors, numbers)
    return {
        "paged": before.paged_bytes,
        "pageable": before.pageable_bytes,
        "managed": managed,
        "expected": sum(2 * 4 * a * b for a, b in shapes if a * b >= 100_000),
        "resumed": paging.optimizer_report(resumed).paged_bytes,
        "added": paging.managed_bytes() - managed,
    }


def grow_torch() -> dict[str, Any]:
    """NVML before and after torch takes 2 GiB."""
    import torch

    engine = Engine()
    before = engine.sample()
    held = torch.empty(2 * GIB, dtype=torch.uint8, device="cuda:0")
    after = engine.sample()
    time.sleep(6.0)  # process lists are read every 5 s
    later = engine.sample()
    engine.close()
    grown = used_by_run(after)["used_bytes"] - used_by_run(before)["used_bytes"]
    return {
        "nvml": grown,
        "torch": after["torch"]["reserved_bytes"] - before["torch"]["reserved_bytes"],
        "held": held.nbytes,
        "own": used_by_run(later)["own_bytes"],
        "reserved": later["torch"]["reserved_bytes"],
        "why_no_own": used_by_run(later)["unavailable"].get("own_bytes"),
    }


def touch_from_cpu() -> dict[str, Any]:
    """1 GiB managed on the GPU, half of it read by the CPU, then used by the GPU again."""
    import bitsandbytes.functional as functional

    engine = Engine()
    engine.sample()
    buffer = managed_buffer(GIB)
    filled = engine.sample()["paged"]
    engine.flags["was_read_by_cpu"] = True  # as after a checkpoint: measure instead of knowing
    measured = engine.sample()["paged"]
    float(buffer[: len(buffer) // 2].sum())
    touched = engine.sample()["paged"]
    functional.prefetch_tensor(buffer)
    back = engine.sample()["paged"]
    engine.close()
    return {"filled": filled, "measured": measured, "touched": touched, "back": back}


def evict() -> dict[str, Any]:
    """2 GiB managed, then 1 GiB more of ordinary memory than there is free."""
    import torch

    engine = Engine()
    engine.sample()
    managed_buffer(2 * GIB)
    engine.sample()
    free, _ = torch.cuda.mem_get_info(0)
    held = torch.empty(free + GIB, dtype=torch.uint8, device="cuda:0")
    held.fill_(1)
    torch.cuda.synchronize()
    found = engine.sample()
    engine.close()
    return {"paged": found["paged"], "free_before": free, "held": held.nbytes}


def count_moves() -> dict[str, Any]:
    """What CUPTI counts while half of 256 MiB managed goes to the CPU and comes back."""
    from qlora_engine.monitor.page_moves import PageMoves

    moves = PageMoves()
    moves.start()  # before the context
    if moves.why_not is not None:
        return {"why_not": moves.why_not}
    import bitsandbytes.functional as functional
    import torch

    buffer = managed_buffer(256 * MIB)
    time.sleep(0.5)
    filled = moves.counts()
    float(buffer[: len(buffer) // 2].sum())
    time.sleep(0.5)
    touched = moves.counts()
    functional.prefetch_tensor(buffer)
    torch.cuda.synchronize()
    time.sleep(0.5)
    back = moves.counts()
    moves.stop()
    return {
        "why_not": None,
        "to_cpu": touched.to_cpu_bytes - filled.to_cpu_bytes,
        "cpu_faults": touched.cpu_faults - filled.cpu_faults,
        "to_gpu": back.to_gpu_bytes - touched.to_gpu_bytes,
        "lost": back.lost_records,
        "block": moves.block(),
    }


def train_plain() -> dict[str, Any]:
    return _trained(count_page_moves=False)


def train_counted() -> dict[str, Any]:
    return _trained(count_page_moves=True)


def _trained(*, count_page_moves: bool) -> dict[str, Any]:
    """Losses of four steps of a tiny model on the GPU, and what its trace says of page moves."""
    import tempfile

    from qlora_engine import config_io
    from qlora_engine.config import TrainingConfig, with_value
    from qlora_engine.control import Control
    from qlora_engine.events import StepFinished
    from qlora_engine.jobs import TrainJob
    from qlora_engine.monitor import trace
    from qlora_engine.training import recipe
    from tests.support import tiny

    with tempfile.TemporaryDirectory() as name:
        folder, config = Path(name), TrainingConfig()
        model = tiny.make_tiny("llama", folder / "model", tie_word_embeddings=True)
        data = tiny.write_rows(folder / "rows.jsonl", tiny.instruction_rows(24))
        for path, value in {
            "model.name": str(model), "model.device": "cuda", "data.path": str(data), "data.held_out_fraction": 0.0,
            "output.runs_dir": str(folder / "runs"), "lora.rank": 4, "training.max_steps": 4, "training.effective_batch": 4,
            "training.optimizer": "paged_adamw_32bit", "training.count_page_moves": count_page_moves,
        }.items():  # fmt: skip
            config = with_value(config, path, value)
        events = list(recipe.train(TrainJob(config_io.to_dict(config)), Control()))
        paged = [s["paged"] for s in trace.read(next((folder / "runs").glob("*/memory.jsonl"))).samples]
    return {
        "losses": [e.loss for e in events if isinstance(e, StepFinished)],
        "counted": sum(block.get("moving_kind") == "measured" for block in paged),
        "reasons": sorted({block["page_moves_reason"] for block in paged if "page_moves_reason" in block}),
    }


# ---------------------------------------------------------------- confirmations


def test_managed_bytes_are_bitsandbytes_own_and_paged_again_after_a_resume() -> None:
    found = result_of("count_managed")
    assert found["paged"] == found["pageable"] == found["managed"] == found["expected"]
    assert found["resumed"] == found["added"] == found["expected"]


def test_nvml_sees_what_torch_reserves() -> None:
    found = result_of("grow_torch")
    assert found["torch"] >= found["held"]
    assert found["nvml"] == pytest.approx(found["torch"], rel=0.01, abs=64 * MIB)
    # In some containers the driver lists no process of ours, or hides their memory.
    if found["own"]:
        assert found["reserved"] <= found["own"] <= found["reserved"] + 3 * GIB
    else:
        assert found["own"] == 0 or found["why_no_own"]


def test_the_figures_agree_with_nvidia_smi() -> None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        pytest.skip("there is no nvidia-smi here to compare with")
    from qlora_engine import monitor

    query = "--query-gpu=uuid,memory.total,memory.used,memory.reserved,power.limit"
    (sample,) = monitor.stream(seconds=0.1, hz=HZ)
    shown = subprocess.run(
        [tool, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    by_uuid = {gpu["uuid"]: gpu for gpu in sample["gpus"] if gpu["mig_index"] is None}
    for line in shown.strip().splitlines():
        uuid, total, used, reserved, limit = (field.strip() for field in line.split(","))
        gpu = by_uuid[uuid]
        assert gpu["total_bytes"] == pytest.approx(int(total) * MIB, rel=0.01)
        assert gpu["used_bytes"] == pytest.approx(int(used) * MIB, rel=0.01, abs=16 * MIB)
        if reserved.isdigit():
            assert gpu["reserved_bytes"] == pytest.approx(int(reserved) * MIB, rel=0.01, abs=2 * MIB)
        if gpu["power_limit_watts"] is not None:
            assert gpu["power_limit_watts"] == pytest.approx(float(limit), rel=0.01)


def test_pages_touched_by_the_cpu_are_seen_in_the_next_sample() -> None:
    found = result_of("touch_from_cpu")
    assert found["filled"]["on_gpu_bytes"] == GIB
    assert found["filled"]["residency_kind"] == "accounted"
    touched = found["touched"]
    if (
        touched["on_cpu_bytes"] is None
    ):  # a driver that leaves managed pages out of its count must be found out
        assert touched["residency_reason"] == "this driver does not count managed memory as used"
        return
    assert found["measured"]["on_cpu_bytes"] <= found["measured"]["uncertainty_bytes"]
    assert touched["residency_kind"] == "estimated"
    assert abs(touched["on_cpu_bytes"] - GIB // 2) <= touched["uncertainty_bytes"]
    assert touched["to_cpu_bytes_per_second"] > 0
    assert found["back"]["on_cpu_bytes"] <= found["back"]["uncertainty_bytes"]


def test_cupti_counts_what_moves() -> None:
    """Needs the extra `gpu`. The driver moves whole blocks of up to 2 MiB, and may fetch ahead."""
    found = result_of("count_moves")
    if found["why_not"] is not None:
        pytest.skip(f"page moves cannot be counted here: {found['why_not']}")
    half = 128 * MIB
    assert half <= found["to_cpu"] <= half + 8 * MIB
    assert found["cpu_faults"] > 0
    assert half <= found["to_gpu"] <= half + 8 * MIB
    assert found["lost"] == 0
    assert found["block"]["moving_kind"] == "measured"


def test_a_run_with_page_moves_counted_trains_as_one_without() -> None:
    """The switch is only a look: the losses are the same, and the trace has the counted rates."""
    off, on = result_of("train_plain"), result_of("train_counted")
    assert off["losses"] == on["losses"]
    assert on["reasons"] or on["counted"] > 0


@pytest.mark.skipif(
    os.environ.get("QLORA_TEST_EVICTION") != "1",
    reason="fills the card until the driver evicts, which can hang a GPU: set QLORA_TEST_EVICTION=1",
)
def test_evicted_pages_are_estimated_within_tolerance() -> None:
    found = result_of("evict")
    paged = found["paged"]
    assert paged["managed_bytes"] == 2 * GIB
    assert paged["residency_kind"] == "estimated"
    assert paged["on_gpu_bytes"] + paged["on_cpu_bytes"] == 2 * GIB
    # At least what did not fit; the driver evicts in blocks of 2 MiB and keeps a little free.
    assert GIB - paged["uncertainty_bytes"] <= paged["on_cpu_bytes"] <= GIB + 512 * MIB
