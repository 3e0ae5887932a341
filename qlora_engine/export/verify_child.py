"""The fresh process that checks an export with plain transformers and PEFT. Imports the ML stack.

Reads one JSON request on stdin; writes one JSON line per check on the real stdout.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, quants
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_engine.data.templates import choose, render
from qlora_engine.export import gguf, gguf_tokenizer, merge
from qlora_engine.export.surroundings import end_ids
from qlora_engine.models import gguf_facts, gguf_header, gguf_import, loading, spec
from qlora_engine.models.quiet import quiet

SAME = {"adapter": 1e-5, "merged": 1e-3}
"""Largest logit difference to base + adapter as stored, relative to the largest logit. A merge may differ from PEFT's
in the last bit of some weights, because sums are taken in another order before they are rounded."""
SAME |= {"gguf": SAME["merged"], "ollama": SAME["merged"]}
ROUNDING = {"fp32": 1e-4, "f32": 1e-4, "fp16": 1e-2, "f16": 1e-2, "bf16": 6e-2, "q8_0": 1e-1}
"""Largest logit difference to base + adapter in fp32 that storing the merged weights in so many bits may cost. What fewer
bits cost is told and not judged: whoever chooses them wants to lose something."""
MIXED = (
    "Gr\u00fc\u00dfe, \u4e16\u754c! def f(x): return x  # ok", "  two  spaces\tand\n\nlines \n", "don't 3.14 1_000 2024",
    "<|im_start|>user\nHi<|im_end|>", "\U0001f600 \u041f\u0440\u0438\u0432\u0435\u0442",
)  # fmt: skip


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
    model, again = _load(export, base, request["kind"])
    tell(f"loads with {LIBRARIES[request['kind']]}", True, type(model).__name__)
    _compare(request, model, prompts, expected, tokenizer, tell)
    if request["kind"] == "adapter":
        return
    _check_surroundings(again, tokenizer, model, request, tell)
    if request["kind"] == "merged":
        _check_ends(model.generation_config.eos_token_id, request["ends"], tell)
    else:
        _check_gguf(gguf_of(export), request["ends"], tell)
    if request["kind"] == "ollama":
        _check_modelfile(export, tokenizer.convert_ids_to_tokens(request["ends"]), tell)


LIBRARIES = {
    "adapter": "plain peft",
    "merged": "plain transformers",
    "gguf": "the GGUF reader of transformers",
    "ollama": "the GGUF reader of transformers",
}


def gguf_of(export: Path) -> Path:
    return next(export.glob("*.gguf"))


def _expected(request: dict[str, Any], base: Path, prompts: list[torch.Tensor]) -> list[Expected]:
    """What PEFT itself makes of base and adapter: the reference, independent of the merge that is being proven."""
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, local_files_only=True)
    if request["into"] == "dequantized":
        _round_trip(model, base, request["quantizer"])
    model = PeftModel.from_pretrained(model, request["adapter"]).eval()
    exact = [model(prompt).logits[0].clone() for prompt in prompts]
    if request["kind"] != "adapter":
        model = model.merge_and_unload()
        for name, parameter in model.named_parameters():
            parameter.data = _as_stored(name, parameter.data, request["dtype"])
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


def _as_stored(name: str, weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """`weight` (fp32) as it is after storing it as `dtype`: a type of torch or of GGUF."""
    if dtype in merge.DTYPES:
        return weight.to(merge.DTYPES[dtype]).float()
    edges = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}
    kind = gguf.stored_kind(edges.get(name, name), tuple(weight.shape), dtype)
    packed = quants.quantize(weight.numpy(), kind)
    return torch.from_numpy(quants.dequantize(packed, kind).copy()).reshape(weight.shape)


def _load(export: Path, base: Path, kind: str) -> tuple[Any, Any]:
    """The exported model in fp32, and its own tokenizer where it has one."""
    if kind in ("gguf", "ollama"):
        file = gguf_of(export)
        model, _ = gguf_import.read(file, gguf_facts.facts_of_gguf(file, file.stem), lambda *_: None)
        pre = str(gguf_header.read_header(file).fields["tokenizer.ggml.pre"])
        return model.eval(), gguf_tokenizer.read(file, pre)
    tokenizer = AutoTokenizer.from_pretrained(str(export)) if kind == "merged" else None
    where = export if kind == "merged" else base
    model = AutoModelForCausalLM.from_pretrained(str(where), dtype=torch.float32, local_files_only=True)
    if kind == "adapter":
        model = PeftModel.from_pretrained(model, str(export))
    return model.eval(), tokenizer


def _compare(
    request: dict[str, Any],
    model: Any,
    prompts: list[torch.Tensor],
    expected: list[Expected],
    tokenizer: Any,
    tell: Any,
) -> None:
    found = [model(prompt).logits[0] for prompt in prompts]
    # A merged model has its end tokens inside and must stop by itself; an adapter has no place for them, and of those in
    # a GGUF file transformers reads one.
    ends = None if request["kind"] == "merged" else _ends(request)
    answers = [_greedy(model, prompt, request["greedy_tokens"], ends) for prompt in prompts]
    difference = max(_distance(a, b.stored) for a, b in zip(found, expected, strict=True))
    allowed = SAME[request["kind"]]
    is_merged = request["kind"] != "adapter"
    stored = f" merged by PEFT and stored as {request['dtype']}" if is_merged else ""
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
    if is_merged:
        limit = ROUNDING.get(request["dtype"])
        cost = max(_distance(a, b.exact) for a, b in zip(found, expected, strict=True))
        kl = max(_divergence(a, b.exact) for a, b in zip(found, expected, strict=True))
        tell(
            f"storing in {request['dtype']} costs little", None if limit is None else cost <= limit,
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


def _check_surroundings(again: Any, original: Any, model: Any, request: dict[str, Any], tell: Any) -> None:
    """The tokenizer, its template and the tied flag, against those of the base."""
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    wanted = render(original, choose(original, request["chat_template"]), messages)
    tell(
        "chat template renders the same",
        again.apply_chat_template(messages, tokenize=False) == wanted,
        "inside the export",
    )
    same = [again(text)["input_ids"] == original(text)["input_ids"] for text in MIXED]
    tell("tokenizer gives the same tokens", all(same), f"on {sum(same)} of {len(same)} mixed texts")
    is_tied = (
        model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    )
    config_tied = bool(model.config.get_text_config().tie_word_embeddings)
    base_tied = bool(spec.facts_of_folder(Path(request["base"])).is_tied)
    tell(
        "tied embeddings are marked right", is_tied == config_tied == base_tied,
        f"tied: {is_tied}, config: {config_tied}, base: {base_tied}",
    )  # fmt: skip


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
        json.loads(line.removeprefix("PARAMETER stop "))
        for line in lines
        if line.startswith("PARAMETER stop ")
    ]
    names_file = f"FROM ./{gguf_of(export).name}" in lines
    tell(
        "the Modelfile names the file and the end tokens", names_file and set(ends) <= set(stops),
        f"stops at {', '.join(stops)}",
    )  # fmt: skip


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
