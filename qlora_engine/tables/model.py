"""The `[model]` and `[quantization]` tables: which base, where, and in which bits."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_engine.knobs import knob


@dataclass(frozen=True)
class ModelSettings:
    name: str = knob(
        "starter",
        label="Model",
        help="`starter`, a folder, a .gguf file, a known name, or a Hugging Face id such as `meta-llama/Llama-3.2-1B`.",
        resume="base",
    )
    revision: str | None = knob(
        None,
        label="Revision",
        help="Branch, tag or commit of a Hugging Face model. Empty: its main branch.",
        is_expert=True,
        resume="base",
    )
    device: str = knob(
        "auto",
        label="Device",
        help="Where to train. One device: a model is never split silently.",
        choices={"auto": "The GPU if there is one, else the CPU", "cuda": "NVIDIA GPU", "cpu": "CPU"},
        resume="method",
    )
    offline: bool = knob(
        False,
        label="Stay offline",
        help="Never contact a hub; use only what is on this disk. HF_HUB_OFFLINE=1 does the same.",
        resume="safe",
    )
    resize_embeddings: bool = knob(
        False,
        label="Enlarge the embeddings for added tokens",
        help="Where the tokenizer has more entries than the model has embeddings, rows are added for the others, each the mean "
        "of the old rows, and trained whole beside the adapters. They are saved with the adapter and in every merge.",
        is_expert=True,
        resume="shape",
    )
    trust_remote_code: bool = knob(
        False,
        label="Run the model's own code",
        help="Some models bring Python files that run on this machine. Only for authors you trust.",
        is_expert=True,
        resume="base",
    )


@dataclass(frozen=True)
class QuantizationSettings:
    quant_type: str = knob(
        "nf4",
        label="4-bit type",
        help="NF4 spaces its 16 levels for normally distributed weights and loses less than FP4 (arXiv 2305.14314).",
        choices={"nf4": "NF4 (NormalFloat)", "fp4": "FP4"},
        resume="base",
    )
    double_quant: bool = knob(
        True,
        label="Double quantization",
        help="Quantizes the quantization constants too: 0.127 instead of 0.5 bits per parameter.",
        resume="base",
    )
    compute_dtype: str = knob(
        "auto",
        label="Compute type",
        help="The type of the maths. Auto: bf16 where the device has it, else fp16 on a GPU, else fp32.",
        choices={"auto": "Automatic", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"},
        is_expert=True,
        resume="method",
    )
    experts: str = knob(
        "4bit",
        label="Experts",
        help="How the experts of a mixture are kept. In 4 bits they are dequantized for a product alone: one at a time, or those of one block.",
        choices={"4bit": "In 4 bits, as the other layers", "16bit": "In 16 bits"},
        is_expert=True,
        resume="method",
    )
    expert_placement: str = knob(
        "device",
        label="Experts are kept",
        help="On the host: experts in 4 bits stay in the computer's memory and come to the GPU block by block. Slower, "
        "and for cards smaller than the model.",
        choices={"device": "On the GPU", "host": "In the computer's memory"},
        is_expert=True,
        resume="safe",
    )
