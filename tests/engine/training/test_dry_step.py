"""The step on the longest rows counts its memory without multiplying, and leaves no trace."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlora_engine import adapters
from qlora_engine.config import LoraSettings, ModelSettings, QuantizationSettings, TrainingSettings
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.device import plan_device
from qlora_engine.memory.tracker import PRODUCTS, LiveBytes
from qlora_engine.models import loading
from qlora_engine.training import steps
from qlora_engine.training.fast import install, segments
from tests.support.step_counts import StepCounts
from tests.support.tiny import VOCAB, make_tiny

PLAIN = TrainingSettings(join_rows=False, fused_adapters=False, fused_elementwise=False, kept_weights_gib=0.0)
WAYS = {"plain": PLAIN, "fast": TrainingSettings()}
MULTIPLYING = {str(product) for product in PRODUCTS}


def rows() -> list[TokenRow]:
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(4, VOCAB, (n,), generator=generator).tolist() for n in (37, 5, 21, 33)]
    return [TokenRow(one, [True] * len(one), 0, lengths=(len(one),)) for one in ids]


def parts_of(folder: Path, settings: TrainingSettings, *, has_experts: bool = False) -> Any:
    plan = plan_device(ModelSettings(device="cpu"))
    base = loading.load_quantized(folder, QuantizationSettings(), plan).model
    model, _ = adapters.attach(base, LoraSettings(rank=4), seed=1)
    model.train()
    fast = install.install(model, settings, rows(), device="cpu", spare_bytes=1 << 40)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    return SimpleNamespace(
        fast=fast, pad_token_id=0, model=model, loss_kind="chunked", router=None, optimizer=optimizer, has_experts=has_experts,
        plan=SimpleNamespace(name="cpu", kind="cpu"), transient_peak_bytes=None,
    )  # fmt: skip


def tried(parts: Any) -> tuple[int, int]:
    """(most bytes alive, matrix products that were computed) of a dry step."""
    segments.layout.cache_clear()  # each makes its own
    with StepCounts() as counting:
        steps.dry_step(parts, rows(), 3)
    return parts.transient_peak_bytes, sum(counting.by_name[name] for name in MULTIPLYING)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text", "gpt2"])
def test_as_much_is_alive_as_in_a_whole_step_and_nothing_is_multiplied(
    tmp_path: Path, architecture: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(make_tiny(architecture, tmp_path / "model"), WAYS[way])
    peak, products = tried(parts)
    monkeypatch.setattr(steps, "LiveBytes", lambda known, multiplies: LiveBytes(known, multiplies=True))
    whole_peak, whole_products = tried(parts)
    assert peak == whole_peak > 0
    assert products == 0 < whole_products


def test_a_model_with_experts_computes(tmp_path: Path) -> None:
    """Which of them are reached, and so how much is alive, hangs on the numbers."""
    assert tried(parts_of(make_tiny("llama", tmp_path / "model"), PLAIN, has_experts=True))[1] > 0


def test_no_trace_is_left(tmp_path: Path) -> None:
    parts = parts_of(make_tiny("llama", tmp_path / "model"), WAYS["fast"])
    before, state = {n: p.clone() for n, p in parts.model.named_parameters()}, torch.get_rng_state()
    tried(parts)
    assert all(torch.equal(p, before[n]) for n, p in parts.model.named_parameters())
    assert all(p.grad is None for p in parts.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_stands_for_a_product_has_its_shape_and_type() -> None:
    a, b, batched = torch.ones(2, 3), torch.ones(3, 4), torch.ones(5, 2, 3)
    products = [
        partial(torch.mm, a, b), partial(torch.mm, a.double(), b.double()), partial(torch.bmm, batched, batched.mT),
        partial(torch.addmm, torch.ones(4), a, b, alpha=2.0), partial(torch.baddbmm, torch.ones(5, 2, 2), batched, batched.mT),
    ]  # fmt: skip
    for product in products:
        with LiveBytes(multiplies=False) as live:
            found = product()
        wanted = product()
        assert (found.shape, found.dtype, found.stride()) == (wanted.shape, wanted.dtype, wanted.stride())
        assert live.peak_bytes == wanted.nbytes
        assert not found.any()
