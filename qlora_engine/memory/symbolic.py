"""Builds the real model class without memory: on meta tensors, quantized as bitsandbytes would, with its adapters, then
as fake tensors that can run a step. Imports the ML stack.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import masking_utils

from qlora_engine import adapters
from qlora_engine.config import TrainingConfig, TrainingSettings
from qlora_engine.errors import EngineError
from qlora_engine.memory import static
from qlora_engine.models import class_child, structure
from qlora_engine.models.experts.stack import Form, Packed, Stacked4bit
from qlora_engine.models.quiet import quiet
from qlora_engine.models.spec import ModelFacts, brings_code, text_config
from qlora_engine.training import recomputing

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_thread = threading.local()


def full_config(facts: ModelFacts) -> Any:
    """The transformers config of the whole model.

    Raises:
        EngineError: the model brings code of its own, or transformers does not build it.
    """
    if brings_code(facts.config):
        raise EngineError(
            "rehearsal.unsupported",
            f"{facts.name} brings code of its own, which a rehearsal does not run",
            "the closed form still holds: leave out --rehearse",
        )
    try:
        return class_child.class_config(
            {
                **text_config(facts.config),
                "tie_word_embeddings": facts.is_tied,
                "vocab_size": facts.vocab_size,
            }
        )
    except EngineError as error:
        raise EngineError(
            "rehearsal.unsupported",
            f"transformers does not build {facts.name}: {error.message}",
            "the closed form still holds: leave out --rehearse",
        ) from error


def layer_kinds(config: Any, blocks: str) -> tuple[str, ...]:
    """The kind of each decoder block, read off the class: blocks of the same tensors and the same settings cost the same."""
    model = class_child.build(copy.deepcopy(config))
    layers = model.get_submodule(blocks) if blocks else ()
    settings = _per_layer(model.config, len(layers))
    return tuple(
        repr([
            sorted((name, tuple(p.shape)) for name, p in layer.named_parameters()),
            [str(values[number]) for values in settings.values()],
        ])
        for number, layer in enumerate(layers)
    )  # fmt: skip


def base_layers(kinds: Sequence[str], training: TrainingSettings) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(the kinds, told apart by who recomputes; the layers to trace first). Where not every layer recomputes, the last comes
    with them: its backward pass is that of one or the other."""
    if not training.gradient_checkpointing or training.checkpoint_every < 2:
        return tuple(kinds), _base(kinds, is_checkpointed=training.gradient_checkpointing)
    told = tuple(f"{kind} {number % training.checkpoint_every == 0}" for number, kind in enumerate(kinds))
    return told, tuple(sorted({*_base(told, is_checkpointed=True), len(told) - 1}))


def _base(kinds: Sequence[str], *, is_checkpointed: bool) -> tuple[int, ...]:
    """The first layer of each kind. Without checkpointing the first layer keeps less than the others, since nothing before
    it is trained: then another of its kind comes with it."""
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    if not is_checkpointed and kinds:
        second = next((n for n, kind in enumerate(kinds) if n and kind == kinds[0]), None)
        first += [second] if second is not None else []
    return tuple(sorted(first))


def with_one_more(base: Sequence[int], kinds: Sequence[str], kind: str) -> tuple[int, ...]:
    """`base` and the next layer of that kind."""
    other = next(n for n, one in enumerate(kinds) if one == kind and n not in base)
    return tuple(sorted((*base, other)))


