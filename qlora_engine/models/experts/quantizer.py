"""Has transformers' loader quantize experts too, one after the other, while it reads them. Imports the ML stack.

The loader asks a quantizer which parameters it quantizes, and hands it each as soon as it is read. Where a file keeps
every expert by itself, the loader would first stack a whole layer in 16 bits; `StreamedExperts` gives it one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import ConversionOps, MergeModulelist, WeightConverter
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import get_module_from_name
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from qlora_engine.models import structure
from qlora_engine.models.experts.stack import Stacked4bit, quantize

METHOD = "qlora_studio_4bit"


@register_quantization_config(METHOD)
class FourBitConfig(BitsAndBytesConfig):
    """bitsandbytes' settings, and: whether stacked experts are quantized too (`experts`), whether they stay in the
    computer's memory (`on_host`), who is told of each layer of how many (`told`), and layers that stay in 16 bits
    because the base has them so (`leave`)."""

    def __init__(
        self,
        *,
        experts: bool = True,
        on_host: bool = False,
        told: Callable[[int], None] | None = None,
        leave: Iterable[str] = (),
        **settings: Any,
    ) -> None:
        settings.pop("load_in_4bit", None)
        super().__init__(load_in_4bit=True, **settings)
        self.quant_method = METHOD
        self.experts, self.on_host, self.told = experts, on_host, told
        self.leave = sorted(leave)

    def to_dict(self) -> dict[str, Any]:
        """Without what cannot be written."""
        told, self.told = self.told, None
        try:
            plain: dict[str, Any] = super().to_dict()
        finally:
            self.told = told
        return plain


@register_quantizer(METHOD)
class FourBitQuantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' quantizer, for stacked experts as well as for linear layers."""

    def _process_model_before_weight_loading(self, model: Any, device_map: Any, **kwargs: Any) -> None:
        """Put 4-bit layers in the place of those that may become so (`structure`), without weights yet."""
        left = set(self.quantization_config.leave)
        linears = {path: m for path, m in structure.quantizable_linears(model).items() if path not in left}
        for path, module in linears.items():
            model.set_submodule(path, self._empty(module))
        wanted = structure.stacked_weights(model) if self.quantization_config.experts else ()
        self.stacks = {f"{path}.{name}" for path, _, name, _ in wanted}
        if self.stacks:
            model.set_experts_implementation(
                "eager"
            )  # which takes the experts one by one, those alone that are reached
        self.total = len(linears) + len(self.stacks)

    def _empty(self, module: Any) -> Linear4bit:
        settings = self.quantization_config
        inputs, outputs = structure.features_of(module)
        with torch.device("meta"):
            made = Linear4bit(
                inputs,
                outputs,
                module.bias is not None,
                settings.bnb_4bit_compute_dtype,
                compress_statistics=settings.bnb_4bit_use_double_quant,
                quant_type=settings.bnb_4bit_quant_type,
            )
        made.source_cls = type(module)
        return made.requires_grad_(False)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return param_name in self.stacks or super().param_needs_quantization(model, param_name, **kwargs)

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)

    def update_weight_conversions(self, weight_conversions: Any, model: Any) -> Any:
        return [
            StreamedExperts.like(one, self) if _stacks_experts(one) and self.stacks else one
            for one in super().update_weight_conversions(weight_conversions, model)
        ]

    def __deepcopy__(self, memo: Any) -> FourBitQuantizer:
        """The loader copies a converter for every parameter; all of them are this quantizer's."""
        return self

    def pack(self, experts: Iterable[torch.Tensor]) -> Stacked4bit:
        settings = self.quantization_config
        return quantize(
            experts,
            settings.bnb_4bit_compute_dtype,
            settings.bnb_4bit_quant_type,
            settings.bnb_4bit_use_double_quant,
        )

    def put(self, model: Any, name: str, stack: Stacked4bit) -> None:
        """Let `stack` be the parameter of that name, in its old place among the others of its module."""
        module, leaf = get_module_from_name(model, name)
        stack._is_hf_initialized = True
        if self.quantization_config.on_host:
            stack.leave_device()
        module._parameters[leaf] = stack
        self.tell()

    def take(self, model: Any, name: str, ready: Any) -> Params4bit:
        """The parameter of a weight that the base has in 4 bits (`packed_loading.Ready4bit`): its own bytes."""
        module, _ = get_module_from_name(model, name)
        packed, constants = ready.stored
        made = Params4bit.from_prequantized(
            packed.view(torch.uint8).reshape(-1, 1), constants, device=ready.device, module=module
        )
        made.quant_state.dtype = self.quantization_config.bnb_4bit_compute_dtype
        module._is_hf_initialized = True
        return made

    def tell(self) -> None:
        """A layer was quantized."""
        if self.quantization_config.told is not None:
            self.quantization_config.told(self.total)


