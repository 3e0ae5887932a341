"""The fresh process that checks an export with plain transformers and PEFT. Imports the ML stack.

Reads one JSON request on stdin; writes one JSON line per check on the real stdout.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_engine.data.templates import choose, render
from qlora_engine.export import merge
from qlora_engine.export.run import end_ids
from qlora_engine.models import loading, spec
from qlora_engine.models.quiet import quiet

SAME = {"adapter": 1e-5, "merged": 1e-3}
"""Largest logit difference to base + adapter as stored, relative to the largest logit. A merge may differ from PEFT's
in the last bit of some weights, because sums are taken in another order before they are rounded."""
ROUNDING = {"fp32": 1e-4, "bf16": 6e-2, "fp16": 1e-2}
"""Largest logit difference to base + adapter in fp32 that storing the merged weights in so many bits may cost."""


@dataclass(frozen=True)
class Expected:
    """What base + adapter gives for one prompt: logits (length, vocabulary) in fp32, the same with the merged weights
    rounded to the stored type, and the greedy answer of the latter."""

    exact: torch.Tensor
    stored: torch.Tensor
    answer: list[int]


def main() -> int:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    request = json.load(sys.stdin)

    def tell(name: str, passed: bool | None, detail: str, **numbers: Any) -> None:
        out.write(json.dumps({"name": name, "passed": passed, "detail": detail, "numbers": numbers}) + "\n")
        out.flush()

    with quiet(), torch.no_grad():
        check(request, tell)
    return 0


def check(request: dict[str, Any], tell: Any) -> None:
    """All checks in order; each later one relies on the earlier."""
    export, base = Path(request["export"]), Path(request["base"])
    tokenizer = loading.load_tokenizer(base)
    request["ends"] = end_ids(request["quantizer"], tokenizer, choose(tokenizer, request["chat_template"]))
    prompts = [_prompt(tokenizer, text, request["chat_template"]) for text in request["prompts"]]
    expected = _expected(request, base, prompts)
    model = _load(export, base, request["kind"])
    library = "peft" if request["kind"] == "adapter" else "transformers"
    tell(f"loads with plain {library}", True, type(model).__name__)
    _compare(request, model, prompts, expected, tokenizer, tell)
    if request["kind"] == "merged":
        _check_surroundings(export, base, model, request, tell)


def _expected(request: dict[str, Any], base: Path, prompts: list[torch.Tensor]) -> list[Expected]:
    """What PEFT itself makes of base and adapter: the reference, independent of the merge that is being proven."""
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, local_files_only=True)
    if request["into"] == "dequantized":
        _round_trip(model, base, request["quantizer"])
    model = PeftModel.from_pretrained(model, request["adapter"]).eval()
    exact = [model(prompt).logits[0].clone() for prompt in prompts]
    if request["kind"] == "merged":
        model = model.merge_and_unload()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(merge.DTYPES[request["dtype"]]).float()
    ends = _ends(request)
    found = [
        Expected(
            logits, model(prompt).logits[0].clone(), _greedy(model, prompt, request["greedy_tokens"], ends)
        )
        for prompt, logits in zip(prompts, exact, strict=True)
    ]
    del model
    gc.collect()
    return found


def _round_trip(model: Any, base: Path, load: dict[str, Any]) -> None:
    quantizer = merge.Quantizer(
        load["quant_type"], bool(load["is_double_quant"]), getattr(torch, load["compute_dtype"])
    )
    facts = spec.facts_of_folder(base)
    for linear in facts.linears:
        for number in range(facts.layers):
            module = model.get_submodule(linear.path.replace("*", str(number)))
            module.weight.data = quantizer.round_trip(module.weight.data).float()


def _load(export: Path, base: Path, kind: str) -> Any:
    if kind == "adapter":
        plain = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, local_files_only=True)
        return PeftModel.from_pretrained(plain, str(export)).eval()
    return AutoModelForCausalLM.from_pretrained(
        str(export), dtype=torch.float32, local_files_only=True
    ).eval()


def _compare(
    request: dict[str, Any],
    model: Any,
    prompts: list[torch.Tensor],
    expected: list[Expected],
    tokenizer: Any,
    tell: Any,
) -> None:
    found = [model(prompt).logits[0] for prompt in prompts]
    # A merged model has its end tokens inside and must stop by itself; an adapter has no place for them.
    ends = None if request["kind"] == "merged" else _ends(request)
    answers = [_greedy(model, prompt, request["greedy_tokens"], ends) for prompt in prompts]
    difference = max(_distance(a, b.stored) for a, b in zip(found, expected, strict=True))
    allowed = SAME[request["kind"]]
    stored = "" if request["kind"] == "adapter" else f" merged by PEFT and stored as {request['dtype']}"
    tell(
        "logits equal base + adapter", difference <= allowed,
        f"largest difference to base + adapter{stored}: {difference:.1e} of the largest logit, allowed {allowed:.0e}",
        largest_relative=difference,
    )  # fmt: skip
    first = tokenizer.decode(answers[0], skip_special_tokens=True).strip()
    tell(
        "greedy answers are the same", answers == [e.answer for e in expected],
        f"{request['greedy_tokens']} tokens on {len(prompts)} prompts; first: {first[:80]!r}",
    )  # fmt: skip
    if request["kind"] == "merged":
        cost = max(_distance(a, b.exact) for a, b in zip(found, expected, strict=True))
        kl = max(_divergence(a, b.exact) for a, b in zip(found, expected, strict=True))
        tell(
            f"storing in {request['dtype']} costs little", cost <= ROUNDING[request["dtype"]],
            f"against fp32: largest logit difference {cost:.1e} of the largest logit, KL divergence {kl:.1e}",
            largest_relative=cost, kl_divergence=kl,
        )  # fmt: skip


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _divergence(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Mean KL divergence per position, in nats."""
    kl = torch.nn.functional.kl_div(
        found.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none"
    )
    return float(kl.sum(-1).mean())