def build(
    config: Any,
    job: TrainingConfig,
    *,
    compute_dtype: torch.dtype,
    upcast_unquantized: bool,
    blocks: str = "",
    layers: Sequence[int] | None = None,
    unreached: frozenset[str] = frozenset(),
    experts_one_by_one: bool = False,
    new_rows: int = 0,
) -> Any:
    """The PEFT model on the meta device, ready to train: quantized, adapters attached, checkpointing as asked. With
    `layers`, of the decoder blocks in `blocks` only those numbers, in that order. `unreached`: patterns of layers without
    adapters. `experts_one_by_one`: experts in 4 bits are multiplied as a run does it, else all in one product. `new_rows`: of the
    embeddings' rows, the last so many are trained."""
    with quiet():
        model = class_child.build(copy.deepcopy(config), compute_dtype)
    with quiet(), torch.device("meta"):
        if layers is not None:
            _keep_layers(model, blocks, layers)
        _quantize(model, job, compute_dtype)
        if experts_one_by_one:
            _quantize_experts(model, job, compute_dtype)
        if upcast_unquantized:
            _upcast(model)
    model.config.use_cache = False
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True
    model.unreached_linears = unreached
    with quiet():
        peft_model, _ = adapters.attach(model, job.lora, new=new_rows)
    peft_model.train()
    if job.training.gradient_checkpointing and model.supports_gradient_checkpointing:
        recomputing.enable(model)
        _recompute_some(model, blocks, layers, job.training.checkpoint_every)
    return peft_model


def _recompute_some(model: Any, blocks: str, layers: Sequence[int] | None, every: int) -> None:
    """Those that the whole model would recompute, of the blocks that are left of it."""
    if every < 2 or not blocks:
        return
    for place, block in enumerate(model.get_submodule(blocks)):
        number = place if layers is None else layers[place]
        block.gradient_checkpointing = number % every == 0


def _keep_layers(model: Any, blocks: str, layers: Sequence[int]) -> None:
    """Cut the list of decoder blocks, and every setting that the config gives by layer."""
    whole = model.get_submodule(blocks)
    parent, _, leaf = blocks.rpartition(".")
    setattr(model.get_submodule(parent), leaf, torch.nn.ModuleList([whole[number] for number in layers]))
    for one in {id(c): c for c in (model.config, model.config.get_text_config(decoder=True))}.values():
        cut = {name: [values[n] for n in layers] for name, values in _per_layer(one, len(whole)).items()}
        for name in LAYER_COUNTS:
            if name in vars(one):
                vars(one)[name] = len(layers)
        vars(one).update(cut)


def _per_layer(config: Any, count: int) -> dict[str, list[Any]]:
    """The settings that hold one value for each layer."""
    text = config.get_text_config(decoder=True)
    return {
        name: list(values)
        for name, values in vars(text).items()
        if isinstance(values, list | tuple) and len(values) == count and count > 1
    }


