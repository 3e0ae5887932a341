"""The fresh process that checks an export with the plain libraries. Imports the ML stack.

Reads one JSON request on stdin; writes one JSON line per check on the real stdout.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, quants

from qlora_engine import child, parsing
from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import Template, choose, render
from qlora_engine.export import llama_cpp
from qlora_engine.export.quantized import quantized_paths
from qlora_engine.export.reference import (
    Expected,
    adapter_fit,
    expected,
    greedy,
    logits_of,
)
from qlora_engine.export.reopened import LIBRARIES, four_bit_layers, gguf_of, reopen
from qlora_engine.export.surroundings import end_ids
from qlora_engine.models import loading, spec
from qlora_engine.models.quiet import quiet

SAME = {"adapter": 1e-5, "gguf-lora": 1e-5, "merged": 1e-3}
"""Largest logit difference to base + adapter as stored, relative to the largest logit. A merge may differ from PEFT's
in the last bit of some weights, because sums are taken in another order before they are rounded."""
SAME |= dict.fromkeys(("bnb4", "gguf", "ollama"), SAME["merged"])
SAME_IN_F16 = 1e-3
"""The same where the adapter's own factors are stored in 16 bits."""
ROUNDING = {"fp32": 1e-4, "f32": 1e-4, "fp16": 1e-2, "f16": 1e-2, "bf16": 6e-2, "q8_0": 1e-1}
"""Largest logit difference to base + adapter in fp32 that storing the merged weights in so many bits may cost. With fewer
bits, where whoever chooses them wants to lose something, the loss must be less than what training changed."""
OUTLIVES = 0.5
"""The part of what training changed, as KL divergence, that fewer bits may cost before the export is not the trained model."""
NEW_TOKENS = 32
"""So many of the tokens that a run added embeddings for are read by the proof, from the first to the last."""
ACTS = 1e-6
"""Logits must be changed by more than this, relative to the largest: less is what sums in another order make."""
ACTS_BETWEEN = (0.5, 1.5)
"""The share of that change an export must have; fewer bits cost some of it, another adapter or none has other shares."""
TWO_TURNS = [
    {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "And you?"}, {"role": "assistant", "content": "Fine."},
]  # fmt: skip
MIXED = (
    "Gr\u00fc\u00dfe, \u4e16\u754c! def f(x): return x  # ok", "  two  spaces\tand\n\nlines \n", "don't 3.14 1_000 2024",
    "<|im_start|>user\nHi<|im_end|>", "\U0001f600 \u041f\u0440\u0438\u0432\u0435\u0442",
)  # fmt: skip


def main() -> int:
    child.end_with_parent()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    request = parsing.from_json(sys.stdin.read())

    def tell(name: str, passed: bool | None, detail: str, **numbers: Any) -> None:
        out.write(json.dumps({"name": name, "passed": passed, "detail": detail, "numbers": numbers}) + "\n")
        out.flush()

    with quiet(), torch.no_grad():
        check(request, tell)
    return 0


def check(request: dict[str, Any], tell: Any) -> None:
    """All checks in order; each later one relies on the earlier."""
    export, base, kind = Path(request["export"]), Path(request["base"]), request["kind"]
    tokenizer = loading.load_tokenizer(base)
    request["ends"] = end_ids(request["quantizer"], tokenizer, _template(request, tokenizer))
    prompts = [_prompt(request, tokenizer, text) for text in request["prompts"]]
    prompts += _new_tokens(Path(request["adapter"]))
    wanted, fit = expected(request, prompts)
    model, again = reopen(export, base, kind)
    tell(f"loads with {LIBRARIES[kind]}", True, type(model).__name__)
    if kind == "adapter":
        fit = adapter_fit(model, export)
    tell("every tensor of the adapter has its module", fit.fits, fit.words(), tensors=fit.tensors)
    if kind == "bnb4":
        _check_layers(model, base, tell)
    _compare(request, model, prompts, wanted, tokenizer, tell)
    if kind in ("adapter", "gguf-lora"):
        return
    _check_surroundings(again, tokenizer, model, request, tell)
    if kind in ("merged", "bnb4"):
        _check_ends(model.generation_config.eos_token_id, request["ends"], tell)
    else:
        _check_gguf(gguf_of(export), request["ends"], tell)
        _ask_llama_cpp(gguf_of(export), prompts, wanted, again, tell)
    if kind == "ollama":
        _check_modelfile(export, tokenizer.convert_ids_to_tokens(request["ends"]), tell)


