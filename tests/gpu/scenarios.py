"""What is done on a GPU to confirm what the program says of memory, each scenario in a process of its own.

Managed buffers are never given back while a process lives. None asks for more managed memory than a quarter of what the
card has free: more than there is can hang the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024**2
GIB = 1024**3
HZ = 4.0
SIDE = 8192
"""Of the square parameter whose state is moved: 512 MiB in two moments of 32 bits."""


def in_own_process(scenario: str) -> dict[str, Any]:
    """What a scenario of this module found.

    Raises:
        RuntimeError: its process failed, with the end of what it said.
    """
    script = f"import json; from tests.gpu import scenarios as s; print(json.dumps(s.{scenario}()))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{scenario} ended with exit code {done.returncode}: {done.stderr[-3000:]}")
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

    if why_not := why_no_room(amount):
        raise MemoryError(why_not)
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


def page_out() -> dict[str, Any]:
    """A paged optimizer's state, asked of the driver to go to the computer's memory, and used again by a step.

    Far less managed memory than is free: more than the card has can hang the machine, not only this process.
    """
    import torch

    from qlora_engine.config import TrainingSettings
    from qlora_engine.training import optim

    engine = Engine()
    if why_not := why_no_room(2 * 4 * SIDE * SIDE):
        engine.close()
        return {"why_not": why_not}
    engine.sample()
    start = torch.randn(SIDE, SIDE, device="cuda:0", generator=torch.Generator("cuda:0").manual_seed(0))
    paged, plain = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [
        optim.build(TrainingSettings(optimizer=name), [parameter])
        for name, parameter in (("paged_adamw_32bit", paged), ("adamw_torch_fused", plain))
    ]

    def step() -> None:
        for optimizer, parameter in zip(optimizers, (paged, plain), strict=True):
            parameter.grad = torch.full_like(parameter, 0.01)
            optim.step(optimizer)
        torch.cuda.synchronize()

    step()
    filled = engine.sample()["paged"]
    sent, driver = send_to_computer()
    engine.flags["was_read_by_cpu"] = True  # as after a checkpoint: measure instead of knowing
    out = engine.sample()["paged"]
    step()
    back = engine.sample()["paged"]
    engine.close()
    return {
        "filled": filled, "out": out, "back": back, "sent_bytes": sent, "driver": driver,
        "is_same": bool(torch.allclose(paged, plain, atol=1e-6)),
    }  # fmt: skip


def send_to_computer() -> tuple[int, str]:
    """Have the driver move every managed buffer to the computer's memory; (bytes, `moved` or its error number).

    bitsandbytes' own prefetch to the CPU ends the process with a CUDA error; the driver's call of before CUDA 13, which
    every driver still has, takes the processor as device -1.
    """
    import ctypes

    import bitsandbytes.functional as functional
    import torch

    call = ctypes.CDLL("libcuda.so.1").cuMemPrefetchAsync
    call.argtypes = [ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    buffers = functional.GlobalPageManager.get_instance().paged_tensors
    codes = {call(buffer.data_ptr(), buffer.nbytes, -1, None) for buffer in buffers}
    torch.cuda.synchronize()
    words = "moved" if codes == {0} else f"driver error {sorted(codes)}"
    return sum(buffer.nbytes for buffer in buffers), words


def why_no_room(amount: int) -> str | None:
    """Why managed memory of `amount` bytes is too much for this card now, or None: a quarter of what is free at most."""
    import torch

    free = torch.cuda.mem_get_info(0)[0]
    if 4 * amount <= free:
        return None
    return f"{amount / GIB:.2f} GiB of managed memory is more than a quarter of the {free / GIB:.2f} GiB that are free"


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
