"""The `[training]` table: how it is trained."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_engine.knobs import knob

OPTIMIZERS = {
    "paged_adamw_32bit": "Paged AdamW 32-bit (bitsandbytes)",
    "paged_adamw_8bit": "Paged AdamW 8-bit (bitsandbytes)",
    "adamw_8bit": "AdamW 8-bit (bitsandbytes)",
    "lion_8bit": "Lion 8-bit (bitsandbytes)",
    "adamw_torch_fused": "AdamW 32-bit, fused (torch)",
}

SCHEDULES = {
    "cosine": "Cosine",
    "linear": "Linear",
    "constant": "Constant",
    "constant_with_warmup": "Constant after warm-up",
    "cosine_with_restarts": "Cosine with restarts",
    "polynomial": "Polynomial",
    "inverse_sqrt": "Inverse square root",
}


@dataclass(frozen=True)
class TrainingSettings:
    """The `[training]` table."""

    epochs: float = knob(
        3.0,
        label="Epochs",
        help="Passes over the data.",
        lo=0,
        lo_open=True,
        hi=1000,
        resume="length",
    )
    max_steps: int | None = knob(
        None,
        label="Steps at most",
        help="Stop after this many optimizer steps. Empty: by epochs.",
        lo=1,
        resume="length",
    )
    learning_rate: float = knob(
        2e-4,
        label="Learning rate",
        help="Peak learning rate. 2e-4 is usual; 1e-4 from 30B parameters.",
        lo=0,
        lo_open=True,
        hi=1.0,
        resume="rate",
    )
    schedule: str = knob(
        "cosine",
        label="Schedule",
        help="How the learning rate moves.",
        choices=SCHEDULES,
        resume="rate",
    )
    schedule_cycles: int = knob(
        2,
        label="Restarts",
        help="Cosine with restarts: how often the rate falls from its peak to 0.",
        lo=1,
        hi=100,
        is_expert=True,
        resume="rate",
    )
    schedule_power: float = knob(
        2.0,
        label="Power",
        help="Polynomial: the rate falls with this power of the steps left; 1 is linear.",
        lo=0,
        lo_open=True,
        hi=10,
        is_expert=True,
        resume="rate",
    )
    warmup_ratio: float = knob(
        0.03,
        label="Warm-up",
        help="Share of the steps over which the learning rate rises from 0.",
        lo=0,
        hi=0.5,
        resume="rate",
    )
    effective_batch: int = knob(
        16,
        label="Effective batch",
        help="Rows per optimizer step: micro-batch times accumulation.",
        unit="rows",
        lo=1,
        hi=65_536,
        resume="rows",
    )
    micro_batch: int | None = knob(
        None,
        label="Micro-batch",
        help="Rows computed at once. Empty: the largest that fits. Changes memory, not the result.",
        unit="rows",
        lo=1,
        hi=4096,
        resume="safe",
    )
    optimizer: str = knob(
        "paged_adamw_8bit",
        label="Optimizer",
        help="Paged: its state moves to the CPU when the GPU is full.",
        choices=OPTIMIZERS,
        resume="optimizer",
    )
    beta1: float = knob(
        0.9,
        label="Beta 1",
        help="AdamW's and Lion's first decay.",
        lo=0,
        hi=0.99999,
        is_expert=True,
        resume="method",
    )
    beta2: float = knob(
        0.999,
        label="Beta 2",
        help="AdamW's and Lion's second decay.",
        lo=0,
        hi=0.999999,
        is_expert=True,
        resume="method",
    )
    epsilon: float = knob(
        1e-8,
        label="Epsilon",
        help="AdamW's epsilon.",
        lo=0,
        lo_open=True,
        hi=1e-2,
        is_expert=True,
        resume="method",
    )
    weight_decay: float = knob(
        0.0,
        label="Weight decay",
        help="Decoupled weight decay of the adapters.",
        lo=0,
        hi=1,
        is_expert=True,
        resume="method",
    )
    max_grad_norm: float = knob(
        0.3,
        label="Gradient clipping",
        help="Longest gradient allowed; 0 turns clipping off.",
        lo=0,
        hi=1000,
        resume="method",
    )
    gradient_checkpointing: bool = knob(
        True,
        label="Gradient checkpointing",
        help="Recomputes activations instead of keeping them: far less memory, about a third slower.",
        resume="safe",
    )
    checkpoint_every: int = knob(
        1,
        label="Recompute every n-th block",
        help="With gradient checkpointing: one block of so many recomputes, the others keep their activations. More memory, "
        "fewer computations, the same numbers; 0 takes the highest number that fits, and sends inputs away where none does.",
        lo=0,
        hi=1024,
        is_expert=True,
        resume="safe",
    )
    offload_inputs: bool = knob(
        False,
        label="Block inputs on the host",
        help="With gradient checkpointing on a GPU: what a recomputed block starts from waits in the computer's memory. For "
        "very long rows; each step copies it there and back. On a CPU it saves nothing.",
        is_expert=True,
        resume="safe",
    )
    join_rows: bool = knob(
        True,
        label="Rows end to end",
        help="Computes rows one after the other without padding, each seeing only itself. Where a model mixes them up, rows "
        "of similar length are padded instead.",
        is_expert=True,
        resume="safe",
    )
    fused_adapters: bool = knob(
        True,
        label="Fused adapters",
        help="Computes base and adapter of a layer, and layers of one input, in one go. The same numbers, faster.",
        is_expert=True,
        resume="safe",
    )
    fused_elementwise: bool = knob(
        True,
        label="Fused norms and positions",
        help="On a CPU: norms and rotary positions in fewer passes over memory. The same numbers, faster.",
        is_expert=True,
        resume="safe",
    )
    group_experts: str = knob(
        "auto",
        label="Experts in groups",
        help="Dequantizes all experts of a block together and multiplies each with its tokens in one product, instead of one "
        "expert after the other: far fewer operations, and no waiting for the GPU, for as much memory as one block's experts take in 16 bits.",
        choices={"auto": "On a GPU with room for it", "on": "Wherever there is room", "off": "Off"},
        is_expert=True,
        resume="safe",
    )
    compile_blocks: str = knob(
        "off",
        label="Compile the blocks",
        help="Decoder blocks through torch's compiler, in place of fused adapters and norms. Tried on the loaded model: takes "
        "minutes at the first start, needs Triton on a GPU and a C++ compiler on a CPU, and is left out where numbers differ.",
        choices={"off": "Off", "auto": "Where that is faster", "on": "Even where it is not"},
        is_expert=True,
        resume="safe",
    )
    kept_weights_gib: float = knob(
        4.0,
        label="Keep dequantized weights",
        help="On a CPU: weights are dequantized once and kept if they take at most this much. 0: in every pass anew.",
        unit="GiB",
        lo=0,
        hi=1024,
        is_expert=True,
        resume="safe",
    )
    loss: str = knob(
        "chunked",
        label="Loss",
        help="Chunked never holds all logits at once; full does, as most programs do.",
        choices={"chunked": "Chunked over trained tokens", "full": "All logits at once"},
        is_expert=True,
        resume="safe",
    )
    router_loss: str = knob(
        "off",
        label="Routers' loss",
        help="Of a mixture of experts: the auxiliary loss that keeps its routers balanced, off or as its class has it.",
        choices={"off": "Off", "class": "As the class has it"},
        is_expert=True,
        resume="method",
    )
    seed: int = knob(
        42,
        label="Seed",
        help="Same seed, data and settings: same run.",
        lo=0,
        hi=2**31 - 1,
        resume="rows",
    )
    eval_every_steps: int | None = knob(
        None,
        label="Evaluate every",
        help="Steps between evaluations. Empty: five to ten times per run.",
        unit="steps",
        lo=1,
        resume="safe",
    )
    eval_rows: int | None = knob(
        200,
        label="Evaluated at most",
        help="Held-out rows scored at each evaluation. Empty: all.",
        unit="rows",
        lo=1,
        is_expert=True,
        resume="scores",
    )
    early_stopping: int | None = knob(
        3,
        label="Early stopping",
        help="Stop after this many evaluations without improvement. Empty: never.",
        unit="evaluations",
        lo=1,
        resume="safe",
    )
    keep_best: bool = knob(
        True,
        label="Keep the best",
        help="The result is the checkpoint with the lowest held-out loss, not the last.",
        resume="safe",
    )
    sample_prompts: tuple[str, ...] = knob(
        (),
        label="Fixed prompts",
        help="Answered before training and at each evaluation, so that progress is seen.",
        resume="safe",
    )
    sample_tokens: int = knob(
        48,
        label="Sample length",
        help="Longest answer to a fixed prompt.",
        unit="tokens",
        lo=1,
        hi=4096,
        is_expert=True,
        resume="safe",
    )
    end_rows: int = knob(
        8,
        label="Endings tried",
        help="After training, so many held-out questions are answered to count the answers that end by themselves; takes at "
        "most a twentieth of the training time, or 5 seconds. 0: none.",
        unit="rows",
        lo=0,
        hi=1000,
        is_expert=True,
        resume="safe",
    )
    end_tokens: int = knob(
        128,
        label="Endings: longest answer",
        help="An answer still without an end there counts as one that does not end. Only rows whose own answer is at most "
        "half as long are asked.",
        unit="tokens",
        lo=2,
        hi=4096,
        is_expert=True,
        resume="safe",
    )
    count_page_moves: bool = knob(
        False,
        label="Count page moves",
        help="Diagnosis: have the driver count what a paged optimizer moves. Needs the extra `gpu`; slows paging down, and keeps other profilers out.",
        is_expert=True,
        resume="safe",
    )
