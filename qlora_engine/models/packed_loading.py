"""Gives transformers' loader the weights of a base that comes quantized, tensor by tensor. Imports the ML stack.

The loader takes what stands in for a file's tensors and asks each for its values when their turn comes: never more than one
of them is there in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from qlora_engine.models import names, structure, weight_reader
from qlora_engine.models.files import StoredTensor
from qlora_engine.models.four_bit import BLOCK
from qlora_engine.models.packing import headers_of_folder, packing_of_folder


class Lazy:
    """Stands in for one tensor. `stays`: it is wanted in the 4 bits it has; `streams`: experts are handed over one at a time."""

    def __init__(self, folder: Path, tensor: StoredTensor, *, stays: bool, streams: bool) -> None:
        self._folder, self._tensor, self._stays, self._streams = folder, tensor, stays, streams

    def __getitem__(self, everything: Any) -> Any:
        packed = self._tensor.packed
        if packed is not None and packed.kind == "mxfp4" and self._streams:
            return Experts(self._folder, self._tensor)
        whole = weight_reader.read(self._folder, self._tensor)
        if not self._stays or packed is None or int(packed.state.get("blocksize", 0)) != BLOCK:
            return whole
        return Ready4bit.of(whole, weight_reader.bitsandbytes_parts(self._folder, self._tensor))


class Ready4bit(torch.Tensor):
    """A weight that is in our 4 bits already: its values, and what they were read from (`packed`, `constants`)."""

    stored: tuple[torch.Tensor, dict[str, torch.Tensor]]

    @classmethod
    def of(cls, whole: torch.Tensor, stored: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> Ready4bit:
        made = whole.as_subclass(cls)
        made.stored = stored
        return made

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """What the loader does before it asks whether the weight is to be quantized."""
        return Ready4bit.of(self.as_subclass(torch.Tensor).to(*args, **kwargs), self.stored)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Whatever else is done with it is done with plain values."""
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Experts:
    """A stack of packed experts, read one after the other where they are wanted."""

    def __init__(self, folder: Path, tensor: StoredTensor) -> None:
        self._folder, self._tensor = folder, tensor
        self._device: torch.device | None = None
        self._dtype: torch.dtype | None = None

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Experts:
        self._device, self._dtype = device, dtype
        return self

    def __iter__(self) -> Iterator[torch.Tensor]:
        for number in range(self._tensor.shape[0]):
            expert = weight_reader.mxfp4_expert(self._folder, self._tensor, number)
            yield expert.to(device=self._device, dtype=self._dtype)


def model_of(
    kind: Any, folder: Path, config: Any, *, in_4_bits: bool = False, streams: bool = False, **arguments: Any
) -> Any:
    """`kind.from_pretrained` on a folder whose weights come quantized; `config` without its `quantization_config`.
    `in_4_bits`: linear layers that the folder has so stay so."""
    ready = _linear_weights(folder) if in_4_bits else frozenset()
    lazies = {
        name: Lazy(folder, tensor, stays=name in ready, streams=streams)
        for name, tensor in headers_of_folder(folder).items()
    }
    found = kind.from_pretrained(None, config=config, state_dict=lazies, **arguments)
    model = found[0] if isinstance(found, tuple) else found
    model.name_or_path = model.config.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    return found


def plain_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model as a user loads it, with its weights in `dtype`, however the folder stores them."""
    kind = names.plain_class(folder)
    if packing_of_folder(folder) is None:
        return kind.from_pretrained(str(folder), dtype=dtype, local_files_only=True)
    config = names.plain_config(folder)
    kind = kind._model_mapping[type(config)] if hasattr(kind, "_model_mapping") else kind
    return model_of(kind, folder, config, dtype=dtype)


def layers_in_16_bits(folder: Path) -> frozenset[str]:
    """Linear layers that a base in bitsandbytes' 4 bits holds in 16, by their paths in the language model."""
    headers, prefix = headers_of_folder(folder), names.language_prefix(names.skeleton(folder))
    found = (
        place.parameter.removesuffix(".weight")
        for key, place in names.places(folder).items()
        if headers[key].packed is None
    )
    return frozenset(f"model.{one.removeprefix(prefix)}" if prefix else one for one in found)


def _linear_weights(folder: Path) -> frozenset[str]:
    """Tensors of the files that are weights of layers which become 4-bit."""
    wanted = {f"{path}.weight" for path in structure.quantizable_linears(names.skeleton(folder))}
    return frozenset(key for key, place in names.places(folder).items() if place.parameter in wanted)
