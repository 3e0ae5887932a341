"""Loads a model folder in 4 bits on one device, and checks what was really built. Imports the ML stack."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from qlora_engine import paths
from qlora_engine.config import QuantizationSettings
from qlora_engine.device import DevicePlan
from qlora_engine.errors import EngineError
from qlora_engine.models import spec
from qlora_engine.models.quiet import quiet

Report = Callable[[str, int, int | None, str], None]
BLOCK_SIZE = 64
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_text|>",
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
    """
    facts = spec.facts_of_folder(path)
    _refuse_remote_code(facts, trust_remote_code)
    require_memory(facts, plan)
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    with quiet(), _watch_loading(facts, report_progress):
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(path),
                quantization_config=_bnb_config(quantization, plan),
                dtype=plan.torch_dtype,
                device_map={"": plan.name},
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                use_safetensors=True,
            )
        except (ValueError, OSError, RuntimeError, KeyError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise EngineError(
                "model.load", f"{path.name} could not be loaded: {str(error).strip().splitlines()[0][:200]}",
                "download the model again, or choose another", is_input_error=False,
            ) from error  # fmt: skip
    model.requires_grad_(False)
    return LoadedModel(model, tokenizer, inspect_loaded(model, tokenizer, path, facts, quantization, plan))


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
    for owner in (model.generation_config, model.config):
        ids = getattr(owner, "eos_token_id", None)
        found |= set(ids) if isinstance(ids, list | tuple) else ({ids} if ids is not None else set())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    vocabulary = tokenizer.get_vocab()
    found |= {vocabulary[token] for token in END_OF_TURN if token in template and token in vocabulary}
    return tuple(sorted(int(i) for i in found))


def fingerprint(path: Path) -> dict[str, str]:
    """File name -> sha256 of everything that defines a model; remembered by size and time."""
    files = [
        *spec.weight_files(path),
        *(path / n for n in ("config.json", "tokenizer.json") if (path / n).is_file()),
    ]
    return {file.name: _remembered_sha256(file) for file in files}


def base_sha256(path: Path) -> str:
    """One hash for the base: over the sorted names and hashes of its weight files."""
    lines = [f"{file.name} {_remembered_sha256(file)}" for file in spec.weight_files(path)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def require_memory(facts: spec.ModelFacts, plan: DevicePlan) -> None:
    """Refuse before loading when even the quantized weights do not fit (CORRECTNESS 11).

    Raises:
        EngineError: they do not, with both numbers.
    """
    element = 4 if plan.torch_dtype_name == "float32" else 2
    needed = int(facts.quantized_parameters * 0.516) + facts.unquantized_parameters * element
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


def _refuse_remote_code(facts: spec.ModelFacts, trust_remote_code: bool) -> None:
    auto_map = facts.config.get("auto_map")
    if auto_map and not trust_remote_code and not _is_built_in(facts.model_type):
        files = sorted(
            {str(target).split(".", 1)[0] + ".py" for target in auto_map.values() if isinstance(target, str)}
        )
        raise EngineError(
            "model.remote_code",
            f"{facts.name} brings Python code of its own that would run on this machine: {', '.join(files)}",
            "read it first; if you trust its authors, set model.trust_remote_code to true",
        )


def _is_built_in(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


@contextlib.contextmanager
def _watch_loading(facts: spec.ModelFacts, report: Report | None) -> Iterator[None]:
    """Count the layers as bitsandbytes quantizes them: `from_pretrained` blocks and has no progress hook."""
    if report is None:
        yield
        return
    total = sum(linear.count for linear in facts.linears)
    original, done, lock = Params4bit._quantize, itertools.count(1), threading.Lock()

    def counted(parameter: Any, device: Any) -> Any:
        result = original(parameter, device)
        with lock:
            report("loading", min(next(done), total), total, "layers")
        return result

    Params4bit._quantize = counted
    try:
        yield
    finally:
        Params4bit._quantize = original


def _pattern(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _remembered_sha256(file: Path) -> str:
    """The file's hash; kept in the cache under its path, size and time, since hashing gigabytes takes long."""
    stat = file.stat()
    key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    store = paths.cache_dir() / "hashes.json"
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        with file.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        _remember(store, known)
    return str(known[key])


def _remember(store: Path, known: dict[str, str]) -> None:
    from qlora_engine.runs.record import write_aside

    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_aside(store, json.dumps(known).encode())
    except OSError:
        return  # a cache that cannot be written only costs time


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
