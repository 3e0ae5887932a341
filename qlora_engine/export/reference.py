"""What PEFT itself makes of base and adapter: what an export is compared with. Imports the ML stack.

Independent of the merge that is being proven: the whole model in fp32, PEFT's own sums, and bitsandbytes' and the gguf
package's quantization of whole tensors.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import quants
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file

from qlora_engine import parsing
from qlora_engine.adapters import weights_of
from qlora_engine.export import gguf, merge
from qlora_engine.export.quantized import quantized_paths, quantized_stacks
from qlora_engine.models import new_rows
from qlora_engine.models.four_bit import BLOCK, dequantized
from qlora_engine.models.names import transposed
from qlora_engine.models.packed_loading import plain_model
from qlora_engine.models.packing import is_used_as_it_is


@dataclass(frozen=True)
class Expected:
    """What base + adapter gives for one prompt: logits (length, vocabulary) in fp32, the same with the weights rounded to the
    stored type, those of the base alone, and the greedy answer with the stored weights. What is stored in 4 bits again is
    compared with the live 4-bit model: `exact` and `base` are its logits."""

    exact: torch.Tensor
    stored: torch.Tensor
    base: torch.Tensor
    answer: list[int]


@dataclass(frozen=True)
class AdapterFit:
    """How an adapter file goes onto a model that the plain libraries load: tensors of the file that no module has, tensors
    of the model's adapter that the file has not, those whose values did not arrive, and B matrices and new rows of the
    embeddings that are all zero."""

    tensors: int
    left_over: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    dead: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.tensors > 0 and not (self.left_over or self.missing or self.changed or self.dead)

    def words(self) -> str:
        """The first of what is wrong by name, else how many tensors were matched."""
        wrong = (
            (self.left_over, "of the file belongs to no module of the base"),
            (self.missing, "is not in the adapter file"),
            (self.changed, "has other values in the loaded model than in the file"),
            (self.dead, "is all zero: nothing was trained there"),
        )
        said = [f"{names[0]} {words} ({len(names)} such)" for names, words in wrong if names]
        return (
            "; ".join(said) or f"all {self.tensors} tensors of the file have their module, none is left over"
        )


def adapter_fit(model: Any, folder: Path) -> AdapterFit:
    """Compare the adapter file of `folder` with what PEFT made of it in `model`."""
    stored = load_file(folder / "adapter_model.safetensors")
    built = weights_of(model)
    both = sorted(stored.keys() & built.keys())
    return AdapterFit(
        len(stored),
        tuple(sorted(stored.keys() - built.keys())),
        tuple(sorted(built.keys() - stored.keys())),
        tuple(n for n in both if not torch.equal(stored[n].float(), built[n].float().cpu())),
        tuple(n for n in both if ("lora_B" in n or new_rows.DELTA in n) and not bool(stored[n].any())),
    )


def expected(request: Mapping[str, Any], prompts: list[torch.Tensor]) -> tuple[list[Expected], AdapterFit]:
    """What each prompt should give, and whether the adapter went onto its base whole. `request`: see `verify.request_of`."""
    base, into_live = Path(request["base"]), request["into"] == "dequantized"
    if request["kind"] == "bnb4" and not into_live:
        exact, plain = _seen(_tuned(request, base, is_live=True), prompts)
        model = _tuned(request, base, is_live=False)
    else:
        model = _tuned(request, base, is_live=into_live)
        exact, plain = _seen(model, prompts)
    fit = adapter_fit(model, Path(request["adapter"]))
    if request["kind"] not in ("adapter", "gguf-lora"):
        model = model.merge_and_unload()
        _store(model, base, request["kind"], request["dtype"])
    elif request["dtype"] == "f16":
        _round_factors(model, Path(request["adapter"]))
    ends, tokens = list(request["ends"]) or None, request["greedy_tokens"]
    found = [
        Expected(whole, logits_of(model, prompt), alone, greedy(model, prompt, tokens, ends))
        for prompt, whole, alone in zip(prompts, exact, plain, strict=True)
    ]
    del model
    gc.collect()
    return found, fit


def _tuned(request: Mapping[str, Any], base: Path, *, is_live: bool) -> Any:
    """Base with adapter in fp32; `is_live`: with the weights that the 4-bit model computes with."""
    model = plain_model(base)
    if is_live and not is_used_as_it_is(base):
        _round_trip(model, base, request["quantizer"])
    return with_adapter(model, Path(request["adapter"]))


def with_adapter(model: Any, folder: Path) -> Any:
    """PEFT's own model of `model` and an adapter's folder; what it trained of the embeddings wants as many rows there."""
    new_rows.fit(model, PeftConfig.from_pretrained(str(folder)))
    return PeftModel.from_pretrained(model, str(folder)).eval()


def _seen(model: Any, prompts: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits with the adapter and without it."""
    exact = [logits_of(model, prompt) for prompt in prompts]
    with model.disable_adapter():
        return exact, [logits_of(model, prompt) for prompt in prompts]


def logits_of(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    """(length, vocabulary), fp32."""
    return model(prompt).logits[0].float().clone()


def greedy(model: Any, prompt: torch.Tensor, tokens: int, ends: list[int] | None) -> list[int]:
    """The answer's tokens; `ends` None leaves stopping to the model's own generation config."""
    chosen = {} if ends is None else {"eos_token_id": ends}
    output = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False,
        temperature=None, top_p=None, top_k=None, pad_token_id=0, **chosen,
    )  # fmt: skip
    return [int(token) for token in output[0, prompt.shape[1] :]]


def _round_trip(model: Any, base: Path, load: Mapping[str, Any]) -> None:
    quantizer = merge.Quantizer(
        load["quant_type"], bool(load["is_double_quant"]), getattr(torch, load["compute_dtype"])
    )
    turned = transposed(base)
    for path in quantized_paths(base):
        module = model.get_submodule(path)
        stored = module.weight.data.T.contiguous() if path in turned else module.weight.data
        found = quantizer.round_trip(stored).float()
        module.weight.data = found.T.contiguous() if path in turned else found
    if not load.get("expert_stacks"):
        return
    for name in quantized_stacks(base):
        for expert in model.get_parameter(name).data:
            expert.copy_(quantizer.round_trip(expert))


def _store(model: Any, base: Path, kind: str, dtype: str) -> None:
    """Round every weight (fp32) as the export does."""
    packed = {f"{path}.weight" for path in quantized_paths(base)} if kind == "bnb4" else set()
    for name, parameter in model.named_parameters():
        parameter.data = _nf4(parameter.data) if name in packed else _as_stored(name, parameter.data, dtype)


def _round_factors(model: Any, adapter: Path) -> None:
    """Round A and B as a LoRA file in 16 bits does; what is not alpha / rank is inside B there."""
    config = parsing.from_json((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data = parameter.data.half().float()
        elif "lora_B" in name:
            rank = parameter.shape[1]
            inside = merge.scaling_of(config, rank) * rank / float(config["lora_alpha"])
            parameter.data = (parameter.data * inside).half().float() / inside


def _nf4(weight: torch.Tensor) -> torch.Tensor:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return dequantized(packed, state).float()


def _as_stored(name: str, weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """After storing it as `dtype`: a type of torch or of GGUF."""
    if dtype in merge.DTYPES:
        return weight.to(merge.DTYPES[dtype]).float()
    edges = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}
    kind = gguf.stored_kind(edges.get(name, name), tuple(weight.shape), dtype)
    packed = quants.quantize(weight.numpy(), kind)
    return torch.from_numpy(quants.dequantize(packed, kind).copy()).reshape(weight.shape)