def _compare(
    request: dict[str, Any],
    model: Any,
    prompts: list[torch.Tensor],
    wanted: list[Expected],
    tokenizer: Any,
    tell: Any,
) -> None:
    kind, dtype = request["kind"], request["dtype"]
    found = [logits_of(model, prompt) for prompt in prompts]
    stored = [e.stored for e in wanted]
    difference, mean = _distance(found, stored), _mean_distance(found, stored)
    kl = _divergence(found, stored)
    allowed = SAME_IN_F16 if (kind, dtype) == ("gguf-lora", "f16") else SAME[kind]
    is_merged = kind not in ("adapter", "gguf-lora")
    words = f" merged by PEFT and stored as {_stored_words(kind, dtype)}" if is_merged else ""
    tell(
        "logits equal base + adapter", difference <= allowed,
        f"to base + adapter{words}: largest difference {difference:.1e} of the largest logit, mean {mean:.1e}, "
        f"KL divergence {kl:.1e}; allowed {allowed:.0e} at the most",
        largest_relative=difference, mean_relative=mean, kl_divergence=kl, allowed=allowed,
    )  # fmt: skip
    _check_acts(found, wanted, tell)
    _check_answers(request, model, prompts, wanted, tokenizer, tell)
    if is_merged:
        _check_rounding(kind, dtype, found, wanted, tell)


def _check_acts(found: Sequence[torch.Tensor], wanted: Sequence[Expected], tell: Any) -> None:
    """The export must differ from the base as the trained model does: an adapter that does nothing agrees with anything.

    `share`: how much of what training changed in the logits the export has, by least squares over all of them; what the
    rounding of weights adds has no part in it.
    """
    trained = torch.cat([(e.exact - e.base).flatten() for e in wanted])
    there = torch.cat([(f - e.base).flatten() for f, e in zip(found, wanted, strict=True)])
    changed = max(float((e.exact - e.base).abs().max() / e.base.abs().max()) for e in wanted)
    share = float((trained @ there) / (trained @ trained)) if changed > 0 else 0.0
    tell(
        "the adapter acts", changed > ACTS and ACTS_BETWEEN[0] <= share <= ACTS_BETWEEN[1],
        f"training changed the logits by {changed:.1e} of the largest; the export has {share:.1%} of that change",
        trained_change=changed, share=share,
    )  # fmt: skip


def _check_answers(
    request: dict[str, Any], model: Any, prompts: Sequence[torch.Tensor], wanted: Sequence[Expected], tokenizer: Any, tell: Any
) -> None:  # fmt: skip
    # A merged model has its end tokens inside and must stop by itself; an adapter has no place for them, and of those in
    # a GGUF file transformers reads one.
    ends = None if request["kind"] in ("merged", "bnb4") else list(request["ends"]) or None
    answers = [greedy(model, prompt, request["greedy_tokens"], ends) for prompt in prompts]
    first = tokenizer.decode(answers[0], skip_special_tokens=True).strip()
    stopped = sum(len(answer) < request["greedy_tokens"] for answer in answers)
    same = sum(answer == e.answer for answer, e in zip(answers, wanted, strict=True))
    tell(
        "greedy answers are the same", same == len(prompts),
        f"{same} of {len(prompts)} answers, up to {request['greedy_tokens']} tokens each, {stopped} of them ended by "
        f"themselves; first: {first[:80]!r}",
        same=same, prompts=len(prompts), tokens=sum(map(len, answers)), ended=stopped,
    )  # fmt: skip


