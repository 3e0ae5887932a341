"""The ways to store a weight in 4 bits that are measured against each other, and what to measure. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qlora_engine.errors import EngineError

TYPES = {"nf4": "NF4", "fp4": "FP4", "int4": "linear int4"}
"""Type -> its name. `int4` is the plain grid -7 ... 7 scaled by the largest weight of the block."""
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""What bitsandbytes 0.50 quantizes (functional.quantize_4bit)."""
TRAINED_BLOCK = 64
"""The block size that training uses."""


@dataclass(frozen=True)
class Variant:
    """One way: `quant_type` of `TYPES`, weights per absmax, and whether the absmax values are quantized too."""

    quant_type: str
    block_size: int = TRAINED_BLOCK
    double_quant: bool = False

    @property
    def key(self) -> str:
        """`nf4-64-dq`, `int4-128`."""
        return f"{self.quant_type}-{self.block_size}{'-dq' if self.double_quant else ''}"

    @property
    def title(self) -> str:
        """`NF4 + double quantization`, `FP4, blocks of 128`."""
        nested = " + double quantization" if self.double_quant else ""
        block = "" if self.block_size == TRAINED_BLOCK else f", blocks of {self.block_size}"
        return f"{TYPES[self.quant_type]}{nested}{block}"


def variant_of(key: str) -> Variant:
    """The variant of a `Variant.key`."""
    quant_type, block_size, *nested = key.split("-")
    return Variant(quant_type, int(block_size), bool(nested))


def grid(block_sizes: Sequence[int]) -> tuple[Variant, ...]:
    """Every type with every block size, with and without double quantization."""
    return tuple(
        Variant(quant_type, block_size, nested)
        for block_size in block_sizes
        for quant_type in TYPES
        for nested in (True, False)
    )


MAIN = grid((TRAINED_BLOCK,))
"""Those whose held-out loss is measured."""


@dataclass(frozen=True)
class Options:
    """What to measure. `max_layers` and `max_seconds` make a sample of it, and the report says of what.

    `block_sizes` always holds the one that training uses; `is_again` measures anew what is kept from before.
    """

    block_sizes: tuple[int, ...] = (64, 128, 256)
    max_layers: int | None = None
    max_rows: int = 64
    max_seconds: float | None = None
    has_loss: bool = True
    is_again: bool = False

    @property
    def variants(self) -> tuple[Variant, ...]:
        return grid(sorted({TRAINED_BLOCK, *self.block_sizes}))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def options_from(plain: Mapping[str, Any]) -> Options:
    """The options of `Options.to_json`, checked.

    Raises:
        EngineError: a block size that bitsandbytes does not know, or a limit below one.
    """
    options = Options(**{**plain, "block_sizes": tuple(plain.get("block_sizes", Options.block_sizes))})
    unknown = [size for size in options.block_sizes if size not in BLOCK_SIZES]
    if unknown:
        raise EngineError(
            "quality.block_size", f"a block of {unknown[0]} weights is not one that bitsandbytes knows",
            f"choose from {', '.join(map(str, BLOCK_SIZES))}",
        )  # fmt: skip
    for name in ("max_layers", "max_rows", "max_seconds"):
        limit = getattr(options, name)
        if limit is not None and not limit > 0:
            raise EngineError("quality.limit", f"{name} must be above 0, not {limit}", "leave it out for all")
    return options
