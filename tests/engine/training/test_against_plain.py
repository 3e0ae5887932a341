"""The loss curve is that of a short loop written with nothing but transformers, PEFT, bitsandbytes and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, get_scheduler

from qlora_engine import data
from qlora_engine.config import TrainingConfig
from qlora_engine.data.batches import order
from tests.engine.training.conftest import MakeConfig
from tests.support import tiny_runs
from tests.support.tiny import make_tiny

STEPS = 8
ALLOWED = 1e-4
WHOLE = {"intermediate_size": 128}
ONE_LAYER = {"num_hidden_layers": 1, **WHOLE}
Row = tuple[list[int], list[int]]


def tokens_and_labels(config: TrainingConfig) -> list[Row]:
    """Every training row as (input ids, labels)."""
    tokenizer = AutoTokenizer.from_pretrained(config.model.name)
    prepared = data.prepare(config.data, tokenizer, seed=config.training.seed, model_max_length=256)
    return [
        (row.input_ids, [t if on else -100 for t, on in zip(row.input_ids, row.trained, strict=True)])
        for row in prepared.train
    ]


def padded(group: list[Row]) -> dict[str, torch.Tensor]:
    width = max(len(ids) for ids, _ in group)
    return {
        "input_ids": torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group]),
        "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in group]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in group]),
    }


def plain_curve(config: TrainingConfig, optimizer_class: Any, *, mean_of_means: bool = False) -> list[float]:
    """The loss of each step, per trained token of the whole step."""
    settings, lora = config.training, config.lora
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        config.model.name, quantization_config=quantization, dtype=torch.float32, device_map={"": "cpu"}
    )
    torch.manual_seed(settings.seed)
    model = get_peft_model(
        base,
        LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
    ).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_class(trained, lr=settings.learning_rate, weight_decay=0.0)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=STEPS)
    rows, size = tokens_and_labels(config), settings.effective_batch
    visits = [i for epoch in range(STEPS) for i in order(len(rows), settings.seed, epoch)]
    curve = []
    for step in range(STEPS):
        chosen = [rows[i] for i in visits[step * size : (step + 1) * size]]
        counted = sum(label != -100 for _, labels in chosen for label in labels[1:])
        groups = [chosen[k : k + settings.micro_batch] for k in range(0, size, settings.micro_batch or size)]
        total = 0.0
        for group in groups:
            if mean_of_means:
                loss = model(**padded(group)).loss / len(groups)
            else:
                loss = model(**padded(group), num_items_in_batch=counted).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        curve.append(total)
    return curve


def our_curve(config: TrainingConfig) -> list[float]:
    return tiny_runs.losses(tiny_runs.train(config))


def largest_difference(found: list[float], wanted: list[float]) -> float:
    assert len(found) == len(wanted) == STEPS
    return max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of whole blocks: others a plain loop reads with constants that are not theirs (models/four_bit.py)."""
    return make_tiny("llama", tmp_path_factory.mktemp("models") / "whole", **ONE_LAYER)


def curve_config(make_config: MakeConfig, effective: int, micro: int, **changes: Any) -> TrainingConfig:
    """24 rows; eight steps visit them more than once from an effective batch of 4 on."""
    return make_config(
        training__max_steps=STEPS,
        training__effective_batch=effective,
        training__micro_batch=micro,
        training__eval_every_steps=3,
        training__early_stopping=None,
        **changes,
    )


@pytest.mark.parametrize(("effective", "micro"), [(1, 1), (4, 1), (4, 2), (4, 4), (8, 2), (12, 4)])
def test_the_curve_is_that_of_a_plain_loop(make_config: MakeConfig, effective: int, micro: int) -> None:
    config = curve_config(make_config, effective, micro)
    wanted = plain_curve(config, torch.optim.AdamW)
    assert largest_difference(our_curve(config), wanted) < ALLOWED
    assert min(wanted) < 0.99 * wanted[0]  # it learns, so that an update that went wrong would be seen


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_the_curve_is_that_of_a_plain_loop_for_two_layers_of_several_families(
    make_config: MakeConfig, tmp_path: Path, architecture: str
) -> None:
    model = make_tiny(architecture, tmp_path / architecture, **WHOLE)  # two layers, checkpointed
    config = curve_config(make_config, 4, 2, model=model)
    assert largest_difference(our_curve(config), plain_curve(config, torch.optim.AdamW)) < ALLOWED


def test_the_curve_with_eight_bit_adamw_is_that_of_a_plain_loop(make_config: MakeConfig) -> None:
    config = curve_config(make_config, 4, 2, training__optimizer="adamw_8bit", lora__rank=64)
    assert largest_difference(our_curve(config), plain_curve(config, bnb.optim.AdamW8bit)) < ALLOWED


@pytest.mark.parametrize(
    "changes",
    [
        {"training__loss": "full"},
        {"training__gradient_checkpointing": False},
        {"training__loss": "full", "training__gradient_checkpointing": False},
    ],
)
def test_what_saves_memory_does_not_change_the_curve(
    make_config: MakeConfig, changes: dict[str, Any]
) -> None:
    wanted = our_curve(curve_config(make_config, 4, 2))
    assert largest_difference(our_curve(curve_config(make_config, 4, 2, **changes)), wanted) < 1e-5


def test_a_mean_of_means_would_be_noticed(make_config: MakeConfig) -> None:
    """The rows differ in length, so the older way to accumulate gives another curve."""
    config = curve_config(make_config, 4, 1)
    wrong = plain_curve(config, torch.optim.AdamW, mean_of_means=True)
    assert largest_difference(our_curve(config), wrong) > 20 * ALLOWED
