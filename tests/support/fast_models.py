"""Tiny 4-bit models with adapters that have learned something, rows for them, and what a step of them gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from qlora_engine import adapters
from qlora_engine.config import LoraSettings, ModelSettings, QuantizationSettings, TrainingConfig
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.device import plan_device
from qlora_engine.models import loading
from qlora_engine.training import loss
from qlora_engine.training.fast import install, segments
from tests.support.tiny import VOCAB

LENGTHS = (37, 5, 21, 20, 9, 33)


def rows(lengths: tuple[int, ...] = LENGTHS) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for length in lengths:
        ids = torch.randint(4, VOCAB, (length,), generator=generator).tolist()
        made.append(TokenRow(ids, [index > 2 for index in range(length)], 0, lengths=(length,)))
    return made


def load(folder: Path, lora: LoraSettings | None = None, *, is_checkpointed: bool = False) -> Any:
    """A 4-bit model with adapters whose B is not zero, so that every gradient is."""
    plan = plan_device(ModelSettings(device="cpu"))
    base = loading.load_quantized(folder, QuantizationSettings(), plan).model
    model, _ = adapters.attach(base, lora or LoraSettings(rank=4), seed=1)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.train()
    if is_checkpointed:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model.get_base_model().enable_input_require_grads()
    return model


def step(model: Any, fast: install.FastPaths, micro_batch: int = 3) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss of all rows and the gradient of every adapter."""
    total, made = 0.0, list(fast.arranged(rows()))
    for start in range(0, len(made), micro_batch):
        batch = fast.batch(made[start : start + micro_batch], 0)
        with segments.running(batch):
            summed = loss.summed_loss(model, batch)
            summed.backward()
        total += float(summed.detach())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return total, gradients


def furthest(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    assert found.keys() == wanted.keys()
    assert all(one.abs().max() > 0 for one in wanted.values())
    return max(float((found[n] - wanted[n]).norm() / wanted[n].norm()) for n in wanted)


def parts_of(model: Any, fast: install.FastPaths) -> Any:
    """What an optimizer step works with."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, fused=True)
    return SimpleNamespace(
        config=TrainingConfig(), fast=fast, pad_token_id=0, model=model, loss_kind="chunked", router=None, optimizer=optimizer,
        scaler=torch.amp.GradScaler("cpu", enabled=False), plan=SimpleNamespace(name="cpu", kind="cpu"),
        scheduler=SimpleNamespace(step=lambda: None),
    )  # fmt: skip
