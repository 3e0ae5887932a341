"""An adapter as a GGUF file that llama.cpp puts on a base of its own (`--lora`). Imports the ML stack.

Layout, as llama.cpp reads it (src/llama-adapter.cpp): `general.type` adapter, `adapter.type` lora, `adapter.lora.alpha`, and
for each weight NAME of the base the tensors NAME.lora_a (rank, in) and NAME.lora_b (out, rank); it adds alpha / rank B A.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from qlora_engine.errors import EngineError
from qlora_engine.export.gguf import Plan, TensorPlan, interleave
from qlora_engine.export.merge import Delta

TYPES = {"f32": np.float32, "f16": np.float16}


def require_sayable(adapter_config: Mapping[str, Any], init: str, rows: int | None) -> None:
    """Refuse what a LoRA file cannot hold. `rows` of the embeddings where the run enlarged them.

    Raises:
        EngineError: DoRA, LoftQ, or new rows of the embeddings, with the reason.
    """
    if rows is not None:
        raise EngineError(
            "export.gguf_lora",
            f"the run enlarged the embeddings to {rows:,} rows, and a LoRA file changes weights of the base without adding any",
            "export it as gguf: the merge has them inside",
        )
    if adapter_config.get("use_dora"):
        raise EngineError(
            "export.gguf_lora",
            "llama.cpp adds adapters to the weights, and DoRA also scales every row of the sum, which such a file cannot say",
            "export it as gguf: the merge has it inside",
        )
    if init == "loftq":
        raise EngineError(
            "export.gguf_lora",
            "a LoftQ adapter makes up for what this base lost in 4 bits, so on any other base file it would be wrong",
            "export it as gguf: it is merged into the dequantized weights there",
        )


def tensors_of(plan: Plan, deltas: Mapping[str, Delta], alpha: float) -> dict[str, np.ndarray]:
    """Name in the file -> values, fp32. What is not alpha / rank, as with rsLoRA, goes into B.

    Raises:
        EngineError: a module that has no name in a GGUF file.
    """
    found = {}
    for module, delta in deltas.items():
        tensor = plan.tensors.get(f"{module}.weight")
        if tensor is None:
            raise EngineError(
                "export.gguf_lora", f"a GGUF file has no name for {module}", "export the adapter for PEFT"
            )
        rank = delta.a.shape[0]
        b = delta.b.numpy() * np.float32(delta.scaling * rank / alpha)
        found[f"{tensor.name}.lora_a"] = delta.a.numpy()
        found[f"{tensor.name}.lora_b"] = _ordered(b, tensor)
    return found


def write_file(plan: Plan, tensors: Mapping[str, np.ndarray], alpha: float, dtype: str, file: Path) -> None:
    """Write the adapter; `dtype` is one of `TYPES`.

    Raises:
        EngineError: a value too large for fp16.
        OSError: the disk is full.
    """
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        aside = Path(folder) / file.name
        writer = gguf.GGUFWriter(aside, plan.architecture)
        try:
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_name(str(plan.fields["general.name"]))
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
            for name, values in tensors.items():
                writer.add_tensor(name, _stored(name, values, dtype))
            writer.write_header_to_file(aside)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        aside.replace(file)


def _ordered(b: np.ndarray, tensor: TensorPlan) -> np.ndarray:
    """The rows of B are the rows of the weight, which llama.cpp orders another way for q and k."""
    return interleave(b, tensor.heads) if tensor.heads is not None else b


def _stored(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "f16" and float(np.abs(values).max(initial=0.0)) > np.finfo(np.float16).max:
        raise EngineError("export.range", f"{name} holds values too large for fp16", "choose f32")
    return np.ascontiguousarray(values.astype(TYPES[dtype]))
