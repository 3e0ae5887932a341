"""The programs that the speed table compares, each training the same rows of the starter from the same start.

Every measurement takes the steps after the first one; tokens are real ones, padding is not counted. Imports the ML stack.
"""

from __future__ import annotations

import contextlib
import gc
import json
import random
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from qlora_engine import data
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.control import Control
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.events import PlanMade, StepFinished
from qlora_engine.models import loading
from tests.support import tiny_runs
from tests.support.starter import starter_folder
from tests.support.step_counts import Counts, StepCounts

ROWS, SEQ_LEN, PACKED_PER_STEP, ROWS_PER_STEP, STEPS = 72, 512, 2, 8, 3
COUNTED_STEP = 1
RANK, ALPHA, RATE = 16, 32, 2e-4
SHAPE_COUNTS = {(576, 576): 60, (192, 576): 60, (1536, 576): 60, (576, 1536): 30}
"""The starter's linear layers by (out, in)."""
HEAD = 576 * 49152
SUBJECTS = [
    "the garden",
    "a small boat",
    "the night train",
    "our kitchen",
    "this old map",
    "the river",
    "a paper lamp",
]
VERBS = [
    "Describe",
    "Explain",
    "List three facts about",
    "Write a short note on",
    "Compare the past and future of",
]
WORDS = [
    "it",
    "stands",
    "quiet",
    "under",
    "morning",
    "light",
    "while",
    "people",
    "pass",
    "with",
    "baskets",
    "and",
    "slow",
    "talk",
    "about",
    "weather",
    "bread",
    "wood",
    "and",
    "the",
    "price",
    "of",
    "tea",
    "until",
    "evening",
    "brings",
    "lanterns",
    "music",
    "and",
    "a",
    "wind",
    "from",
    "the",
    "hills",
    "that",
    "smells",
    "of",
    "rain",
]


@dataclass(frozen=True)
class Load:
    """The rows, tokenized once, as themselves and packed; what a token costs at least."""

    folder: Path
    file: Path
    alone: Sequence[TokenRow]
    packed: Sequence[TokenRow]
    trained_share: float
    pairs_per_token: float

    def flops_per_token(self, trained_share: float | None = None) -> float:
        """Forward and the input's gradient of each weight; the head where a token is trained; causal attention, 2 + 5 products."""
        layers = sum(out * inner * count for (out, inner), count in SHAPE_COUNTS.items())
        share = self.trained_share if trained_share is None else trained_share
        return 4 * layers + 4 * HEAD * share + 30 * 14 * 576 * self.pairs_per_token


@dataclass(frozen=True)
class Pace:
    tokens_per_second: float
    peak_bytes: int
    loss: float
    trained_share: float | None = None
    """Of the tokens of the steps that were measured, where the program tells."""


def prepare() -> Load:
    """Rows in the manner of Alpaca, made here: questions of some words, answers of 10 to 250."""
    folder = starter_folder()
    file = Path(tempfile.mkdtemp(prefix="qlora-speed-")) / "rows.json"
    file.write_text(json.dumps(make_rows(ROWS)), encoding="utf-8")
    found = []
    for packing in (False, True):
        config = config_for(folder, file, packing=packing)
        prepared = data.prepare(config.data, loading.load_tokenizer(folder), seed=42, model_max_length=2048)
        found.append(prepared.train)
    alone, packed = found
    tokens = sum(len(row.input_ids) for row in alone)
    share = sum(row.trained_count for row in alone) / tokens
    pairs = sum(length * length / 2 for row in alone for length in row.lengths) / tokens
    return Load(folder, file, alone, packed, share, pairs)


def make_rows(count: int, seed: int = 7) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {
            "instruction": f"{rng.choice(VERBS)} {rng.choice(SUBJECTS)}.",
            "input": " ".join(rng.choices(WORDS, k=rng.choice([0, 0, 0, 12, 30]))),
            "output": " ".join(rng.choices(WORDS, k=min(250, 10 + int(rng.expovariate(1 / 60))))),
        }
        for _ in range(count)
    ]


def config_for(folder: Path, file: Path, *, packing: bool) -> TrainingConfig:
    config = TrainingConfig()
    changes: dict[str, Any] = {
        "model.name": str(folder), "model.device": "cpu", "data.path": str(file), "data.seq_len": SEQ_LEN,
        "data.packing": packing, "data.held_out_fraction": 0.0, "lora.rank": RANK, "lora.alpha": float(ALPHA),
        "training.gradient_checkpointing": False, "training.optimizer": "adamw_torch_fused",
        "training.schedule": "constant", "training.learning_rate": RATE, "training.max_steps": STEPS,
        "training.effective_batch": PACKED_PER_STEP if packing else ROWS_PER_STEP,
        "training.micro_batch": PACKED_PER_STEP if packing else ROWS_PER_STEP,
        "output.runs_dir": str(file.parent / "runs"),
    }  # fmt: skip
    for path, value in changes.items():
        config = with_value(config, path, value)
    return config


def all_of(load: Load, *, has_trl: bool) -> dict[str, Callable[[], Pace]]:
    found: dict[str, Callable[[], Pace]] = {
        "engine, packed": lambda: engine(load, packing=True),
        "engine, padding-free": lambda: engine(load, packing=False),
        "bare loop": lambda: bare_loop(load),
    }
    if has_trl:
        found["TRL, at its best"] = lambda: trl(load, packing=True, is_tuned=True)
        found["TRL, packed"] = lambda: trl(load, packing=True, is_tuned=False)
        found["TRL, padded"] = lambda: trl(load, packing=False, is_tuned=False)
    return found


