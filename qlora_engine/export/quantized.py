"""Which weights of a plain model a run kept in 4 bits. Imports the ML stack."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from qlora_engine.models import names, structure


@lru_cache(maxsize=4)
def quantized_paths(base: Path) -> tuple[str, ...]:
    """Paths of the linear layers in the plain model: of one that also sees, of its language model alone."""
    model = names.skeleton(base)
    language = names.language_prefix(model)
    return tuple(sorted(path for path in structure.quantizable_linears(model) if path.startswith(language)))


@lru_cache(maxsize=4)
def other_linears(base: Path) -> tuple[str, ...]:
    """Paths of all other linear layers of the plain model, its head among them: routers, what kernels read, a tower that sees."""
    chosen = set(quantized_paths(base))
    return tuple(sorted(set(structure.linear_layers(names.skeleton(base))) - chosen))


@lru_cache(maxsize=4)
def quantized_stacks(base: Path) -> tuple[str, ...]:
    """Names of the parameters that hold experts."""
    return tuple(
        sorted(f"{path}.{name}" for path, _, name, _ in structure.stacked_weights(names.skeleton(base)))
    )