def _check_rounding(
    kind: str, dtype: str, found: Sequence[torch.Tensor], wanted: Sequence[Expected], tell: Any
) -> None:
    """What storing in fewer bits costs, against fp32. Where it is meant to cost, it must be less than training changed."""
    exact = [e.exact for e in wanted]
    limit = None if kind == "bnb4" else ROUNDING.get(dtype)
    cost, kl, same = _distance(found, exact), _divergence(found, exact), _agreement(found, exact)
    numbers = {"largest_relative": cost, "kl_divergence": kl, "agreement": same}
    told = (
        f"against {'the 4-bit model that was trained' if kind == 'bnb4' else 'fp32'}: largest logit difference {cost:.1e} of the largest logit, KL divergence {kl:.1e}, "
        f"same first choice at {same:.1%} of the places"
    )
    name = f"storing in {_stored_words(kind, dtype)} costs little"
    tell(name, None if limit is None else cost <= limit, told, **numbers)
    if limit is None:
        learned = _divergence([e.base for e in wanted], exact)
        tell(
            "what was trained outlives the rounding", kl < OUTLIVES * learned,
            f"rounding costs a KL divergence of {kl:.1e}; training changed {learned:.1e}, of which it may cost {OUTLIVES:.0%}",
            kl_divergence=kl, trained_kl_divergence=learned,
        )  # fmt: skip


def _stored_words(kind: str, dtype: str) -> str:
    return f"NF4, the rest {dtype}" if kind == "bnb4" else dtype


