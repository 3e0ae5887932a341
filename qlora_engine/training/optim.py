"""Optimizers: building them, carrying their state through a checkpoint without losing its paging. Imports torch.

bitsandbytes' own `load_state_dict` moves paged states into ordinary device memory (bitsandbytes #782); here each
state goes back into a buffer made by the optimizer itself, so what was paged is paged again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import bitsandbytes as bnb
import torch

from qlora_engine.config import TrainingSettings

BNB_STATE_BUFFERS = ("state1", "state2")
BNB_TABLES = {"qmap1": "dynamic", "qmap2": "udynamic"}


def build(settings: TrainingSettings, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer named by `settings.optimizer` over `parameters`, in the order given."""
    common: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "weight_decay": settings.weight_decay,
    }
    adam: dict[str, Any] = {**common, "eps": settings.epsilon}
    builders: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "paged_adamw_32bit": lambda: bnb.optim.PagedAdamW32bit(parameters, **adam),
        "paged_adamw_8bit": lambda: bnb.optim.PagedAdamW8bit(parameters, **adam),
        "adamw_8bit": lambda: bnb.optim.AdamW8bit(parameters, **adam),
        "lion_8bit": lambda: bnb.optim.Lion8bit(parameters, **common),
        "adamw_torch_fused": lambda: torch.optim.AdamW(parameters, fused=True, **adam),
    }
    return builders[settings.optimizer]()


def step(optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step; bitsandbytes' warning about paging on the CPU is said by us, once, in words."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        optimizer.step()


def export_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state as CPU tensors named `<parameter index>.<key>`, and its plain numbers as JSON-ready values.

    Copying reads managed memory from the CPU: paged states move there, and the next step is slower.
    """
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            if key in BNB_TABLES:
                continue  # a constant of bitsandbytes, rebuilt on import
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                numbers[f"{index}.{key}"] = value
    return tensors, numbers


def import_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]
) -> None:
    """Put an exported state back, paged where the optimizer pages.

    Raises:
        ValueError: the state belongs to other parameters.
    """
    parameters = _parameters(optimizer)
    _synchronize(parameters)
    for name, value in [*tensors.items(), *numbers.items()]:
        index, key = name.split(".", 1)
        if int(index) >= len(parameters):
            raise ValueError(f"optimizer state {name} has no parameter")
        parameter = parameters[int(index)]
        optimizer.state[parameter][key] = _placed(optimizer, parameter, key, value)
    if isinstance(optimizer, bnb.optim.optimizer.Optimizer8bit):
        _restore_tables(optimizer, parameters)


def _placed(optimizer: Any, parameter: torch.nn.Parameter, key: str, value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if isinstance(optimizer, bnb.optim.optimizer.Optimizer8bit) and key in BNB_STATE_BUFFERS:
        if value.shape != parameter.shape:
            raise ValueError(
                f"optimizer state {key} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
            buffer = optimizer.get_state_buffer(parameter, dtype=value.dtype)
        buffer.copy_(value)
        return buffer
    return value.to(parameter.device, copy=True)


def _restore_tables(optimizer: Any, parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        state = optimizer.state.get(parameter)
        if not state or "state1" not in state or state["state1"].dtype != torch.uint8:
            continue
        for key, name in BNB_TABLES.items():
            if key == "qmap1" or "state2" in state:
                optimizer.name2qmap[name] = optimizer.name2qmap[name].to(parameter.device)
                state[key] = optimizer.name2qmap[name]


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _synchronize(parameters: list[torch.nn.Parameter]) -> None:
    if parameters and parameters[0].device.type == "cuda":
        torch.cuda.synchronize(parameters[0].device)
