"""LoRA on experts in 4 bits, in the layout that PEFT loads onto the 16-bit experts. Imports the ML stack.

PEFT wraps the module of the experts once for each of its parameters (`LoraConfig.target_parameters`) and adds the delta to
the whole stack. The wrapper here is the same to PEFT, with the same names and shapes; it hands the factors to the stack,
which adds them to the product of each expert that tokens reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as peft_layer
from peft.utils import transformers_weight_conversion as conversion

from qlora_engine.errors import EngineError
from qlora_engine.models import structure
from qlora_engine.models.experts.stack import Factors, Stacked4bit, stacks_of

WEIGHT = ".weight"


class ParamWrapper(peft_layer.ParamWrapper):
    """One stack with its adapters. Named as PEFT's own is: PEFT knows it by that name when it wraps a second parameter."""

    def get_param(self) -> Stacked4bit:
        found: Stacked4bit = getattr(self.get_base_layer(), self.parameter_name)
        return found

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        self.num_experts, rows, columns = self.get_param().form.shape
        self._param_ndim = 3
        return rows, columns

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        where = self.get_param().device_of_sums
        for layers in (self.lora_A, self.lora_B):
            if adapter_name in layers and next(layers[adapter_name].parameters()).device.type != "meta":
                layers[adapter_name].to(where)

    @contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        stack = self.get_param()
        before = stack.adapters
        stack.adapters = tuple(self._factors(name) for name in active_adapters if name in self.lora_A)
        try:
            yield
        finally:
            stack.adapters = before

    def _factors(self, name: str) -> Factors:
        """PEFT keeps A as (experts x rank, in) and B as (out, rank x experts), the experts innermost."""
        count = self.num_experts
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        first = a.reshape(count, -1, a.shape[-1])
        second = b.reshape(b.shape[0], -1, count).permute(2, 0, 1)
        if self._did_swap_in_out_features:
            return Factors(second, first, self.scaling[name])
        return Factors(first.mT, second.mT, self.scaling[name])

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError("experts in 4 bits are not merged in place; export the run")


def teach(config: LoraConfig, model: Any) -> LoraConfig:
    """Let PEFT wrap the stacks of `model` as they must be, and its linear layers as such (see `plain_targets`)."""
    as_weights = {n for n in config.target_parameters or () if n.endswith(WEIGHT)}
    config.target_modules = {*(config.target_modules or ()), *(n.removesuffix(WEIGHT) for n in as_weights)}
    config.target_parameters = sorted(set(config.target_parameters or ()) - as_weights) or None
    holders = {
        type(m) for m in model.modules() if any(isinstance(p, Stacked4bit) for p in m._parameters.values())
    }
    if config.target_parameters and holders:
        config._register_custom_module(dict.fromkeys(holders, ParamWrapper))
    return config


@contextmanager
def literally() -> Iterator[None]:
    """Have PEFT take the names in a configuration for what they are. Of classes whose experts were once layers of their own
    it takes `gate_proj`, wherever it is, for such a layer, and looks for the stacked experts instead. Weights too: names
    that a class's old files had are replaced wherever they stand, within longer names as well, and then fit nothing."""
    originals = (
        conversion.convert_peft_config_for_transformers,
        conversion.convert_peft_adapter_state_dict_for_transformers,
    )
    conversion.convert_peft_config_for_transformers = lambda *args, **kwargs: None
    conversion.convert_peft_adapter_state_dict_for_transformers = _as_they_are
    try:
        yield
    finally:
        (
            conversion.convert_peft_config_for_transformers,
            conversion.convert_peft_adapter_state_dict_for_transformers,
        ) = originals


def _as_they_are(
    model: Any, peft_config: Any, adapter_state_dict: dict[str, Any], adapter_name: str = "default"
) -> dict[str, Any]:
    return adapter_state_dict


def put(model: Any, weights: dict[str, Any], adapter_name: str = "default") -> None:
    """Give the adapter of that name these weights, by the names that they have in `model`.

    Raises:
        ValueError: one has no place, which PEFT would leave out without a word.
    """
    with literally():
        done = set_peft_model_state_dict(model, weights, adapter_name=adapter_name)
    if done.unexpected_keys:
        raise ValueError(f"{done.unexpected_keys[0]} has no place in the model")


def plain_targets(config: LoraConfig, model: Any) -> tuple[set[str], list[str] | None]:
    """(modules, parameters) by which plain PEFT finds what `config` was trained on: layers that it would take for experts
    are named by their weights, of which it makes the same adapter."""
    taken = _taken_for_experts(config, model)
    modules = set(config.target_modules or ())
    weights = {
        ".".join(_tail(path.split("."))) + WEIGHT
        for path, module in model.named_modules()
        if isinstance(module, LoraLayer) and not isinstance(module, peft_layer.ParamWrapper)
        if any(path == name or path.endswith(f".{name}") for name in taken)
    }
    return modules - taken, sorted({*(config.target_parameters or ()), *weights}) or None


def require_plain(config: LoraConfig, model: Any) -> None:
    """Refuse what plain PEFT could not load again.

    Raises:
        EngineError: dropout or DoRA on a layer that PEFT knows by its weight alone.
    """
    taken = _taken_for_experts(config, model)
    if taken and (config.lora_dropout or config.use_dora):
        what = "DoRA" if config.use_dora else "dropout"
        raise EngineError(
            "lora.targets",
            f"with {what} the adapter on {min(taken)} could not be loaded again: of this model's class, PEFT takes that name "
            "for its experts",
            f"leave {', '.join(sorted(taken))} out of lora.targets, for example with attention, or train without {what}",
        )


def _taken_for_experts(config: LoraConfig, model: Any) -> set[str]:
    """The target modules that PEFT would look for among the experts of `model`."""
    taken = set()
    for name in config.target_modules or ():
        probe = LoraConfig(target_modules=[name])
        try:
            conversion.convert_peft_config_for_transformers(probe, model, None)
        except ValueError:  # half of what it would fuse
            taken.add(name)
            continue
        if set(probe.target_modules or ()) != {name}:
            taken.add(name)
    return taken


def expert_parameters(model: Any) -> tuple[str, ...]:
    """What PEFT is to be told to adapt all experts: each stack's name from the module above its own, without numbers."""
    stacked = (f"{path}.{name}" for path, _, name, _ in structure.stacked_weights(model))
    names = set(stacks_of(model)) or set(stacked)
    return tuple(sorted({".".join(_tail(name.split("."))) for name in names}))


def _tail(parts: Sequence[str]) -> Sequence[str]:
    """All behind the last number: `mlp.experts.gate_up_proj`."""
    last = max((place for place, part in enumerate(parts) if part.isdigit()), default=-1)
    return parts[last + 1 :]
