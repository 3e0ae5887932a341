"""The same rows through other programs: a bare loop of transformers, PEFT and bitsandbytes, TRL, Unsloth. Imports the ML stack."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RANK, ALPHA = 16, 32
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PADDING_LABEL = -100


@dataclass(frozen=True)
class Load:
    """What everybody trains: rows of (token ids, labels), `micro_batch` at once, `accumulation` of these a step."""

    folder: Path
    rows: Sequence[tuple[list[int], list[int]]]
    micro_batch: int
    accumulation: int
    device: str
    seq_len: int

    @property
    def rows_per_step(self) -> int:
        return self.micro_batch * self.accumulation

    @property
    def steps(self) -> int:
        return len(self.rows) // self.rows_per_step


@dataclass(frozen=True)
class Pace:
    """Real tokens a second, padding not counted, over the steps after the first two; the peak that was allocated."""

    tokens_per_second: float
    peak_bytes: int | None


class Clock:
    """Takes the time of each step; the device has finished what it was given."""

    def __init__(self, load: Load) -> None:
        self._is_cuda, self._times, self._sizes = load.device == "cuda", [], []
        gc.collect()
        if self._is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._last = time.perf_counter()

    def step_over(self, tokens: int) -> None:
        if self._is_cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._times.append(now - self._last)
        self._sizes.append(tokens)
        self._last = now

    def pace(self) -> Pace:
        skipped = min(2, len(self._times) - 1)
        rate = sum(self._sizes[skipped:]) / sum(self._times[skipped:])
        return Pace(rate, self.peak())

    def peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self._is_cuda else None


def quantized(load: Load) -> Any:
    """The base as anybody would load it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch.bfloat16 if load.device == "cuda" else torch.float32
    return AutoModelForCausalLM.from_pretrained(
        str(load.folder),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
        dtype=dtype,
        device_map={"": 0 if load.device == "cuda" else "cpu"},
    )  # fmt: skip


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def padded(rows: Iterable[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """A batch on the CPU, padded to its longest row."""
    chosen = list(rows)
    width = max(len(ids) for ids, _ in chosen)
    return {
        "input_ids": torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in chosen]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in chosen]),
        "labels": torch.tensor([labels + [PADDING_LABEL] * (width - len(labels)) for _, labels in chosen]),
    }


def bare_loop(load: Load) -> Pace:
    """What a short script does: transformers' own loss over all logits, checkpointing, paged 8-bit AdamW."""
    import bitsandbytes
    from peft import get_peft_model

    base = quantized(load)
    base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()
    model = get_peft_model(base, lora())
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    kind = bitsandbytes.optim.PagedAdamW8bit if load.device == "cuda" else torch.optim.AdamW
    optimizer = kind(trained, lr=2e-4)
    clock = Clock(load)
    for step in range(load.steps):
        rows = load.rows[step * load.rows_per_step :][: load.rows_per_step]
        for start in range(0, len(rows), load.micro_batch):
            batch = {key: value.to(load.device) for key, value in padded(rows[start : start + load.micro_batch]).items()}  # fmt: skip
            (model(**batch, use_cache=False).loss / load.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.3)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step_over(sum(len(ids) for ids, _ in rows))
    return clock.pace()


def trl(load: Load) -> Pace:
    """TRL's trainer with its own defaults where nothing else is said."""
    return by_trl(load, quantized(load), lora())


def unsloth(load: Load) -> Pace:
    """Unsloth as its notebooks use it: its model and adapters in TRL's trainer. It changes transformers and TRL for the
    whole process, so nothing else is measured after it."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(load.folder), max_seq_length=load.seq_len, dtype=None, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none", target_modules=list(PROJECTIONS),
        use_gradient_checkpointing="unsloth", random_state=7,
    )  # fmt: skip
    return by_trl(load, model, None)


def by_trl(load: Load, model: Any, peft_config: Any) -> Pace:
    """The rows through TRL's trainer; `peft_config` is None where the model has its adapters already."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    is_cuda = load.device == "cuda"
    arguments = SFTConfig(
        output_dir=str(load.folder.parent / "trl"), per_device_train_batch_size=load.micro_batch,
        gradient_accumulation_steps=load.accumulation, max_steps=load.steps, learning_rate=2e-4, max_length=load.seq_len,
        optim="paged_adamw_8bit" if is_cuda else "adamw_torch", bf16=is_cuda, use_cpu=not is_cuda, report_to=[],
        save_strategy="no", logging_strategy="no", gradient_checkpointing=True, disable_tqdm=True,
        gradient_checkpointing_kwargs={"use_reentrant": False}, remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True}, max_grad_norm=0.3, dataloader_pin_memory=is_cuda,
    )  # fmt: skip
    seen: list[int] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        seen.extend(len(row["input_ids"]) for row in rows)
        return padded((row["input_ids"], row["labels"]) for row in rows)

    clock = Clock(load)

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step_over(sum(seen[: load.rows_per_step]))
            del seen[: load.rows_per_step]

    rows = Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in load.rows])
    trainer = SFTTrainer(
        model, args=arguments, train_dataset=rows, peft_config=peft_config, data_collator=collate,
        processing_class=AutoTokenizer.from_pretrained(str(load.folder)), callbacks=[Steps()],
    )  # fmt: skip
    trainer.train()
    return clock.pace()
