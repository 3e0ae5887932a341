"""Facts about a model without its weights: from `config.json` and the headers of its safetensors files. Torch-free."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qlora_engine.errors import EngineError
from qlora_engine.models import families

HEADER_LIMIT_BYTES = 100_000_000
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class LinearFact:
    """One kind of linear layer. `path` has `*` for the block's number; `count` is how many the model has."""

    name: str
    path: str
    in_features: int
    out_features: int
    count: int
    has_bias: bool
    is_quantized: bool

    @property
    def weights(self) -> int:
        """Weight elements of all of them."""
        return self.in_features * self.out_features * self.count


@dataclass(frozen=True)
class TensorFact:
    """One kind of tensor left in 16 bits. `role`: embedding, head, norm, bias, router, expert, other."""

    name: str
    shape: tuple[int, ...]
    count: int
    role: str

    @property
    def elements(self) -> int:
        """Elements of all of them."""
        size = self.count
        for side in self.shape:
            size *= side
        return size


@dataclass(frozen=True)
class ModelFacts:
    """What memory and speed depend on. `stored_*` and `path` are None for models known by name only."""

    name: str
    origin: str
    path: str | None
    revision: str | None
    architecture: str
    model_type: str
    config: Mapping[str, Any]
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int | None
    is_tied: bool
    is_gated_mlp: bool
    experts: int | None
    experts_per_token: int | None
    sliding_window: int | None
    linears: tuple[LinearFact, ...]
    unquantized: tuple[TensorFact, ...]
    stored_bytes: int | None = None
    stored_dtype: str | None = None
    licence: str | None = None
    chat_template: str | None = None

    @property
    def quantized_parameters(self) -> int:
        """Weights stored in 4 bits: every linear layer but the head."""
        return sum(linear.weights for linear in self.linears if linear.is_quantized)

    @property
    def unquantized_parameters(self) -> int:
        return sum(tensor.elements for tensor in self.unquantized)

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        return self.quantized_parameters + self.unquantized_parameters


def facts_from_config(config: Mapping[str, Any], name: str, *, origin: str = "known") -> ModelFacts:
    """Facts from a parsed `config.json` alone.

    Raises:
        EngineError: an unknown or refused architecture, or missing numbers.
    """
    text = text_config(config)
    blueprint = families.blueprint_of(text)
    sizes = families.sizes_of(text)
    experts = text.get("num_local_experts") or text.get("num_experts")
    return ModelFacts(
        name=name,
        origin=origin,
        path=None,
        revision=None,
        architecture=str((config.get("architectures") or [text["model_type"]])[0]),
        model_type=str(text["model_type"]),
        config=config,
        hidden_size=sizes.hidden,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.inner,
        vocab_size=sizes.vocab,
        max_positions=text.get("max_position_embeddings"),
        is_tied=sizes.is_tied,
        is_gated_mlp=blueprint.is_gated_mlp,
        experts=experts,
        experts_per_token=text.get("num_experts_per_tok") if experts else None,
        sliding_window=text.get("sliding_window") if text.get("use_sliding_window", True) else None,
        linears=tuple(_linear_facts(blueprint)),
        unquantized=tuple(_tensor_facts(blueprint)),
    )


