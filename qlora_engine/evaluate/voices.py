"""The adapters on one loaded base: put on it, switched and taken off without loading it again. Imports the ML stack."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale
from safetensors.torch import load_file

from qlora_engine import adapters, out_of_memory
from qlora_engine.errors import EngineError
from qlora_engine.evaluate.origin import BASE, Origin
from qlora_engine.models import new_rows
from qlora_engine.models.experts import lora
from qlora_engine.models.quiet import quiet
from qlora_engine.out_of_memory import is_out_of_memory
from qlora_engine.training.checkpoint import ADAPTER_FILE

FINISHED_FILE = "adapter_model.safetensors"
INITS_THAT_KEEP_THE_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""What `init_lora_weights` of an adapter may say; others (PiSSA, OLoRA, CorDA) changed the base they were trained on."""


@dataclass(frozen=True)
class Voice:
    """One adapter on the base. `name` is what PEFT calls it: module names take no dots, run names may have them."""

    side: str
    origin: Origin
    name: str

    @property
    def can_scale(self) -> bool:
        """False for DoRA, whose weights are scaled by their own length."""
        return not self.origin.config.lora.dora


class Voices:
    """Everyone who can be spoken with on one base: `base` always, and one side for each adapter."""

    def __init__(self, base: Any) -> None:
        self._model = base
        self._voices: dict[str, Voice] = {}
        self._added = 0

    @property
    def sides(self) -> tuple[str, ...]:
        return (BASE, *self._voices)

    def of(self, side: str) -> Voice | None:
        """None for the base."""
        return self._voices.get(side)

    def side_of(self, run_dir: Path) -> str | None:
        """The side that speaks for a run already."""
        return next(
            (s for s, v in self._voices.items() if v.origin.run and v.origin.run.path == run_dir), None
        )

    def add(self, side: str, origin: Origin) -> Voice:
        """Put an adapter on the base beside the others; nothing is changed when it cannot be.

        Raises:
            EngineError: its weights are not what its settings say, it was trained on a changed base, or the memory is full.
        """
        assert origin.adapter is not None
        bare = self._model.get_base_model() if isinstance(self._model, PeftModel) else self._model
        config, weights = adapters.fit_names(*_stored(origin), bare)
        self._added += 1
        voice = Voice(side, origin, f"voice{self._added}")
        try:
            self._put(voice, config, weights)
        except BaseException as error:
            self._drop(voice.name)
            if is_out_of_memory(error):
                code, whose = out_of_memory.owner(error)
                raise EngineError(
                    code,
                    f"{whose} has no room for the adapter of run {side!r} beside the others",
                    "take another one out first",
                ) from error
            raise
        self._voices[side] = voice
        return voice

    def remove(self, side: str) -> None:
        """Take an adapter off and give its memory back; the others and the base stay as they are."""
        self._drop(self._voices.pop(side).name)

    @contextlib.contextmanager
    def speaking(self, side: str, strength: float = 1.0) -> Iterator[Any]:
        """The model as one side hears it: `base` without any adapter, another with its own, its scaling times `strength`."""
        voice = self._voices.get(side)
        if not self._voices:
            yield self._model
        elif voice is None:
            with self._model.disable_adapter():
                yield self._model
        else:
            self._model.set_adapter(voice.name, inference_mode=True)
            with (
                rescale_adapter_scale(self._model, strength) if strength != 1.0 else contextlib.nullcontext()
            ):
                yield self._model

    def _put(self, voice: Voice, config: LoraConfig, weights: dict[str, torch.Tensor]) -> None:
        bare = self._model.get_base_model() if isinstance(self._model, PeftModel) else self._model
        lora.teach(config, bare)
        new_rows.fit(bare, config)
        with quiet(), lora.literally(), torch.random.fork_rng(devices=[]):
            if isinstance(self._model, PeftModel):
                self._model.add_adapter(voice.name, config, autocast_adapter_dtype=False)
            else:
                self._model = get_peft_model(
                    self._model, config, adapter_name=voice.name, autocast_adapter_dtype=False
                )
        new_rows.teach(self._model)
        built = adapters.weights_of(self._model, voice.name)
        _require_same_weights(voice, built, weights)
        _cast(self._model, voice.name, next(iter(weights.values())).dtype)
        lora.put(self._model, weights, voice.name)
        self._model.eval()

    def _drop(self, name: str) -> None:
        model = self._model
        if not isinstance(model, PeftModel) or name not in model.peft_config:
            return
        others = [other for other in model.peft_config if other != name]
        if others:
            model.set_adapter(others[0], inference_mode=True)  # deleting the active one would warn
            model.delete_adapter(name)
        else:
            self._model = model.unload().eval()


def _stored(origin: Origin) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """An adapter's settings and weights, of a finished run or of a checkpoint.

    Raises:
        EngineError: it was trained on a base that it changed itself.
    """
    assert origin.adapter is not None
    if origin.step is None:
        config = LoraConfig.from_pretrained(str(origin.adapter))
        init = config.init_lora_weights
        if init not in INITS_THAT_KEEP_THE_BASE:
            raise EngineError(
                "chat.changed_base",
                f"the adapter in {origin.adapter} began with {init!r}, which changes the base it is put on",
                "try that run on its own, with the base it was saved with",
            )
        config.init_lora_weights = True  # drawn in a moment, and overwritten
        config.inference_mode = True
        return config, load_file(origin.adapter / FINISHED_FILE)
    assert origin.run is not None
    attached = origin.run.record().get("adapters") or {}
    targets, stacks = (tuple(attached.get(key) or ()) for key in ("target_modules", "target_parameters"))
    config = adapters.lora_config(origin.config.lora, targets, stacks, attached.get("token_indices"))
    config.inference_mode = True
    return config, load_file(origin.adapter / ADAPTER_FILE)


def _require_same_weights(voice: Voice, built: dict[str, Any], stored: dict[str, Any]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in built.items()}
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if expected != found:
        other = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        raise EngineError(
            "chat.adapter",
            f"the adapter of {voice.side!r} does not fit this base: {other[0]} is {found.get(other[0], 'missing')} "
            f"and should be {expected.get(other[0], 'left out')}; {len(other)} weights differ",
            "choose a run that was trained on the loaded model",
        )


def _cast(model: Any, name: str, dtype: torch.dtype) -> None:
    """Compute in the type that the adapter was trained in."""
    for path, parameter in model.named_parameters():
        if f".{name}." in path or path.endswith(f".{name}"):
            parameter.data = parameter.data.to(dtype)
