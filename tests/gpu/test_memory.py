"""What only an NVIDIA GPU can confirm: the allocator's peak, reserve and what the driver shows, against the estimate."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import psutil
import pytest
import torch

from qlora_engine import adapters
from qlora_engine.config import ModelSettings
from qlora_engine.data.batches import Batch
from qlora_engine.device import plan_device
from qlora_engine.memory import context
from qlora_engine.memory.context_probe import taken, used_by_uuid
from qlora_engine.memory.estimate import estimate
from qlora_engine.memory.rehearsal import Question, rehearse
from qlora_engine.models import loading, spec
from qlora_engine.monitor import paging
from qlora_engine.monitor.nvml import Nvml
from qlora_engine.spare import Spare
from qlora_engine.training import loss, optim
from tests.engine.memory.settings import SIZE, config
from tests.support.tiny import make_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]
WIDE = {**SIZE, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "head_dim": 64}


@pytest.mark.parametrize("is_checkpointed", [True, False])
@pytest.mark.parametrize("loss_kind", ["chunked", "full"])
def test_the_allocators_peak_is_the_predicted_one(
    is_checkpointed: bool, loss_kind: str, tmp_path: Path
) -> None:
    folder = make_tiny("llama", tmp_path / "llama", **WIDE)
    settings = config(training__gradient_checkpointing=is_checkpointed, training__loss=loss_kind)
    facts = spec.facts_of_folder(folder)
    plan = plan_device(ModelSettings(device="cuda"))
    loaded = loading.load_quantized(folder, settings.quantization, plan)
    model, _ = adapters.attach(loaded.model, settings.lora)
    model.train()
    if is_checkpointed:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model.get_base_model().enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optim.build(settings.training, trained)
    ids = torch.randint(5, 300, (1, 1024), device=plan.name)
    batch = Batch(ids, ids.clone(), None, None, ids.numel())
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        loss.summed_loss(model, batch, kind=loss_kind).backward()
        optim.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    measured = torch.cuda.max_memory_allocated() + paging.managed_bytes()
    closed = estimate(facts, settings, seq_len=1024, micro_batch=1).double_quant
    rehearsed = rehearse(Question(facts, settings, 1024, 1)).double_quant
    assert rehearsed.peak_bytes == pytest.approx(measured, rel=0.05)
    assert closed.peak_bytes == pytest.approx(measured, rel=0.08)
    assert torch.cuda.max_memory_reserved() + paging.managed_bytes() < closed.device_high


def test_an_empty_process_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path))
    name, version = torch.cuda.get_device_name(0), torch.__version__
    first = context.ensure(name, version)
    assert first.problem == ""
    assert first.bytes_ is not None
    assert 64 * context.MIB < first.bytes_ < 2048 * context.MIB
    assert context.ensure(name, version).unix_time == first.unix_time
    assert context.context_of().likely_bytes == first.bytes_


def test_this_process_takes_what_the_empty_one_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has run far more kernels than the probe: more than it, and not above the high end."""
    monkeypatch.setenv("QLORA_HOME", str(tmp_path))
    context.ensure(torch.cuda.get_device_name(0), torch.__version__)
    found, nvml = context.context_of(), Nvml()
    assert nvml.start()
    gc.collect()
    own = taken(nvml, str(torch.cuda.get_device_properties(0).uuid), os.getpid(), used_by_uuid(nvml))
    besides = own - torch.cuda.memory_reserved() + torch.cuda.memory_allocated()
    assert 0.9 * found.low_bytes < besides < found.high_bytes


def test_an_engine_that_waits_holds_nothing_of_a_gpu() -> None:
    """It imports torch and transformers, and must not make a context."""
    nvml, spare = Nvml(), Spare()
    assert nvml.start()
    try:
        spare.prepare()
        time.sleep(20)
        assert spare._waiting is not None
        pid = spare._waiting.process.pid
        assert psutil.Process(pid).cpu_times().user > 1, "it has imported nothing yet"
        for index in range(int(nvml.device_count())):
            processes = nvml.processes(nvml.device(index))
            assert pid not in [one.pid for one in processes]
    finally:
        spare.end()
        nvml.stop()