class Peak:
    """The most memory that this process had while inside, beyond what it had before."""

    def __enter__(self) -> Peak:
        gc.collect()
        self._process, self._over = psutil.Process(), threading.Event()
        self._before = self.bytes = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.bytes -= self._before


def counts_of(load: Load) -> dict[str, Counts]:
    """What a second step dispatches, allocates and reads, of the engine and of the bare loop."""
    found: dict[str, Counts] = {}
    for name, packing in (("engine, packed", True), ("engine, padding-free", False)):
        with _counted_engine() as counted:
            engine(load, packing=packing)
        found[name] = counted[COUNTED_STEP]
    counted = {}
    bare_loop(load, counted)
    return {**found, "bare loop": counted[COUNTED_STEP]}


@contextlib.contextmanager
def _counted_engine() -> Iterator[dict[int, Counts]]:
    from qlora_engine.training import recipe

    found: dict[int, Counts] = {}
    original = recipe.optimizer_step

    def counted(*arguments: Any) -> Any:
        with StepCounts() as counter:
            result = original(*arguments)
        found[len(found)] = counter.counts()
        return result

    recipe.optimizer_step = counted
    try:
        yield found
    finally:
        recipe.optimizer_step = original


def engine(load: Load, *, packing: bool) -> Pace:
    """A whole run; its own figures of each step."""
    with Peak() as peak:
        from qlora_engine import config_io
        from qlora_engine.jobs import TrainJob
        from qlora_engine.training import recipe

        job = TrainJob(config_io.to_dict(config_for(load.folder, load.file, packing=packing)))
        events = list(recipe.train(job, Control()))
    assert tiny_runs.of(events, PlanMade)
    steps = tiny_runs.of(events, StepFinished)
    counted = steps[1:]
    tokens = sum(s.tokens for s in counted)
    trained = sum(s.trained_tokens for s in counted) / tokens
    return Pace(tokens / sum(s.step_seconds for s in counted), peak.bytes, steps[-1].loss, trained)


def quantized(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        str(folder), quantization_config=settings, dtype=torch.float32, device_map={"": "cpu"}
    )


def bare_loop(load: Load, counted: dict[int, Counts] | None = None) -> Pace:
    """transformers, PEFT and bitsandbytes over rows run together, in the engine's order, with torch's fused AdamW. Each
    step's counts go into `counted`."""
    from peft import LoraConfig, get_peft_model

    from qlora_engine.data import batches

    with Peak() as peak:
        torch.manual_seed(42)
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(quantized(load.folder), lora).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
        visits = batches.order(len(load.packed), 42, 0) * STEPS
        seconds, tokens, loss = 0.0, 0, 0.0
        for step in range(STEPS):
            rows = [load.packed[i] for i in visits[step * PACKED_PER_STEP : (step + 1) * PACKED_PER_STEP]]
            counter = contextlib.nullcontext() if counted is None else StepCounts()
            began = time.perf_counter()
            with counter:
                batch = batches.collate(rows, 0)
                out = model(
                    input_ids=batch.input_ids,
                    labels=batch.labels,
                    position_ids=batch.position_ids,
                    use_cache=False,
                )
                out.loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 0.3)
                optimizer.step()
                optimizer.zero_grad()
                loss = float(out.loss.detach())
            if counted is not None and isinstance(counter, StepCounts):
                counted[step] = counter.counts()
            if step:
                seconds, tokens = seconds + time.perf_counter() - began, tokens + batch.tokens
    return Pace(tokens / seconds, peak.bytes, loss)


def trl(load: Load, *, packing: bool, is_tuned: bool) -> Pace:
    """TRL with its defaults but for rank and batch; tuned: no checkpointing and the fused AdamW."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = list(load.alone)
    dataset = Dataset.from_list([
        {"input_ids": row.input_ids, "labels": [t if on else -100 for t, on in zip(row.input_ids, row.trained, strict=True)]}
        for row in rows
    ])  # fmt: skip
    clock = _clock(TrainerCallback)
    size = PACKED_PER_STEP if packing else ROWS_PER_STEP
    tuned = {"gradient_checkpointing": False, "optim": "adamw_torch_fused"} if is_tuned else {}
    with Peak() as peak, warnings.catch_warnings(), tempfile.TemporaryDirectory() as out:
        warnings.simplefilter("ignore")
        settings = SFTConfig(
            output_dir=out, max_length=SEQ_LEN, packing=packing, per_device_train_batch_size=size, max_steps=STEPS,
            learning_rate=RATE, lr_scheduler_type="constant", report_to=[], save_strategy="no", logging_steps=1, bf16=False,
            use_cpu=True, disable_tqdm=True, seed=42, **tuned,
        )  # fmt: skip
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model=quantized(load.folder), args=settings, train_dataset=dataset, peft_config=lora,
            processing_class=loading.load_tokenizer(load.folder), callbacks=[clock],
        )  # fmt: skip
        clock.count(trainer)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Pace(clock.tokens_per_second(), peak.bytes, losses[-1])


def _clock(base: type) -> Any:
    """A callback that takes the time of each step, and counts the real tokens of each batch."""

    class Clock(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.sizes: list[int] = []
            self.times: list[float] = []

        def count(self, trainer: Any) -> None:
            original = trainer.compute_loss

            def counting(model: Any, inputs: Any, *arguments: Any, **more: Any) -> Any:
                mask = inputs.get("attention_mask")
                self.sizes.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
                return original(model, inputs, *arguments, **more)

            trainer.compute_loss = counting

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter() - self.began)

        def tokens_per_second(self) -> float:
            return sum(self.sizes[1:]) / sum(self.times[1:])

    return Clock()