def give_storage(model: Any) -> None:
    """Replace every meta tensor by an empty tensor on the CPU; call it under a FakeTensorMode, where that costs nothing."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if isinstance(parameter, Stacked4bit):
                _store_stack(parameter)
            elif parameter is not None:
                module._parameters[name] = made.setdefault(id(parameter), _stored(parameter))
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = _empty(buffer)


def _store_stack(stack: Stacked4bit) -> None:
    """The parameter itself is never computed with, only what it refers to."""
    stack.stored = stack.stored.map(_empty)
    first, second = stack.form.codes
    stack.form = replace(stack.form, codes=(_empty(first), None if second is None else _empty(second)))
    stack.device_of_sums = torch.device("cpu")


def quantization_states(model: Any) -> Iterator[torch.Tensor]:
    """Every tensor of the quantization constants."""
    for parameter in model.parameters():
        if isinstance(parameter, Stacked4bit):
            yield from parameter.stored.tensors()
            yield from (code for code in parameter.form.codes if code is not None)
            continue
        state = getattr(parameter, "quant_state", None)
        if state is None:
            continue
        yield from (state.absmax, state.code)
        if state.nested:
            yield from (state.state2.absmax, state.state2.code, state.offset)


@contextmanager
def values_unknown() -> Iterator[None]:
    """Make transformers treat fake tensors as it treats real ones: no mask where none is needed. For this thread only."""
    _install()
    _thread.is_rehearsing = True
    try:
        yield
    finally:
        _thread.is_rehearsing = False


def _install() -> None:
    original: Callable[..., bool] = masking_utils.is_tracing
    if getattr(original, "knows_rehearsals", False):
        return

    def is_tracing(tensor: Any = None) -> bool:
        return False if getattr(_thread, "is_rehearsing", False) else original(tensor)

    is_tracing.knows_rehearsals = True  # type: ignore[attr-defined]
    masking_utils.is_tracing = is_tracing


def _quantize(model: Any, job: TrainingConfig, compute_dtype: torch.dtype) -> None:
    """Replace each linear layer that loading quantizes."""
    linears = structure.quantizable_linears(model)
    for name, module in linears.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _packed(module, job, compute_dtype))


def _quantize_experts(model: Any, job: TrainingConfig, dtype: torch.dtype) -> None:
    """Replace each stack of experts, as `models.experts.quantizer` does."""
    stacks = list(structure.stacked_weights(model))
    for _, module, name, parameter in stacks:
        experts, rows, columns = parameter.shape
        blocks = -(-rows * columns // static.BLOCK)
        stored = Packed(
            torch.empty(experts, (rows * columns + 1) // 2, dtype=torch.uint8),
            torch.empty(experts, blocks, dtype=torch.uint8),
            torch.empty(experts, -(-blocks // static.NESTED_BLOCK)),
            torch.empty(experts),
        )
        codes = torch.empty(16), torch.empty(256)
        form = Form((experts, rows, columns), job.quantization.quant_type, dtype, codes)
        module._parameters[name] = Stacked4bit(stored, form)
    if stacks:
        model.set_experts_implementation("eager")


def _packed(module: Any, job: TrainingConfig, compute_dtype: torch.dtype) -> Linear4bit:
    settings = job.quantization
    in_features, out_features = structure.features_of(module)
    packed = Linear4bit(
        in_features,
        out_features,
        bias=module.bias is not None,
        compute_dtype=compute_dtype,
        quant_type=settings.quant_type,
    )
    weights = in_features * out_features
    packed.weight = Params4bit(
        torch.empty((weights + 1) // 2, 1, dtype=torch.uint8),
        requires_grad=False,
        quant_state=_double_quantized(module, settings.quant_type, compute_dtype),
        quant_type=settings.quant_type,
        bnb_quantized=True,
    )
    packed.support_avx512bf16_for_cpu = False
    if module.bias is not None:
        packed.bias = torch.nn.Parameter(torch.empty_like(module.bias), requires_grad=False)
    return packed


def _double_quantized(module: Any, quant_type: str, dtype: torch.dtype) -> QuantState:
    """Constants as `quantize_4bit(compress_statistics=True)` makes them; without double quantization the ledger leaves
    out what only it allocates."""
    in_features, out_features = structure.features_of(module)
    blocks = -(-in_features * out_features // static.BLOCK)
    return QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=torch.Size((out_features, in_features)),
        code=torch.empty(16),
        blocksize=static.BLOCK,
        quant_type=quant_type,
        dtype=dtype,
        offset=torch.empty(()),
        state2=QuantState(
            absmax=torch.empty(-(-blocks // static.NESTED_BLOCK)),
            code=torch.empty(256),
            blocksize=static.NESTED_BLOCK,
            dtype=torch.float32,
        ),
    )


def _upcast(model: Any) -> None:
    """As PEFT's k-bit preparation does it: whatever is not quantized goes to fp32. Biases of 4-bit layers do not stay:
    bitsandbytes casts them back at the first forward."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not isinstance(parameter, Params4bit) and not (
                isinstance(module, Linear4bit) and name == "bias"
            ):
                parameter.data = parameter.data.to(torch.float32)


def _stored(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    made = torch.nn.Parameter(_empty(parameter), requires_grad=parameter.requires_grad)
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        state.absmax, state.code, state.offset = (
            _empty(state.absmax),
            _empty(state.code),
            _empty(state.offset),
        )
        state.state2.absmax, state.state2.code = _empty(state.state2.absmax), _empty(state.state2.code)
        made.quant_state = state
    return made


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def settings_key(facts: ModelFacts, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a rehearsal's result depends on."""
    rows = facts.vocab_size, facts.new_rows
    return {"config": dict(facts.config), "is_tied": facts.is_tied, "rows": rows, "settings": dict(settings)}
