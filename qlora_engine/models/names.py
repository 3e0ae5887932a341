"""Where each parameter of the model lies in the base's files, as transformers itself reads them. Imports the ML stack.

Files may keep every expert by itself, gate and up apart, or a language model under another prefix than its class has.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.pytorch_utils import Conv1D

from qlora_engine.errors import EngineError
from qlora_engine.models import spec


@dataclass(frozen=True)
class Place:
    """What a tensor of the files is of the model: all of `parameter`, or of one `expert` the rows from `start` on."""

    parameter: str
    expert: int | None = None
    start: int = 0


@dataclass(frozen=True)
class Cut:
    """Of a stored tensor that the class takes apart: its `rows` rows from `start` on are all of `parameter`."""

    parameter: str
    start: int
    rows: int


def plain_class(folder: Path) -> Any:
    """The class as which a user loads this model: for one that also sees the class its config names, else the causal one."""
    config = spec.read_config(folder)
    if isinstance(config.get("text_config"), Mapping) and not spec.brings_code(config):
        found = getattr(transformers, str((config.get("architectures") or [""])[0]), None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    return AutoModelForCausalLM


def plain_config(folder: Path) -> Any:
    """The model's configuration, without what it says of how its weights are stored."""
    return without_packing(AutoConfig.from_pretrained(str(folder), local_files_only=True))


def without_packing(config: Any) -> Any:
    """The same configuration object, which says nothing of how weights are stored any more."""
    for part in (config, config.get_text_config(decoder=True)):
        part.__dict__.pop("quantization_config", None)
    return config


@lru_cache(maxsize=4)
def skeleton(folder: Path) -> Any:
    """The plain model without weights."""
    kind = plain_class(folder)
    config = plain_config(folder)
    with torch.device("meta"):
        return kind.from_config(config) if kind is AutoModelForCausalLM else kind(config)


def is_part(folder: Path) -> bool:
    """Whether the language model that is trained is only a part of what a user loads."""
    return plain_class(folder) is not AutoModelForCausalLM


def decoder_path(model: Any) -> str:
    """Path of the decoder that holds the language model's blocks."""
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), "")


def language_prefix(model: Any) -> str:
    """Path of the language model's decoder in a model that may see and hear too, with a dot behind; empty for one that is
    nothing else."""
    return f"{decoder_path(model)}." if hasattr(model.config, "text_config") else ""


@lru_cache(maxsize=4)
def transposed(folder: Path) -> frozenset[str]:
    """Paths of the layers whose weights are kept inputs first (gpt2's)."""
    return frozenset(name for name, module in skeleton(folder).named_modules() if isinstance(module, Conv1D))


@lru_cache(maxsize=4)
def cuts(folder: Path) -> Mapping[str, tuple[Cut, ...]]:
    """Name of each stored tensor that is several parameters of the plain model, one under the other -> those."""
    model = skeleton(folder)
    found = {}
    for key, name, pattern, converter in _converted_keys(folder):
        if pattern is not None and len(converter.target_patterns) > 1:
            rows = torch.arange(spec.headers_of_folder(folder)[key].shape[0])[:, None]
            pieces = _outcome({pattern: [rows]}, converter, name, model)
            parts = tuple(
                _cut(name.replace(converter.target_patterns[0], one), v) for one, v in pieces.items()
            )
            if parts and None not in parts:
                found[key] = tuple(part for part in parts if part is not None)
    return found


def _cut(parameter: str, piece: torch.Tensor) -> Cut | None:
    """None where the rows of the piece are not neighbours."""
    start, rows = (int(piece[0, 0]), len(piece)) if piece.numel() else (0, 0)
    is_whole = rows > 0 and torch.equal(piece[:, 0], torch.arange(start, start + rows))
    return Cut(parameter, start, rows) if is_whole else None


