"""What only an NVIDIA GPU can confirm of experts in 4 bits: that those kept on the host are pinned, arrive in time, and save room."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_engine import adapters
from qlora_engine.config import LoraSettings, ModelSettings, QuantizationSettings, TrainingSettings
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.device import plan_device
from qlora_engine.models import loading
from qlora_engine.models.experts.stack import stacks_of
from qlora_engine.training import loss
from qlora_engine.training.fast import install, segments
from tests.support.tiny import make_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]
DEVICE = "cuda"
BLOCKS = 6
SHAPE = {
    "hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 512, "num_hidden_layers": BLOCKS,
    "num_experts": 16, "num_experts_per_tok": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
"""Six blocks of 12.6 million weights in experts: 6.6 MB each in 4 bits."""


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("qwen3_moe", tmp_path_factory.mktemp("models") / "mixture", **SHAPE)


def trained(folder: Path, placement: str, steps: int = 4) -> tuple[Any, list[float], int]:
    """The model, the losses, and the most that was allocated from the first step on."""
    plan = plan_device(ModelSettings(device=DEVICE))
    loaded = loading.load_quantized(folder, QuantizationSettings(expert_placement=placement), plan)
    model, _ = adapters.attach(loaded.model, LoraSettings(rank=8), seed=1)
    model.train()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids = (torch.arange(256).view(2, 128) * 7 % 300).to(plan.name)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return model, losses, torch.cuda.max_memory_allocated()


def test_experts_on_the_host_give_the_same_losses_in_less_memory(mixture: Path) -> None:
    """Four of six blocks' experts are never on the GPU; a copy that came too late would change a loss."""
    model, there, most_there = trained(mixture, "device")
    block = sum(stack.stored.packed.nbytes for name, stack in stacks_of(model).items() if ".0." in name)
    del model
    _, from_host, most_from_host = trained(mixture, "host")
    assert from_host == pytest.approx(there, rel=1e-6)
    assert from_host[-1] < from_host[0]
    assert most_there - most_from_host > 0.9 * (BLOCKS - 2) * block


def test_what_waits_on_the_host_is_pinned(mixture: Path) -> None:
    model, _, _ = trained(mixture, "host", steps=1)
    for stack in stacks_of(model).values():
        assert all(tensor.device.type == "cpu" and tensor.is_pinned() for tensor in stack.stored.tensors())
        assert stack.place is not None


def test_the_next_block_is_copied_while_one_computes(mixture: Path) -> None:
    """Copies to the GPU run on a stream of their own and overlap the kernels of another."""
    model, _, _ = trained(mixture, "host", steps=1)
    ids = (torch.arange(256).view(2, 128) * 7 % 300).to(DEVICE)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.no_grad(), torch.profiler.profile(activities=activities) as profiled:
        model(input_ids=ids, use_cache=False)
        torch.cuda.synchronize()
    on_card = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    copies = [event.time_range for event in on_card if "HtoD" in event.name]
    kernels = [event.time_range for event in on_card if "Memcpy" not in event.name]
    assert copies
    overlapping = sum(any(k.start < c.end and c.start < k.end for k in kernels) for c in copies)
    print(f"{overlapping} of {len(copies)} copies overlap a kernel")
    assert overlapping > 0


GROUPS = {**SHAPE, "num_experts": 64}


def in_groups(folder: Path, wanted: str, rank: int = 8) -> tuple[Any, install.FastPaths, list[TokenRow]]:
    plan = plan_device(ModelSettings(device=DEVICE))
    loaded = loading.load_quantized(folder, QuantizationSettings(), plan)
    model, _ = adapters.attach(loaded.model, LoraSettings(rank=rank, experts=True), seed=1)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 300, (4, 200), generator=generator).tolist()
    rows = [TokenRow(row, [True] * len(row), 0, lengths=(len(row),)) for row in ids]
    settings = TrainingSettings(group_experts=wanted)
    fast = install.install(model.train(), settings, rows, device=DEVICE, spare_bytes=1 << 34)
    return model, fast, rows


def gradients(
    model: Any, fast: install.FastPaths, rows: list[TokenRow]
) -> tuple[float, dict[str, torch.Tensor]]:
    batch = fast.batch(rows, 0).to(DEVICE)
    with segments.running(batch):
        summed = loss.summed_loss(model, batch)
        summed.backward()
    return float(summed.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rank", [8, 4])
def test_experts_in_groups_learn_what_they_learn_one_by_one(tmp_path: Path, rank: int) -> None:
    """torch's grouped product in bf16, forward and for every gradient; the trial on the loaded model is expected to say yes. Four
    rows reach not every expert: what none was sent to learns nothing."""
    folder = make_tiny("qwen3_moe", tmp_path / "mixture", **GROUPS)
    wanted_loss, wanted = gradients(*in_groups(folder, "off", rank))
    model, fast, rows = in_groups(folder, "auto", rank)
    assert "group_experts" not in fast.why_not
    assert fast.grouped_bytes
    found_loss, found = gradients(model, fast, rows)
    assert found_loss == pytest.approx(wanted_loss, rel=3e-2)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert bool(gradient.isfinite().all()), name
        assert float((gradient - wanted[name]).norm()) <= 0.1 * float(wanted[name].norm()) + 1e-6, name


def test_experts_in_groups_do_not_wait_for_the_device(tmp_path: Path) -> None:
    """No read of a device value between the first block and the last, forward and backward; and a step takes less time."""
    folder = make_tiny("qwen3_moe", tmp_path / "mixture", **GROUPS)
    seconds = {}
    for wanted in ("off", "auto"):
        model, fast, rows = in_groups(folder, wanted)
        batch = fast.batch(rows, 0).to(DEVICE)
        with segments.running(batch):
            loss.summed_loss(model, batch).backward()  # kernels are chosen and loaded
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error" if wanted == "auto" else "default")
            began = time.perf_counter()
            try:
                loss.summed_loss(model, batch).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        seconds[wanted] = time.perf_counter() - began
    print(f"a step of 64 experts: {seconds['off']:.3f} s one by one, {seconds['auto']:.3f} s in groups")
    assert seconds["auto"] < seconds["off"]
