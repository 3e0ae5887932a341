"""Loads a model folder in 4 bits on one device, and checks what was really built. Imports the ML stack."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from qlora_engine.config import QuantizationSettings
from qlora_engine.device import DevicePlan
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.models import spec
from qlora_engine.models.fingerprint import base_sha256, fingerprint
from qlora_engine.models.quiet import quiet

__all__ = [
    "LoadReport",
    "LoadedModel",
    "base_sha256",
    "constants_bytes",
    "end_token_ids",
    "fingerprint",
    "inspect_loaded",
    "load_quantized",
    "load_tokenizer",
    "require_memory",
    "text_model_arguments",
]

Report = Callable[[str, int, int | None, str], None]
BLOCK_SIZE = 64
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
    "[|endofturn|]",
    "<|endofturn|>",
    "</s>",
    "<|endoftext|>",
)


@dataclass(frozen=True)
class LoadReport:
    """What was built, read off the loaded tensors, never off the config (CORRECTNESS 1)."""

    quantized_modules: int
    quantized_parameters: int
    packed_bytes: int
    constants_bytes: int
    unquantized_bytes: int
    quant_type: str
    is_double_quant: bool
    block_size: int
    compute_dtype: str
    device: str
    end_token_ids: tuple[int, ...]
    base_sha256: str
    kept_unquantized: tuple[str, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A quantized base, its tokenizer, and the proof of what it is."""

    model: Any
    tokenizer: Any
    report: LoadReport


def load_quantized(
    path: Path,
    quantization: QuantizationSettings,
    plan: DevicePlan,
    *,
    trust_remote_code: bool = False,
    report_progress: Report | None = None,
) -> LoadedModel:
    """Load and quantize to NF4 or FP4, block 64, on `plan`'s one device.

    What is not quantized (embeddings, head, norms) stays in the compute type; nothing is cast up to fp32
    (CORRECTNESS 8) and nothing is placed on another device (CORRECTNESS 11).

    Raises:
        EngineError: it does not fit, is broken, brings code of its own, or was not built as asked.
        Cancelled: `report_progress` raised it.
    """
    facts = spec.facts_of_folder(path)
    refuse_remote_code(facts, trust_remote_code)
    runs_code = spec.brings_code(facts.config)
    require_memory(facts, plan, quantization.double_quant)
    tokenizer = load_tokenizer(path, trust_remote_code=runs_code)
    with quiet(), _watch_loading(facts, report_progress) as watch:
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                str(path),
                quantization_config=_bnb_config(quantization, plan),
                dtype=plan.torch_dtype,
                device_map={"": plan.name},
                trust_remote_code=runs_code,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **text_model_arguments(path, facts),
            )
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            watch.raise_if_cancelled()  # transformers wraps what is raised inside its loader
            raise EngineError(
                "model.load", f"{path.name} could not be loaded: {_short(error)}",
                "download the model again, or choose another", is_input_error=False,
            ) from error  # fmt: skip
    require_complete(path, found)
    model.requires_grad_(False)
    keep_weights_as_they_are(model)
    return LoadedModel(model, tokenizer, inspect_loaded(model, tokenizer, path, facts, quantization, plan))


def text_model_arguments(path: Path, facts: spec.ModelFacts | None = None) -> dict[str, Any]:
    """What `from_pretrained` needs besides the path to build only the language model of a model that also sees
    (Gemma 3, Mistral Small): its text config, and where its tensors lie. Empty for all others."""
    facts = facts or spec.facts_of_folder(path)
    if not isinstance(facts.config.get("text_config"), Mapping) or spec.brings_code(facts.config):
        return {}
    config = AutoConfig.from_pretrained(str(path), local_files_only=True).get_text_config(decoder=True)
    config.tie_word_embeddings = facts.is_tied
    return {
        "config": config,
        "key_mapping": {r"^language_model\.": "", r"^model\.language_model\.": "model."},
    }