def _converted_keys(folder: Path) -> Iterator[tuple[str, str, str | None, Any]]:
    """(stored name, name in the plain model, what matched, converter) of each stored tensor that the model has."""
    model = skeleton(folder)
    known = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    of_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    for key in sorted(spec.headers_of_folder(folder), key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
        if name not in known and key in known:
            name, pattern = key, None
        if name in known:
            yield key, name, pattern, of_pattern.get(pattern or "")


@lru_cache(maxsize=4)
def places(folder: Path) -> Mapping[str, Place]:
    """Name of each stored tensor that the plain model has -> its place in it.

    Raises:
        EngineError: the files keep experts in a way that is not understood here.
    """
    found: dict[str, Place] = {}
    gathered: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    makers: dict[str, Any] = {}
    for key, name, pattern, converter in _converted_keys(folder):
        if pattern is None:
            found[key] = Place(name)
        elif len(converter.target_patterns) == 1:
            gathered[name][pattern].append(key)
            makers.setdefault(name, converter)
    for name, patterns in gathered.items():
        found |= _of_experts(folder, name, patterns, makers[name], skeleton(folder))
    return found


def _of_experts(
    folder: Path, name: str, patterns: Mapping[str, list[str]], converter: Any, model: Any
) -> dict[str, Place]:
    """Where the tensors of each pattern lie: one expert's are filled with numbers of their own and converted."""
    headers = spec.headers_of_folder(folder)
    pieces, begin = {}, 0
    for pattern, keys in patterns.items():
        shape = tuple(headers[keys[0]].shape)
        count = shape[0] * shape[1] if len(shape) == 2 else 0
        pieces[pattern] = torch.arange(begin, begin + count).reshape(shape) if count else torch.empty(0)
        begin += count
    whole = _converted(pieces, converter, name, model)
    placed: dict[str, Place] = {}
    for pattern, keys in patterns.items():
        piece = pieces[pattern]
        rows = (whole[:, 0] == piece[0, 0]).nonzero() if piece.ndim == 2 and whole is not None else []
        start = int(rows[0]) if len(rows) else 0
        if whole is None or not len(rows) or not torch.equal(whole[start : start + len(piece)], piece):
            continue  # no delta of it can be merged, which is said when there is one
        for number, key in enumerate(keys):
            placed[key] = Place(name, number, start)
    return placed


def _converted(
    pieces: Mapping[str, torch.Tensor], converter: Any, name: str, model: Any
) -> torch.Tensor | None:
    found = _outcome({pattern: [piece] for pattern, piece in pieces.items()}, converter, name, model)
    whole = next(iter(found.values()), None)
    return whole[0] if whole is not None and whole.ndim == 3 and whole.shape[0] == 1 else None


def _outcome(
    pieces: Mapping[str, list[torch.Tensor]], converter: Any, name: str, model: Any
) -> dict[str, torch.Tensor]:
    """What a converter makes of such pieces, by pattern; nothing where its operations are for other tensors."""
    found: Any = dict(pieces)
    try:
        for operation in converter.operations:
            found = operation.convert(
                found, source_patterns=converter.source_patterns, target_patterns=converter.target_patterns,
                full_layer_name=name, model=model, config=model.config, missing_keys=None,
            )  # fmt: skip
    except Exception:  # noqa: BLE001 - whatever an operation says against them
        return {}
    return {key: value[0] if isinstance(value, list) else value for key, value in found.items()}


def files_of(folder: Path, parameter: str) -> dict[str, Place]:
    """The stored tensors that hold `parameter`."""
    return {key: place for key, place in places(folder).items() if place.parameter == parameter}


def require_stored(folder: Path, parameters: Mapping[str, Any]) -> None:
    """Each of these parameters must be in the files, in a way that can be written again.

    Raises:
        EngineError: with the first that is not.
    """
    there = {place.parameter for place in places(folder).values()}
    there |= {part.parameter for parts in cuts(folder).values() for part in parts}
    lost = sorted(name for name in parameters if name not in there)
    if lost:
        raise EngineError(
            "export.module",
            f"the base has no weight {lost[0]}",
            "export it as an adapter, or report this model",
        )


def stacks_of_wrapper(folder: Path, module: str, wanted: list[str]) -> list[tuple[str, bool]]:
    """(parameter, whether PEFT exchanges rows and columns) of a module's adapted stacks, the innermost wrapper first."""
    owner = skeleton(folder).get_submodule(module)
    is_swapped = not getattr(owner, "is_transposed", False)
    return [
        (f"{module}.{leaf}", is_swapped)
        for leaf, parameter in owner.named_parameters(recurse=False)
        if parameter.ndim == 3
        and any(re.search(rf"(^|\.){re.escape(one)}$", f"{module}.{leaf}") for one in wanted)
    ]
