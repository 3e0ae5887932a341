"""Bases whose weights come quantized: which can be trained on, what to fetch instead of others, and what their tensors stand
for. Torch-free.

Three ways are read: bitsandbytes in 4 bits, FP8 with a scale for each block (arXiv 2412.19437, section 3.3), and MXFP4 (the OCP
microscaling formats, version 1.0). Everything behind sees a plain view: each weight under its own name, in its own shape.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_engine import parsing
from qlora_engine.errors import EngineError
from qlora_engine.models.files import Packed, StoredTensor, read_config, stored_headers
from qlora_engine.models.parts import LinearFact, ModelFacts, TensorFact, pattern

TITLES = {
    "gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ", "aqlm": "AQLM", "vptq": "VPTQ", "quanto": "Quanto", "eetq": "EETQ",
    "higgs": "HIGGS", "compressed-tensors": "compressed-tensors", "fbgemm_fp8": "FBGEMM FP8", "torchao": "torchao",
    "bitnet": "BitNet", "spqr": "SpQR", "quark": "Quark", "fp_quant": "FP-Quant", "auto-round": "AutoRound",
    "nvfp4": "NVFP4", "mxfp8": "MXFP8", "modelopt": "ModelOpt",
}  # fmt: skip
KEPT = "the folder keeps it in 16 bits"
FP8_BLOCK = (128, 128)
MXFP4_BLOCK = 32
_STATE = re.compile(r"\.quant_state\.bitsandbytes__(nf4|fp4)$")
_OF_ACTIVATIONS = re.compile(r"[._](activation_scale|input_scale)$")
_ENDING = re.compile(r"[-_](gptq|awq|hqq|aqlm|eetq|quanto|w\d+a\d+|int[48]|[48]bit|fp8|nvfp4|quantized).*$", re.IGNORECASE)  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """How a base's weights are stored. `method`: bitsandbytes, fp8 or mxfp4; the last two are brought into our 4 bits."""

    method: str
    quant_type: str = ""
    is_double_quant: bool = False

    @property
    def title(self) -> str:
        if self.method != "bitsandbytes":
            return {"fp8": "FP8", "mxfp4": "MXFP4"}[self.method]
        nested = "with" if self.is_double_quant else "without"
        return f"bitsandbytes {self.quant_type.upper()} {nested} double quantization"

    @property
    def is_used_as_it_is(self) -> bool:
        return self.method == "bitsandbytes"

    def words(self, quant_type: str = "nf4") -> str:
        """What becomes of the weights, for the record and the model card."""
        if self.is_used_as_it_is:
            return f"{self.title}, used as they are"
        return f"{self.title}, brought into {quant_type.upper()} tensor by tensor while loading"


def packing_of(config: Mapping[str, Any], name: str = "") -> Packing | None:
    """How the weights of a `config.json` are stored; None in 16 bits or more.

    Raises:
        EngineError: in a way that is not read here, with what to fetch instead.
    """
    found = _settings(config)
    if found is None:
        return None
    is_bitsandbytes = "load_in_4bit" in found or "load_in_8bit" in found
    method = str(found.get("quant_method") or ("bitsandbytes" if is_bitsandbytes else "an unknown method"))
    if method == "bitsandbytes" and not found.get("load_in_8bit"):
        quant_type = str(found.get("bnb_4bit_quant_type", "fp4"))
        return Packing(method, quant_type, bool(found.get("bnb_4bit_use_double_quant")))
    if method == "mxfp4" or (method == "fp8" and str(found.get("expert_dtype", "fp8")) == "fp8"):
        return Packing(method)
    title = {"bitsandbytes": "bitsandbytes in 8 bits", "fp8": "FP8 with experts in FP4"}.get(method)
    stem = _ENDING.sub("", name.rstrip("/").rpartition("/")[2])
    wanted = (
        f"{stem} in 16 bits"
        if stem and stem != name.rpartition("/")[2]
        else "the 16-bit model that it was made from"
    )
    raise EngineError(
        "model.already_quantized",
        f"the weights of this model are already quantized ({title or TITLES.get(method, method)}), in a way that cannot be "
        "trained on here",
        f"fetch {wanted} instead (its card names it as base_model), or a version in FP8, MXFP4 or bitsandbytes 4-bit",
    )  # fmt: skip


def packing_of_folder(folder: Path) -> Packing | None:
    """The same of a folder.

    Raises:
        EngineError: see `packing_of`; no config.
    """
    return packing_of(read_config(folder), folder.name)


def is_used_as_it_is(folder: Path) -> bool:
    """Whether a run computes with the very weights that the folder holds: those of bitsandbytes in 4 bits."""
    packed = packing_of_folder(folder)
    return packed is not None and packed.is_used_as_it_is


