"""What a run does besides training: answer the fixed prompts, save the adapter, close its record. Imports torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

from qlora_engine import paths
from qlora_engine.control import Control
from qlora_engine.errors import Cancelled
from qlora_engine.evaluate import generate
from qlora_engine.events import Event, PhaseChanged, SampleAnswered
from qlora_engine.training.checkpoint import TrainState


def fixed_prompts(config: Any) -> tuple[str, ...]:
    """The prompts answered at each evaluation: those of the job, or the starter dataset's own."""
    if config.training.sample_prompts or config.data.path != "starter":
        return tuple(config.training.sample_prompts)
    stored = json.loads((paths.resources_dir() / "starter" / "prompts.json").read_text(encoding="utf-8"))
    return tuple(stored["prompts"][:1])


def answer_prompts(parts: Any, step: int, control: Control) -> Iterator[Event]:
    """Answer each fixed prompt greedily; consumes no random numbers, so training is not touched."""
    prompts = fixed_prompts(parts.config)
    if not prompts:
        return
    yield PhaseChanged("generating", "Answering the fixed prompts")
    settings = generate.GenerationSettings(
        max_new_tokens=parts.config.training.sample_tokens, do_sample=False
    )
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        if parts.config.data.system_prompt:
            messages.insert(0, {"role": "system", "content": parts.config.data.system_prompt})
        try:
            answer = generate.answer(parts.model, parts.tokenizer, messages, settings, control=control)
        except Cancelled:
            return
        yield SampleAnswered(step, prompt, answer.text, answer.tokens, answer.seconds)


def save_adapter(parts: Any) -> None:
    """`adapter/` in PEFT's layout with the tokenizer, written aside and renamed."""
    final = parts.folder.adapter_dir
    aside = final.with_name(f".adapter.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    parts.model.save_pretrained(aside, save_embedding_layers=False)
    parts.tokenizer.save_pretrained(aside)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)


def closing_record(parts: Any, state: TrainState, peak_bytes: int | None) -> dict[str, Any]:
    """The keys of `run.json` that are known only at the end."""
    kept = (
        state.best_loss if parts.config.training.keep_best and state.best_step else state.last_held_out_loss
    )
    return {
        "loss_before": state.loss_before,
        "loss_after": kept,
        "best_step": state.best_step,
        "last_step": state.step,
        "tokens_seen": state.tokens_seen,
        "train_seconds": state.elapsed_seconds,
        "measured_peak_bytes": peak_bytes,
    }