def keep_weights_as_they_are(model: Any) -> None:
    """Forbid bitsandbytes to repack the weights on CPUs with AVX512-BF16.

    There its Linear4bit rewrites its weight in place at the first evaluation, computes in bf16 from then on, and its
    kernel passes no gradient: a run would go on and learn almost nothing (bitsandbytes 0.50, nn/modules.py, forward).
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def inspect_loaded(
    model: Any,
    tokenizer: Any,
    path: Path,
    facts: spec.ModelFacts,
    quantization: QuantizationSettings,
    plan: DevicePlan,
) -> LoadReport:
    """Read off what was built, and refuse anything but what was asked.

    Raises:
        EngineError: a layer is not 4-bit, or has another type, block size, nesting, compute type or device.
    """
    linears = {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit)}
    for name, module in linears.items():
        _check_module(name, module, quantization, plan)
    quantized = sum(m.in_features * m.out_features for m in linears.values())
    _refuse_leftovers(model, plan)
    if quantized != facts.quantized_parameters:
        raise EngineError(
            "model.not_quantized",
            f"{quantized:,} parameters were quantized, and this architecture should have {facts.quantized_parameters:,}",
            "report this model as a bug", is_input_error=False,
        )  # fmt: skip
    weights = {id(m.weight) for m in linears.values()}
    others = {name: p for name, p in model.named_parameters() if id(p) not in weights}
    state = next(iter(linears.values())).weight.quant_state
    return LoadReport(
        quantized_modules=len(linears),
        quantized_parameters=quantized,
        packed_bytes=sum(m.weight.nbytes for m in linears.values()),
        constants_bytes=sum(constants_bytes(m.weight.quant_state) for m in linears.values()),
        unquantized_bytes=sum(p.nbytes for p in others.values()),
        quant_type=state.quant_type,
        is_double_quant=bool(state.nested),
        block_size=int(state.blocksize),
        compute_dtype=plan.torch_dtype_name,
        device=plan.name,
        end_token_ids=end_token_ids(model, tokenizer),
        base_sha256=base_sha256(path),
        kept_unquantized=tuple(sorted({_pattern(name) for name in others})),
    )


def constants_bytes(state: Any) -> int:
    """Bytes of one weight's quantization constants as bitsandbytes keeps them: absmax, code table, and with double
    quantization the second absmax, its code table and the offset."""
    total = int(state.absmax.nbytes + state.code.nbytes)
    if state.nested:
        total += int(state.state2.absmax.nbytes + state.state2.code.nbytes + state.offset.nbytes)
    return total


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, from disk.

    Raises:
        EngineError: missing or damaged.
    """
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                str(path), trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise EngineError(
            "model.tokenizer", f"the folder {path} has no usable tokenizer: {_short(error)}",
            "download the model again, with tokenizer.json and tokenizer_config.json",
        ) from error  # fmt: skip


