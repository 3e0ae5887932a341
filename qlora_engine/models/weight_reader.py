"""Reads rows of a base's stored weights, a few at a time; of packed ones what they stand for. Imports torch.

Nothing is mapped: what is read through a mapping counts as this process's memory until the file is closed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qlora_engine.models.files import StoredTensor

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8,
    "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What four bits stand for: a sign, two bits of exponent, one of mantissa."""
EXPONENT_BIAS = 127


def read(folder: Path, tensor: StoredTensor) -> torch.Tensor:
    """A whole tensor of a folder.

    Raises:
        OSError: the file is gone or shorter than its header says.
    """
    if tensor.shape:
        return read_rows(folder, tensor, 0, tensor.shape[0])
    return _stored(folder, tensor, 0, 1).reshape(())


def read_rows(folder: Path, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` (of experts kept together: experts) as they are stored, or what they stand for.

    Raises:
        OSError: the file is gone or shorter than its header says.
    """
    if tensor.packed is None:
        return _stored(folder, tensor, start, stop)
    readers = {"fp8": _fp8, "mxfp4": _mxfp4, "bitsandbytes": _bitsandbytes}
    return readers[tensor.packed.kind](folder, tensor, start, stop)


def bitsandbytes_parts(folder: Path, tensor: StoredTensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The packed bytes and the constants, as `Params4bit.from_prequantized` takes them."""
    packed = tensor.packed
    assert packed is not None
    found = {name: read(folder, part) for name, part in packed.parts.items()}
    names = {
        "absmax": "absmax",
        "map": "quant_map",
        "nested_absmax": "nested_absmax",
        "nested_quant_map": "nested_quant_map",
    }
    constants = {names[name]: value for name, value in found.items() if name in names}
    constants[f"quant_state.bitsandbytes__{packed.state['quant_type']}"] = found["state"]
    return found["weight"], constants


def _stored(folder: Path, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
    dtype, shape = TYPES[tensor.dtype], tuple(tensor.shape)
    row_bytes = tensor.nbytes // shape[0] if shape and shape[0] else tensor.nbytes
    buffer = torch.empty((stop - start) * row_bytes, dtype=torch.uint8)
    assert tensor.start is not None
    with (folder / tensor.file).open("rb", buffering=0) as stream:
        stream.seek(tensor.start + start * row_bytes)
        view = memoryview(buffer.numpy())
        while view:
            got = stream.readinto(view)
            if not got:
                raise OSError(5, f"the base's file {tensor.file} became shorter", str(stream.name))
            view = view[got:]
    return buffer.view(dtype).reshape(stop - start, *shape[1:]) if shape else buffer.view(dtype)[0]


def _fp8(folder: Path, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
    """Each number times the scale of its block, in fp32."""
    assert tensor.packed is not None
    weight = _stored(folder, tensor.packed.parts["weight"], start, stop).float()
    stored = tensor.packed.parts["scale"]
    if math.prod(stored.shape) == 1:
        return weight * read(folder, stored).float()
    if len(tensor.shape) == 3:
        scale = _stored(folder, stored, start, stop).float()
        return weight * _spread(scale, tensor.packed.block, 0, tensor.shape[-2], tensor.shape[-1])
    rows = tensor.packed.block[0]
    scale = _stored(folder, stored, start // rows, -(-stop // rows)).float()
    return weight * _spread(scale, tensor.packed.block, start % rows, stop - start, tensor.shape[-1])


def _spread(scale: torch.Tensor, block: tuple[int, int], skip: int, rows: int, columns: int) -> torch.Tensor:
    """(.., rows, columns) of scales, one for each number."""
    wide = scale.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return wide[..., skip : skip + rows, :columns]


def _mxfp4(folder: Path, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
    """(experts, in, out) in bf16, which holds every such number; one expert after the other."""
    return torch.stack([mxfp4_expert(folder, tensor, number) for number in range(start, stop)])


def mxfp4_expert(folder: Path, tensor: StoredTensor, number: int) -> torch.Tensor:
    """One expert, (in, out). The first of two numbers is in the lower half of a byte."""
    assert tensor.packed is not None
    blocks = _stored(folder, tensor.packed.parts["blocks"], number, number + 1)[0]
    exponents = _stored(folder, tensor.packed.parts["scales"], number, number + 1)[0].int() - EXPONENT_BIAS
    table = torch.tensor(E2M1, dtype=torch.bfloat16)
    pairs = torch.stack((table[(blocks & 15).int()], table[(blocks >> 4).int()]), -1)
    numbers = torch.ldexp(pairs.flatten(-2), exponents.unsqueeze(-1))
    return numbers.reshape(blocks.shape[0], -1).to(torch.bfloat16).T


def _bitsandbytes(folder: Path, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
    from bitsandbytes import functional

    from qlora_engine.models.four_bit import absmax_of, dequantized

    assert tensor.packed is not None
    parts, said = tensor.packed.parts, tensor.packed.state
    state = _state(folder, parts, said)
    width, block = math.prod(tensor.shape[1:]), int(said["blocksize"])
    is_whole = (start * width) % block == 0
    first, last = (start * width, stop * width) if is_whole else (0, math.prod(tensor.shape))
    packed = _packed_bytes(folder, parts["weight"], first // 2, -(-last // 2))
    part = functional.QuantState(
        absmax=absmax_of(state)[first // block : -(-last // block)], shape=torch.Size((1, last - first)),
        code=state.code, blocksize=block, quant_type=said["quant_type"], dtype=torch.float32,
    )  # fmt: skip
    found = dequantized(packed.unsqueeze(-1), part).flatten()
    skipped = 0 if is_whole else start * width
    return found[skipped : skipped + (stop - start) * width].reshape(stop - start, *tensor.shape[1:])


def _packed_bytes(folder: Path, weight: StoredTensor, start: int, stop: int) -> torch.Tensor:
    """Bytes of a packed weight, which may be stored under a wider type (`bnb_4bit_quant_storage`)."""
    if weight.dtype == "U8" and weight.shape == (weight.nbytes, 1):
        return _stored(folder, weight, start, stop).flatten()
    return read(folder, weight).reshape(-1).view(torch.uint8)[start:stop]


def _state(folder: Path, parts: Mapping[str, StoredTensor], said: Mapping[str, Any]) -> Any:
    """bitsandbytes' own state, made without its JSON."""
    from bitsandbytes import functional

    nested = offset = None
    if "nested_absmax" in parts:
        offset = torch.tensor(float(said["nested_offset"]))
        nested = functional.QuantState(
            absmax=read(folder, parts["nested_absmax"]), code=read(folder, parts["nested_quant_map"]),
            blocksize=int(said["nested_blocksize"]), dtype=torch.float32,
        )  # fmt: skip
    return functional.QuantState(
        absmax=read(folder, parts["absmax"]), code=read(folder, parts["map"]), blocksize=int(said["blocksize"]),
        quant_type=said["quant_type"], dtype=torch.float32, shape=torch.Size(said["shape"]), offset=offset, state2=nested,
    )  # fmt: skip