class _Quantize(ConversionOps):
    """Linear layers as bitsandbytes does; a stack expert by expert, straight into the model."""

    def __init__(self, quantizer: FourBitQuantizer) -> None:
        self.hf_quantizer = quantizer

    def convert(self, input_dict: Any, **kwargs: Any) -> dict[str, Any]:
        linears, done = {}, {}
        for name, value in input_dict.items():
            whole = value[0] if isinstance(value, list) else value
            if name in self.hf_quantizer.stacks:
                self.hf_quantizer.put(kwargs["model"], name, self.hf_quantizer.pack(whole))
                kwargs["missing_keys"].discard(name)
            elif hasattr(whole, "stored"):
                done[name] = self.hf_quantizer.take(kwargs["model"], name, whole)
            else:
                linears[name] = value
        if linears:
            done |= Bnb4bitQuantize(self.hf_quantizer).convert(linears, **kwargs)
        if done:
            self.hf_quantizer.tell()
        return done


class StreamedExperts(WeightConverter):
    """A converter that makes one expert of a stack at a time from the tensors of the file, and quantizes it."""

    __slots__ = ("quantizer",)

    @classmethod
    def like(cls, other: WeightConverter, quantizer: FourBitQuantizer) -> StreamedExperts:
        made = cls(
            other._original_source_patterns,
            other._original_target_patterns,
            list(other.operations),
            other.force_cpu,
        )
        made.scope_prefix, made.base_model_prefix = other.scope_prefix, other.base_model_prefix
        made.quantizer = quantizer
        return made

    def convert(
        self, layer_name: str, model: Any = None, loading_info: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        if layer_name not in self.quantizer.stacks:
            done: dict[str, Any] = super().convert(
                layer_name, model=model, loading_info=loading_info, **kwargs
            )
            return done
        waiting = {pattern: self.collected_tensors.pop(pattern) for pattern in list(self.collected_tensors)}
        self.quantizer.put(
            model, layer_name, self.quantizer.pack(self._experts(waiting, layer_name, model, kwargs))
        )
        loading_info.missing_keys.discard(layer_name)
        return {}

    def _experts(self, waiting: Any, layer_name: str, model: Any, kwargs: Any) -> Iterator[torch.Tensor]:
        """Each (rows, columns): the file's tensors of one expert, through the same operations as all of them."""
        for number in range(len(next(iter(waiting.values())))):
            found: Any = {pattern: [read[number]()] for pattern, read in waiting.items()}
            for operation in self.operations:
                found = operation.convert(
                    found, source_patterns=self.source_patterns, target_patterns=self.target_patterns,
                    full_layer_name=layer_name, model=model, config=kwargs.get("config"), missing_keys=None,
                )  # fmt: skip
            value = next(iter(found.values()))
            yield (value[0] if isinstance(value, list) else value)[0]


def _stacks_experts(converter: Any) -> bool:
    return isinstance(converter, WeightConverter) and any(
        isinstance(operation, MergeModulelist) and operation.dim == 0 for operation in converter.operations
    )
