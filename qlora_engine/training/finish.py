"""What a run does besides training: answer the fixed prompts, save the adapter, close its record. Imports torch."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Iterator
from typing import Any

from qlora_engine import adapters, parsing, paths
from qlora_engine.control import Control
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import chosen
from qlora_engine.evaluate import generate
from qlora_engine.events import Event, PhaseChanged, SampleAnswered
from qlora_engine.runs import sealed
from qlora_engine.runs.stored import ADAPTER_MARK
from qlora_engine.training.checkpoint import TrainState, swap_in
from qlora_engine.training.steps import Interrupted
from qlora_engine.training.watchdog import require_finite


def fixed_prompts(config: Any) -> tuple[str, ...]:
    """The prompts answered at each evaluation: those of the job, or the starter dataset's own."""
    if config.training.sample_prompts or config.data.path != "starter":
        return tuple(config.training.sample_prompts)
    stored = parsing.from_json(
        (paths.resources_dir() / "starter" / "prompts.json").read_text(encoding="utf-8")
    )
    return tuple(stored["prompts"][:1])


def answer_prompts(parts: Any, step: int, control: Control) -> Iterator[Event]:
    """Answer each fixed prompt greedily; consumes no random numbers, so training is not touched.

    Raises:
        Interrupted: asked to stop; a cut answer counts for nothing.
    """
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
        answer = generate.answer(
            parts.model,
            parts.tokenizer,
            messages,
            settings,
            control=control,
            chat_template=parts.config.data.chat_template,
            policy=Policy.of(parts.config.data),
        )
        if control.is_stop_requested:
            raise Interrupted
        yield SampleAnswered(step, prompt, answer.text, answer.tokens, answer.seconds)


def samples(parts: Any, step: int | None) -> list[dict[str, str | None]]:
    """Each fixed prompt with its answer before training and that of `step`, as the run's own events tell them."""
    told = [e for e in parts.folder.metrics() if isinstance(e, SampleAnswered)]
    before = {e.prompt: e.answer for e in told if e.step == 0}
    after = {e.prompt: e.answer for e in told if e.step == step}
    return [
        {"prompt": prompt, "before": before.get(prompt), "after": after.get(prompt)}
        for prompt in fixed_prompts(parts.config)
    ]


def save_adapter(parts: Any, record: dict[str, Any]) -> None:
    """`adapter/` in PEFT's layout with the tokenizer and the template it was trained with, written aside and renamed;
    beside it `adapter.json`, with its files' checksums and the run's closing record.

    Raises:
        EngineError: a weight is no finite number.
    """
    weights = adapters.weights_of(parts.model)
    require_finite(weights, "the adapter")
    final = parts.folder.adapter_dir
    aside = final.with_name(f".adapter.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=sealed.PRIVATE_FOLDER)
    adapters.save(parts.model, aside, parts.base_path)
    tokenizer = copy.deepcopy(parts.tokenizer)
    tokenizer.chat_template = chosen(tokenizer, parts.config.data).exported
    tokenizer.save_pretrained(aside)
    swap_in(aside, final)
    names = sorted(path.name for path in final.iterdir() if path.is_file())
    sealed.write_mark(final, parts.folder.path / ADAPTER_MARK, names, record=record)


def keep_endings(parts: Any, found: dict[str, Any] | None) -> None:
    """Leave with the adapter what was counted after it was saved; the run's own record has it in any case."""
    if found is not None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            sealed.add_to_record(parts.folder.path / ADAPTER_MARK, endings=found)


def kept_step(parts: Any, state: TrainState) -> int:
    """The step whose adapter is the result."""
    keeps_best = parts.config.training.keep_best and state.best_step is not None
    return int(state.best_step or 0) if keeps_best else state.step


def kept_loss(parts: Any, state: TrainState) -> float | None:
    """The held-out loss of the adapter that is the result."""
    return state.last_held_out_loss if kept_step(parts, state) == state.step else state.best_loss


def closing_record(parts: Any, state: TrainState, peak_bytes: int | None) -> dict[str, Any]:
    """The keys of `run.json` that are known only at the end."""
    return {
        "loss_before": state.loss_before,
        "loss_after": kept_loss(parts, state),
        "best_step": state.best_step,
        "last_step": state.step,
        "tokens_seen": state.tokens_seen,
        "train_seconds": state.elapsed_seconds,
        "measured_peak_bytes": peak_bytes,
        "samples": samples(parts, kept_step(parts, state)),
    }