def _check_surroundings(export: Path, base: Path, model: Any, request: dict[str, Any], tell: Any) -> None:
    tokenizer, original = AutoTokenizer.from_pretrained(str(export)), loading.load_tokenizer(base)
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    wanted = render(original, choose(original, request["chat_template"]), messages)
    tell(
        "chat template renders the same",
        tokenizer.apply_chat_template(messages, tokenize=False) == wanted,
        "inside the export",
    )
    text = "Grüße, 世界! def f(x): return x  # ok"
    tell(
        "tokenizer gives the same tokens",
        tokenizer(text)["input_ids"] == original(text)["input_ids"],
        "on mixed text",
    )
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    tell("stops on its end tokens", set(request["ends"]) <= set(ends), f"generation config ends on {ends}")
    is_tied = (
        model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    )
    config_tied = bool(model.config.get_text_config().tie_word_embeddings)
    tell(
        "tied embeddings are marked right", is_tied == config_tied, f"tied: {is_tied}, config: {config_tied}"
    )


def _ends(request: dict[str, Any]) -> list[int] | None:
    """The end tokens the run was trained with."""
    return list(request["ends"]) or None


def _greedy(model: Any, prompt: torch.Tensor, tokens: int, ends: list[int] | None) -> list[int]:
    """The answer's tokens; `ends` None leaves stopping to the model's own generation config."""
    chosen = {} if ends is None else {"eos_token_id": ends}
    output = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False,
        temperature=None, top_p=None, top_k=None, pad_token_id=0, **chosen,
    )  # fmt: skip
    return [int(token) for token in output[0, prompt.shape[1] :]]


def _prompt(tokenizer: Any, text: str, chat_template: str) -> torch.Tensor:
    rendered = render(
        tokenizer, choose(tokenizer, chat_template), [{"role": "user", "content": text}], is_prompt=True
    )
    return torch.tensor([tokenizer(rendered, add_special_tokens=False)["input_ids"]])


if __name__ == "__main__":
    sys.exit(main())