def end_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer: of the generation config, the config, the tokenizer, and the end-of-turn
    token that the chat template writes (CORRECTNESS 15)."""
    found: set[int] = set()
    for owner in (getattr(model, "generation_config", None), model.config):
        ids = getattr(owner, "eos_token_id", None)
        found |= set(ids) if isinstance(ids, list | tuple) else ({ids} if ids is not None else set())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    stored = tokenizer.chat_template or ""
    template = stored if isinstance(stored, str) else "".join(stored.values())
    vocabulary = tokenizer.get_vocab()
    found |= {vocabulary[token] for token in END_OF_TURN if token in template and token in vocabulary}
    return tuple(sorted(int(i) for i in found))


def require_memory(facts: spec.ModelFacts, plan: DevicePlan, double_quant: bool = True) -> None:
    """Refuse before loading when even the quantized weights do not fit (CORRECTNESS 11).

    Raises:
        EngineError: they do not, with both numbers.
    """
    element = 4 if plan.torch_dtype_name == "float32" else 2
    constants = 1 / 64 + 4 / (64 * 256) if double_quant else 4 / 64
    needed = int(facts.quantized_parameters * (0.5 + constants)) + facts.unquantized_parameters * element
    if plan.kind == "cuda":
        free, where = torch.cuda.mem_get_info(plan.index)[0], "the GPU"
    else:
        import psutil

        free, where = psutil.virtual_memory().available, "this computer"
    if needed > free:
        raise EngineError(
            "memory.too_small",
            f"the 4-bit weights of {facts.name} need {needed / 2**30:.2f} GiB, and {where} has {free / 2**30:.2f} GiB free",
            "close other programs, or choose a smaller model; nothing is put on another device silently",
        )


def _bnb_config(quantization: QuantizationSettings, plan: DevicePlan) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=plan.torch_dtype,
    )


def _check_module(name: str, module: Any, wanted: QuantizationSettings, plan: DevicePlan) -> None:
    state = module.weight.quant_state
    if state is None:
        raise EngineError(
            "model.not_quantized", f"{name} was not quantized", "report this as a bug", is_input_error=False
        )
    built = {
        "type": state.quant_type,
        "double quantization": bool(state.nested),
        "block size": int(state.blocksize),
        "compute type": str(module.compute_dtype).removeprefix("torch."),
        "device": str(module.weight.device)
        if module.weight.device.type == "cuda"
        else module.weight.device.type,
    }
    asked = {
        "type": wanted.quant_type,
        "double quantization": wanted.double_quant,
        "block size": BLOCK_SIZE,
        "compute type": plan.torch_dtype_name,
        "device": plan.name,
    }
    for key, value in asked.items():
        if built[key] != value:
            raise EngineError(
                "model.not_as_asked", f"{name} was built with {key} {built[key]!r} instead of {value!r}",
                "report this as a bug", is_input_error=False,
            )  # fmt: skip


def _refuse_leftovers(model: Any, plan: DevicePlan) -> None:
    """No linear layer but the head may be left unquantized, nothing may be on another device, and embeddings and
    head must be in the compute type, not cast up (CORRECTNESS 8 and 11)."""
    head = model.get_output_embeddings()
    plain = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not isinstance(module, Linear4bit) and module is not head
    ]
    away = [name for name, p in model.named_parameters() if p.device != torch.device(plan.name)]
    ends = [module for module in (model.get_input_embeddings(), head) if module is not None]
    cast = [type(m).__name__ for m in ends if m.weight.dtype != plan.torch_dtype]
    for names, words in (
        (plain, "was not quantized"),
        (away, f"is not on {plan.name}"),
        (cast, f"is not in {plan.torch_dtype_name}"),
    ):
        if names:
            raise EngineError(
                "model.not_as_asked", f"{names[0]} {words} ({len(names)} such)",
                "report this model as a bug", is_input_error=False,
            )  # fmt: skip


def require_complete(path: Path, found: Mapping[str, Any]) -> None:
    """transformers fills tensors that it does not find with random numbers; here that is an error."""
    lost = sorted(found.get("missing_keys", ()))
    if lost:
        raise EngineError(
            "model.incomplete",
            f"{len(lost)} tensors of the model are not in the files of {path.name}, {lost[0]} among them",
            "download the model again, or check that config.json belongs to these files",
        )


def refuse_remote_code(facts: spec.ModelFacts, trust_remote_code: bool) -> None:
    """Code is run only where `trust_remote_code` says so; else an EngineError names its files."""
    if trust_remote_code or not spec.brings_code(facts.config):
        return
    targets = (str(target) for target in dict(facts.config["auto_map"]).values())
    files = sorted({target.split(".", 1)[0] + ".py" for target in targets})
    raise EngineError(
        "model.remote_code",
        f"{facts.name} brings Python code of its own that would run on this machine: {', '.join(files)}",
        f"read it first in {facts.path}; if you trust its authors, set model.trust_remote_code to true",
    )


class _Watch:
    """Reports each quantized layer; remembers a wish to stop, which transformers would turn into an error."""

    def __init__(self, total: int, report: Report) -> None:
        self._total, self._report = total, report
        self._count, self._lock = itertools.count(1), threading.Lock()
        self._cancelled: Cancelled | None = None

    def layer_done(self) -> None:
        with self._lock:
            self.raise_if_cancelled()
            try:
                self._report("loading", min(next(self._count), self._total), self._total, "layers")
            except Cancelled as wish:
                self._cancelled = wish
                raise

    def raise_if_cancelled(self) -> None:
        if self._cancelled is not None:
            raise self._cancelled


@contextlib.contextmanager
def _watch_loading(facts: spec.ModelFacts, report: Report | None) -> Iterator[_Watch]:
    """Count the layers as bitsandbytes quantizes them: `from_pretrained` blocks and has no progress hook."""
    total = sum(linear.count for linear in facts.linears)
    watch = _Watch(total, report or (lambda phase, done, total, unit: None))
    original = Params4bit._quantize

    def counted(parameter: Any, device: Any) -> Any:
        result = original(parameter, device)
        watch.layer_done()
        return result

    Params4bit._quantize = counted
    try:
        yield watch
    finally:
        Params4bit._quantize = original


def _pattern(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