def _distance(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """The largest difference over all prompts, relative to the largest logit."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


def _mean_distance(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    return max(float((a - b).abs().mean() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


def _divergence(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Mean KL divergence per position, in nats; of the worst prompt."""
    return max(
        float(
            torch.nn.functional.kl_div(
                a.log_softmax(-1), b.log_softmax(-1), log_target=True, reduction="none"
            )
            .sum(-1)
            .mean()
        )
        for a, b in zip(found, wanted, strict=True)
    )


def _agreement(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    same = [(a.argmax(-1) == b.argmax(-1)).float() for a, b in zip(found, wanted, strict=True)]
    return float(torch.cat(same).mean())


def _check_layers(model: Any, base: Path, tell: Any) -> None:
    """Read off the loaded tensors, never off the config (CORRECTNESS 1)."""
    states, paths = four_bit_layers(model), quantized_paths(base)
    right = sum(s.quant_type == "nf4" and bool(s.nested) and s.blocksize == 64 for s in states)
    tell(
        "every layer is NF4 with double quantization", right == len(states) == len(paths),
        f"{right} of {len(paths)} layers, block 64", layers=right,
    )  # fmt: skip


def _check_surroundings(again: Any, original: Any, model: Any, request: dict[str, Any], tell: Any) -> None:
    """The tokenizer, its template and the tied flag, against those of the base."""
    _check_template(again, original, _template(request, original), tell)
    same = [again(text)["input_ids"] == original(text)["input_ids"] for text in MIXED]
    tell("tokenizer gives the same tokens", all(same), f"on {sum(same)} of {len(same)} mixed texts")
    is_tied = (
        model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    )
    config_tied = bool(model.config.get_text_config().tie_word_embeddings)
    base_tied = bool(spec.facts_of_folder(Path(request["base"])).is_tied)
    tell(
        "tied embeddings are marked right", is_tied == config_tied == base_tied,
        f"{_tied(is_tied)} in the model that was loaded, {_tied(config_tied)} by its config.json, {_tied(base_tied)} in the base",
    )  # fmt: skip


def _tied(is_tied: bool) -> str:
    return "tied" if is_tied else "not tied"


def _check_template(again: Any, original: Any, template: Template, tell: Any) -> None:
    """It renders what training had, the ends of earlier answers too; one that lacks some, and says so, is as it was written."""
    if template.lacking is not None:
        tell("chat template renders the same", again.chat_template == template.exported, template.lacking)
        return
    try:
        messages, wanted = TWO_TURNS, render(original, template, TWO_TURNS)
    except RowProblem:  # it takes no second turn
        messages, wanted = TWO_TURNS[:2], render(original, template, TWO_TURNS[:2])
    found = again.apply_chat_template(messages, tokenize=False)
    tell("chat template renders the same", found == wanted, f"inside the export, on {len(messages)} messages")


def _check_ends(found: int | list[int], wanted: list[int], tell: Any) -> None:
    ends = found if isinstance(found, list) else [found]
    tell("stops on its end tokens", set(wanted) <= set(ends), f"generation config ends on {ends}")


def _check_gguf(file: Path, wanted: list[int], tell: Any) -> None:
    """What the gguf package itself reads: every tensor whole, and the end tokens llama.cpp stops on."""
    reader = GGUFReader(file)
    kinds = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    finite = all(bool(np.isfinite(quants.dequantize(t.data, t.tensor_type)).all()) for t in reader.tensors)
    tell(
        "loads with the gguf package", finite,
        f"{len(reader.tensors)} tensors: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
    )  # fmt: skip
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    ends = [int(reader.fields[key].contents()) for key in keys if key in reader.fields]
    tell("stops on its end tokens", set(ends) >= set(wanted[:3]), f"the file ends on {ends}")


def _check_modelfile(export: Path, ends: list[str], tell: Any) -> None:
    """It names the file beside it, and every end token as a stop."""
    lines = (export / "Modelfile").read_text(encoding="utf-8").splitlines()
    stops = [
        parsing.from_json(line.removeprefix("PARAMETER stop "))
        for line in lines
        if line.startswith("PARAMETER stop ")
    ]
    names_file = f"FROM ./{gguf_of(export).name}" in lines
    tell(
        "the Modelfile names the file and the end tokens", names_file and set(ends) <= set(stops),
        f"stops at {', '.join(stops)}",
    )  # fmt: skip


def _ask_llama_cpp(
    file: Path, prompts: Sequence[torch.Tensor], wanted: Sequence[Expected], tokenizer: Any, tell: Any
) -> None:
    def tokens_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    try:
        found = llama_cpp.ask(file, prompts, [e.stored for e in wanted], MIXED, tokens_of)
    except Exception as error:  # noqa: BLE001 - whatever llama.cpp says of the file is the finding
        found = llama_cpp.Verdict(False, f"{type(error).__name__}: {error}"[:300])
    numbers = {"kl_divergence": found.kl, "agreement": found.agreement}
    tell("llama.cpp computes the same", found.passed, found.detail, **numbers)


def _template(request: dict[str, Any], tokenizer: Any) -> Template:
    """As the run was trained with it."""
    return choose(tokenizer, request["chat_template"], Policy(**request["policy"]))


def _new_tokens(adapter: Path) -> list[torch.Tensor]:
    """A prompt of the tokens whose embeddings the run added, so that those are compared too; of most runs none."""
    config = parsing.from_json((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rows: list[int] = next(iter((config.get("trainable_token_indices") or {}).values()), [])
    return [torch.tensor([rows[:: -(-len(rows) // NEW_TOKENS)]])] if rows else []


def _prompt(request: dict[str, Any], tokenizer: Any, text: str) -> torch.Tensor:
    template = _template(request, tokenizer)
    rendered = render(tokenizer, template, [{"role": "user", "content": text}], is_prompt=True)
    return torch.tensor([tokenizer(rendered, add_special_tokens=False)["input_ids"]])


if __name__ == "__main__":
    sys.exit(main())
