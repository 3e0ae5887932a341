"""One answer of a model to a conversation, streamed. Imports torch.

The prompt is rendered by the model's chat template and tokenized without further special tokens (CORRECTNESS 16);
generation stops on every end token of the model (CORRECTNESS 15).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from qlora_engine.control import Control
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import choose, render
from qlora_engine.evaluate.drawing import GenerationSettings
from qlora_engine.models.loading import end_token_ids
from qlora_engine.models.quiet import quiet

Message = Mapping[str, Any]
__all__ = ["Answer", "GenerationSettings", "answer", "continued", "end_ids", "prompt_ids"]


@dataclass(frozen=True)
class Answer:
    """`is_complete`: the model ended its turn by itself; False when cut by length or by Stop. `marked` is the text with
    its special tokens, by which calls of tools are told."""

    text: str
    tokens: int
    seconds: float
    is_complete: bool
    marked: str = ""


class _Watch(StoppingCriteria):
    """Hands out text as it comes and ends generation when asked."""

    def __init__(
        self,
        tokenizer: Any,
        prompt_tokens: int,
        on_text: Callable[[str], None] | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self._tokenizer, self._start, self._on_text, self._should_stop = (
            tokenizer,
            prompt_tokens,
            on_text,
            should_stop,
        )
        self._shown = ""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.show(input_ids[0])
        return torch.full(
            (input_ids.shape[0],), self._should_stop(), dtype=torch.bool, device=input_ids.device
        )

    def show(self, ids: torch.Tensor) -> None:
        """Hand out what is new; half a character waits for its other half."""
        if self._on_text is None:
            return
        text = self._tokenizer.decode(ids[self._start :], skip_special_tokens=True)
        if text.startswith(self._shown) and len(text) > len(self._shown) and not text.endswith("�"):
            self._on_text(text[len(self._shown) :])
            self._shown = text


def answer(
    model: Any,
    tokenizer: Any,
    messages: Sequence[Message],
    settings: GenerationSettings,
    *,
    on_text: Callable[[str], None] | None = None,
    control: Control | None = None,
    should_stop: Callable[[], bool] | None = None,
    chat_template: str = "auto",
    policy: Policy | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Answer:
    """The model's answer to `messages`, asked for as training had it under `policy`. Leaves the model's training mode and the random generators as they were."""

    def stops() -> bool:
        return bool(
            (control is not None and control.is_stop_requested) or (should_stop is not None and should_stop())
        )

    prompt = prompt_ids(tokenizer, messages, chat_template, policy, tools)
    ends = end_ids(model, tokenizer, chat_template, policy)
    return continued(model, tokenizer, prompt, ends, settings, on_text=on_text, should_stop=stops)


def continued(
    model: Any,
    tokenizer: Any,
    prompt: torch.Tensor,
    ends: Sequence[int],
    settings: GenerationSettings,
    *,
    on_text: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Answer:
    """What the model writes after `prompt` (1, tokens) until one of `ends`; leaves no trace, as `answer`."""
    prompt = prompt.to(model.device)
    watch = _Watch(tokenizer, prompt.shape[1], on_text, should_stop)
    was_training = model.training
    began = time.perf_counter()
    devices = [prompt.device.index or 0] if prompt.device.type == "cuda" else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices), quiet():
            torch.manual_seed(settings.seed)
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=_generation_config(settings, tokenizer, ends),
                stopping_criteria=StoppingCriteriaList([watch]),
            )[0]
    finally:
        model.train(was_training)
    watch.show(output)
    new = output[prompt.shape[1] :].tolist()
    said = new[:-1] if new and new[-1] in ends else new  # an end need not be a special token
    return Answer(
        text=tokenizer.decode(said, skip_special_tokens=True).strip(),
        tokens=len(new),
        seconds=time.perf_counter() - began,
        is_complete=bool(new) and new[-1] in ends,
        marked=tokenizer.decode(new, skip_special_tokens=False),
    )


def prompt_ids(
    tokenizer: Any, messages: Sequence[Message], chat_template: str = "auto", policy: Policy | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> torch.Tensor:  # fmt: skip
    """(1, tokens) int64: the conversation up to where the answer begins."""
    template = choose(tokenizer, chat_template, policy)
    text = render(tokenizer, template, list(messages), is_prompt=True, tools=tools)
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], dtype=torch.int64)


def end_ids(
    model: Any, tokenizer: Any, chat_template: str = "auto", policy: Policy | None = None
) -> tuple[int, ...]:
    """The model's end tokens and those the chosen template ends an answer with (CORRECTNESS 15)."""
    vocabulary = tokenizer.get_vocab()
    written = choose(tokenizer, chat_template, policy).end_tokens
    return tuple(
        sorted({*end_token_ids(model, tokenizer), *(vocabulary[t] for t in written if t in vocabulary)})
    )


def _generation_config(settings: GenerationSettings, tokenizer: Any, ends: Sequence[int]) -> GenerationConfig:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    values: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "do_sample": settings.do_sample,
        "repetition_penalty": settings.repetition_penalty,
        "eos_token_id": list(ends) or None,
        "pad_token_id": pad,
        "use_cache": True,
    }
    if settings.do_sample:
        values |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    return GenerationConfig(**values)