def facts_of_folder(path: Path, name: str | None = None, *, origin: str = "folder") -> ModelFacts:
    """Facts of a model folder; its safetensors headers are read and checked, no weight is.

    Raises:
        EngineError: missing, incomplete, damaged, pickled or unknown: one sentence with the next step.
    """
    config = read_config(path)
    facts = facts_from_config(config, name or path.name, origin=origin)
    tensors = headers_of_folder(path)
    return replace(
        facts,
        path=str(path),
        stored_bytes=sum(t.nbytes for t in tensors.values()),
        stored_dtype=_main_dtype(tensors),
        licence=_licence(path),
        chat_template=read_chat_template(path),
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model (Gemma 3 and others nest it)."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def read_config(path: Path) -> Mapping[str, Any]:
    """The parsed `config.json` of a folder.

    Raises:
        EngineError: no folder, no file, or not JSON.
    """
    if not path.exists():
        raise EngineError(
            "model.missing", f"there is no folder {path}", "check the path, or choose another model"
        )
    if not path.is_dir():
        raise EngineError(
            "model.not_folder", f"{path} is not a folder", "choose the folder that holds config.json"
        )
    file = path / "config.json"
    if not file.is_file():
        raise EngineError(
            "model.no_config", f"the folder {path} has no config.json, so it is not a transformers model",
            "choose the folder that holds config.json and the safetensors files",
        )  # fmt: skip
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise EngineError(
            "model.config", f"{file} cannot be read: {error}", "download the model again"
        ) from error
    if not isinstance(config, dict):
        raise EngineError("model.config", f"{file} is not a JSON object", "download the model again")
    return config


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: where it lies and what it is. `dtype` as safetensors writes it (BF16)."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def headers_of_folder(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of all safetensors files of a model folder.

    Raises:
        EngineError: none, only pickles, a missing shard, or a truncated file.
    """
    files = weight_files(path)
    return {name: tensor for file in files for name, tensor in read_header(file).items()}


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model folder, shards in order.

    Raises:
        EngineError: none, only pickles, or a missing shard.
    """
    single = path / "model.safetensors"
    if single.is_file():
        return [single]
    index = path / INDEX_FILE
    if index.is_file():
        return _shards(path, index)
    pickles = sorted(p.name for pattern in PICKLES for p in path.glob(pattern))
    if pickles:
        raise EngineError(
            "model.pickle", f"the weights in {path} are pickles ({pickles[0]}), which can run code when read; only safetensors are",
            "get the model's safetensors version, or convert it on a machine you trust",
        )  # fmt: skip
    raise EngineError(
        "model.no_weights",
        f"the folder {path} has no model.safetensors",
        "download the model again, with its weights",
    )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The header of one safetensors file, checked against the file's size.

    Raises:
        EngineError: truncated, or not a safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise _truncated(file, size, 8)
        length = struct.unpack("<Q", prefix)[0]
        if length > HEADER_LIMIT_BYTES:
            raise EngineError("model.damaged", f"{file.name} is not a safetensors file", "download it again")
        raw = stream.read(length)
    if len(raw) < length:
        raise _truncated(file, size, 8 + length)
    try:
        header = json.loads(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        found = {name: _stored(file.name, entry) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise EngineError(
            "model.damaged", f"the header of {file.name} is damaged", "download it again"
        ) from error
    if size < 8 + length + end:
        raise _truncated(file, size, 8 + length + end)
    return found


def read_chat_template(path: Path) -> str | None:
    """The model's own chat template, from `chat_template.jinja` or `tokenizer_config.json`."""
    jinja = path / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    try:
        stored = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return stored if isinstance(stored, str) else None


def facts_to_dict(facts: ModelFacts) -> dict[str, Any]:
    """JSON-ready form, with the derived totals."""
    totals = {
        "parameters": facts.parameters,
        "quantized_parameters": facts.quantized_parameters,
        "unquantized_parameters": facts.unquantized_parameters,
    }
    return {**asdict(facts), **totals}


def facts_from_dict(plain: Mapping[str, Any]) -> ModelFacts:
    """The facts of `facts_to_dict`."""
    values = {k: v for k, v in plain.items() if k in ModelFacts.__dataclass_fields__}
    values["linears"] = tuple(LinearFact(**entry) for entry in plain["linears"])
    values["unquantized"] = tuple(
        TensorFact(**{**entry, "shape": tuple(entry["shape"])}) for entry in plain["unquantized"]
    )
    return ModelFacts(**values)


def _linear_facts(blueprint: families.Blueprint) -> Iterator[LinearFact]:
    for linear in blueprint.linears:
        yield LinearFact(
            name=linear.path.rsplit(".", 1)[-1],
            path=f"{blueprint.block_prefix}.*.{linear.path}",
            in_features=linear.in_features,
            out_features=linear.out_features,
            count=blueprint.layers,
            has_bias=linear.has_bias,
            is_quantized=True,
        )


def _tensor_facts(blueprint: families.Blueprint) -> Iterator[TensorFact]:
    for tensor in blueprint.outer:
        yield TensorFact(tensor.path, tensor.shape, 1, tensor.role)
    for tensor in blueprint.block_tensors:
        yield TensorFact(
            f"{blueprint.block_prefix}.*.{tensor.path}", tensor.shape, blueprint.layers, tensor.role
        )
    for linear in blueprint.linears:
        if linear.has_bias:
            path = f"{blueprint.block_prefix}.*.{linear.path}.bias"
            yield TensorFact(path, (linear.out_features,), blueprint.layers, "bias")


def _shards(path: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise EngineError("model.damaged", f"{index.name} is damaged", "download the model again") from error
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise EngineError(
            "model.missing_shard", f"{len(missing)} of {len(names)} weight files are missing, {missing[0]} among them",
            "download the model again; what is there is kept",
        )  # fmt: skip
    return [path / name for name in names]


def _stored(file: str, entry: Mapping[str, Any]) -> StoredTensor:
    start, end = entry["data_offsets"]
    return StoredTensor(file, str(entry["dtype"]), tuple(entry["shape"]), int(end) - int(start))


def _truncated(file: Path, size: int, expected: int) -> EngineError:
    return EngineError(
        "model.truncated",
        f"{file.name} is cut short: {size} bytes, and its header needs at least {expected}",
        "download that file again",
    )


def _main_dtype(tensors: Mapping[str, StoredTensor]) -> str | None:
    totals: dict[str, int] = {}
    for tensor in tensors.values():
        totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.nbytes
    return max(totals, key=lambda dtype: totals[dtype]) if totals else None


def _licence(path: Path) -> str | None:
    """From `origin.json` (our conversions) or the model card's front matter."""
    try:
        return str(json.loads((path / "origin.json").read_text(encoding="utf-8"))["licence"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    card = path / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            if line.startswith("license:"):
                return line.split(":", 1)[1].strip() or None
    return None
