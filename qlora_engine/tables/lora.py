"""The `[lora]` table: the adapters."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_engine.knobs import knob

INITS = {
    "default": "Default (A random, B zero)",
    "gaussian": "Gaussian A",
    "loftq": "LoftQ (fits the quantization error)",
    "pissa": "PiSSA (principal components)",
}

TARGET_GROUPS = ("attention", "all-linear")


@dataclass(frozen=True)
class LoraSettings:
    rank: int = knob(
        16,
        label="Rank",
        help="Size of the adapters. Higher learns more and needs more memory.",
        lo=1,
        hi=1024,
        resume="shape",
    )
    alpha: float = knob(
        32.0,
        label="Alpha",
        help="The adapter's output is scaled by alpha / rank (alpha / sqrt(rank) with rsLoRA).",
        lo=0,
        lo_open=True,
        hi=4096,
        resume="adapter",
    )
    dropout: float = knob(
        0.0,
        label="Dropout",
        help="Share of the adapter's inputs dropped while training.",
        lo=0,
        hi=0.9,
        resume="method",
    )
    targets: str | tuple[str, ...] = knob(
        "all-linear",
        label="Target modules",
        help="`attention`, `all-linear` (every linear layer but the head), or a list of module names.",
        resume="shape",
    )
    experts: bool = knob(
        False,
        label="Adapters on the experts",
        help="Trains every expert of a mixture too, each with a rank of its own: far more parameters. Shared experts are "
        "linear layers and follow the target modules.",
        is_expert=True,
        resume="shape",
    )
    dtype: str = knob(
        "fp32",
        label="Adapter type",
        help="Type in which the adapters are trained. The paper used bf16.",
        choices={"fp32": "float32", "bf16": "bfloat16"},
        resume="shape",
    )
    rslora: bool = knob(
        False,
        label="rsLoRA",
        help="Scale by alpha / sqrt(rank): steadier at high ranks (arXiv 2312.03732).",
        is_expert=True,
        resume="adapter",
    )
    dora: bool = knob(
        False,
        label="DoRA",
        help="Learns magnitude and direction apart (arXiv 2402.09353). Slower.",
        is_expert=True,
        resume="shape",
    )
    init: str = knob(
        "default",
        label="Initialisation",
        help="How the adapters begin.",
        choices=INITS,
        is_expert=True,
        resume="shape",
    )