def headers_of_folder(folder: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of all safetensors files of a model folder, in the plain view: what a packed tensor stands for.

    Raises:
        EngineError: no weights, only pickles, a missing shard, a truncated file, or a packed tensor without its scale.
    """
    return plain_view(stored_headers(folder), folder)


def plain_view(raw: dict[str, StoredTensor], folder: Path) -> dict[str, StoredTensor]:
    """The plain view of a folder whose tensors are stored as `raw` says.

    Raises:
        EngineError: a packed tensor without its scale.
    """
    if not any(_is_packed(name, tensor) for name, tensor in raw.items()):
        return raw
    found = _settings(read_config(folder)) or {}
    block = found.get("weight_block_size") or FP8_BLOCK
    return dict(_plain(raw, folder, (int(block[0]), int(block[1]))))


def as_stored(facts: ModelFacts, headers: Mapping[str, StoredTensor]) -> ModelFacts:
    """`facts` of a folder in bitsandbytes' 4 bits: linear layers that its files hold in 16 bits stay so."""
    in_4_bits = Counter(
        pattern(name) for name, tensor in headers.items() if tensor.packed and tensor.packed.kind == "bitsandbytes"
    )  # fmt: skip
    if not in_4_bits:
        return facts
    linears: list[LinearFact] = []
    kept: list[TensorFact] = []
    for one in facts.linears:
        count = min(one.count, in_4_bits.get(f"{one.path}.weight", 0))
        if count:
            linears.append(replace(one, count=count))
        if count < one.count:
            shape = (one.out_features, one.in_features)
            kept.append(TensorFact(f"{one.path}.weight", shape, one.count - count, "other", KEPT))
    return replace(facts, linears=tuple(linears), unquantized=(*facts.unquantized, *kept))


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for part in (config, config.get("text_config")):
        found = part.get("quantization_config") if isinstance(part, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return None


def _is_packed(name: str, tensor: StoredTensor) -> bool:
    return tensor.dtype.startswith("F8_E4M3") or tensor.dtype == "F8_E5M2" or bool(_STATE.search(name)) or name.endswith("_blocks")  # fmt: skip


def _plain(
    raw: Mapping[str, StoredTensor], folder: Path, block: tuple[int, int]
) -> Iterator[tuple[str, StoredTensor]]:
    states = {_STATE.sub("", name): name for name in raw if _STATE.search(name)}
    belongs = set()
    for name in raw:
        belongs |= {name} if _OF_ACTIVATIONS.search(name) else set()
        if name.endswith("_scale_inv") and name.removesuffix("_scale_inv") in raw:
            belongs.add(name)
        if name.endswith("_scales") and f"{name.removesuffix('_scales')}_blocks" in raw:
            belongs.add(name)
        owner = next((one for one in _owners(name) if one in states), None)
        if owner is not None:
            belongs.add(name)
    for name, tensor in raw.items():
        if name in belongs:
            continue
        if name in states:
            yield name, _of_bitsandbytes(name, states[name], raw, folder)
        elif name.endswith("_blocks"):
            yield name.removesuffix("_blocks"), _of_mxfp4(name, raw)
        elif _is_packed(name, tensor):
            yield name, _of_fp8(name, raw, block)
        else:
            yield name, tensor


def _owners(name: str) -> Iterator[str]:
    """`a.weight.quant_state.x` belongs to `a.weight`, should that be packed."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))


def _of_fp8(name: str, raw: Mapping[str, StoredTensor], block: tuple[int, int]) -> StoredTensor:
    tensor = raw[name]
    scale = raw.get(f"{name}_scale_inv")
    if scale is None:
        raise _no_scale(name, tensor)
    if math.prod(scale.shape) > 1:
        rows, columns = tensor.shape[-2:]
        if tuple(scale.shape[-2:]) != (-(-rows // block[0]), -(-columns // block[1])):
            if rows % scale.shape[-2] or columns % scale.shape[-1]:
                raise _no_scale(name, tensor)
            block = rows // scale.shape[-2], columns // scale.shape[-1]
    return _view(tensor, "F32", tensor.shape, Packed("fp8", {"weight": tensor, "scale": scale}, block))


def _of_mxfp4(name: str, raw: Mapping[str, StoredTensor]) -> StoredTensor:
    """Blocks (experts, out, in / 32, 16), two numbers a byte, and an exponent each; the class has (experts, in, out)."""
    blocks, scales = raw[name], raw.get(f"{name.removesuffix('_blocks')}_scales")
    if scales is None or len(blocks.shape) != 4 or blocks.shape[:-1] != scales.shape or blocks.shape[-1] * 2 != MXFP4_BLOCK:  # fmt: skip
        raise _no_scale(name, blocks)
    experts, out, groups, _ = blocks.shape
    shape = (experts, groups * MXFP4_BLOCK, out)
    return _view(blocks, "BF16", shape, Packed("mxfp4", {"blocks": blocks, "scales": scales}))


def _of_bitsandbytes(name: str, state: str, raw: Mapping[str, StoredTensor], folder: Path) -> StoredTensor:
    """The shape stands in the state, which bitsandbytes writes as JSON (functional.py, QuantState.as_dict)."""
    try:
        said = parsing.from_json(_bytes_of(folder, raw[state]).rstrip(b" \0"))
        shape = tuple(int(side) for side in said["shape"])
        parts = {
            "weight": raw[name],
            "state": raw[state],
            "absmax": raw[f"{name}.absmax"],
            "map": raw[f"{name}.quant_map"],
        }
        if "nested_offset" in said:
            parts |= {f"nested_{key}": raw[f"{name}.nested_{key}"] for key in ("absmax", "quant_map")}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _no_scale(name, raw[name]) from error
    kind = _STATE.search(state)
    assert kind is not None
    return _view(
        raw[name], "F32", shape, Packed("bitsandbytes", parts, state={**said, "quant_type": kind[1]})
    )


def _bytes_of(folder: Path, tensor: StoredTensor) -> bytes:
    assert tensor.start is not None
    with (folder / tensor.file).open("rb") as stream:
        stream.seek(tensor.start)
        return stream.read(tensor.nbytes)


def _view(tensor: StoredTensor, dtype: str, shape: tuple[int, ...], packed: Packed) -> StoredTensor:
    nbytes = math.prod(shape) * {"F32": 4, "BF16": 2}[dtype]
    return StoredTensor(tensor.file, dtype, shape, nbytes, None, packed)


def _no_scale(name: str, tensor: StoredTensor) -> EngineError:
    return EngineError(
        "model.packed",
        f"{name} is stored as {tensor.dtype} {tuple(tensor.shape)}, and what it takes to read it is not in the files or does not fit",
        "download the model again, or fetch its 16-bit version",
    )
