"""The whole configuration of a run: a tree of frozen dataclasses, one knob per option.

Editing is `dataclasses.replace` or `with_value(config, "lora.rank", 16)`; checking is `validate(config)`,
which returns every issue with its dotted path. No torch here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qlora_engine.knobs import Knob, knob, knobs_of, problem_with

SCHEMA_VERSION = 1

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
INITS = {
    "default": "Default (A random, B zero)",
    "gaussian": "Gaussian A",
    "loftq": "LoftQ (fits the quantization error)",
    "pissa": "PiSSA (principal components)",
}
TARGET_GROUPS = ("attention", "all-linear")


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
        help="How the experts of a mixture are kept. In 4 bits only those that tokens reach are dequantized, one at a time.",
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


@dataclass(frozen=True)
class DataSettings:
    path: str = knob(
        "starter",
        label="Dataset",
        help="`starter`, a file (.json .jsonl .csv .tsv .parquet .txt), a folder of them, or a Hugging Face dataset id.",
        resume="rows",
    )
    split: str = knob(
        "train",
        label="Split",
        help="Split of a hub dataset.",
        is_expert=True,
        resume="rows",
    )
    format: str = knob(
        "auto",
        label="Format",
        help="How rows are read. Auto looks at the columns and says what it found.",
        choices={
            "auto": "Automatic",
            "alpaca": "Alpaca (instruction, input, output)",
            "sharegpt": "ShareGPT (conversations: from, value)",
            "messages": "Chat messages (role, content)",
            "prompt_completion": "Prompt and completion",
            "oasst": "OpenAssistant (text with ### Human / ### Assistant, or message trees)",
            "preference": "Preference pairs (chosen, rejected)",
            "text": "Plain text",
        },
        resume="rows",
    )
    columns: dict[str, str] = knob(
        label="Columns",
        help='Maps a field of the format to a column of the data: `instruction = "question"`.',
        default_factory=dict,
        resume="rows",
    )
    held_out_path: str | None = knob(
        None,
        label="Held-out data",
        help="A file whose rows are never trained on. Empty: a share of the dataset.",
        resume="rows",
    )
    held_out_fraction: float = knob(
        0.05,
        label="Held-out share",
        help="Share of the rows kept aside to measure the model on.",
        lo=0,
        hi=0.5,
        resume="rows",
    )
    max_rows: int | None = knob(
        None,
        label="Rows at most",
        help="Use only the first rows. Empty: all.",
        lo=1,
        is_expert=True,
        resume="rows",
    )
    seq_len: int | None = knob(
        None,
        label="Sequence length",
        help="Longest row in tokens; longer rows are cut, and counted. Empty: the data's own 99th percentile.",
        unit="tokens",
        lo=8,
        hi=1_048_576,
        resume="rows",
    )
    train_on: str = knob(
        "answers",
        label="Train on",
        help="Answers only (usual), or every token of the text.",
        choices={"answers": "Answers only", "everything": "Everything"},
        resume="rows",
    )
    chat_template: str = knob(
        "auto",
        label="Chat template",
        help="The model's own; a named one (chatml, llama3, alpaca ...) for a model without; or a Jinja file.",
        is_expert=True,
        resume="rows",
    )
    reasoning: str = knob(
        "train",
        label="Reasoning",
        help="What becomes of the thoughts before an answer. The same in training, chat and held-out scores.",
        choices={
            "train": "Trained: the model learns to think first",
            "context": "Kept as context: seen, not learned",
            "remove": "Removed: answers alone",
        },
        resume="rows",
    )
    empty_answers: str = knob(
        "context",
        label="Empty answers",
        help="An answer without a word among others: only read, or its end trained, so that silence is learned.",
        choices={"context": "Only read", "train": "Train their end"},
        is_expert=True,
        resume="rows",
    )
    preference: str = knob(
        "ask",
        label="Preference pairs",
        help="Rows with a wanted and an unwanted answer are not trained before it is said what of them.",
        choices={"ask": "Not trained", "chosen": "Train the wanted answer, leave the other out"},
        is_expert=True,
        resume="rows",
    )
    ignore: tuple[str, ...] = knob(
        (),
        label="Ignore",
        help="What may be left out of rows although it changes their meaning: images, calls, weights, rejected, or a key.",
        is_expert=True,
        resume="rows",
    )
    system_prompt: str | None = knob(
        None,
        label="System prompt",
        help="Put before every conversation that has none.",
        is_expert=True,
        resume="rows",
    )
    packing: bool = knob(
        False,
        label="Pack short rows",
        help="Puts several rows into one sequence; each sees only itself. Faster on short rows.",
        resume="rows",
    )
    more: dict[str, float] = knob(
        label="More sources",
        help='Datasets mixed in, each with how often its rows are seen per epoch: `"chat.jsonl" = 1.0`; 0.5 is a fixed half.',
        default_factory=dict,
        is_expert=True,
        resume="rows",
    )
    encoding: str = knob(
        "auto",
        label="Encoding",
        help="Of text files. Auto finds UTF-8, UTF-16 and Western ones, and refuses what it cannot tell; else its name.",
        is_expert=True,
        resume="rows",
    )
    bad_rows: float = knob(
        0.5,
        label="Bad rows at most",
        help="Share of rows that may be left out as unreadable before the run refuses to start; each is named.",
        lo=0,
        hi=1,
        is_expert=True,
        resume="safe",
    )
    overlap: int = knob(
        0,
        label="Overlap of text",
        help="Tokens that a row of a long plain text repeats from the end of the row before.",
        unit="tokens",
        lo=0,
        hi=65_536,
        is_expert=True,
        resume="rows",
    )
    tree_paths: str = knob(
        "best",
        label="Message trees",
        help="Of an OpenAssistant tree: the path along the answers ranked first, or every path.",
        choices={"best": "Best path", "all": "All paths"},
        is_expert=True,
        resume="rows",
    )


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
        label="Evaluation rows at most",
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
    count_page_moves: bool = knob(
        False,
        label="Count page moves",
        help="Diagnosis: have the driver count what a paged optimizer moves. Needs the extra `gpu`; slows paging down, and keeps other profilers out.",
        is_expert=True,
        resume="safe",
    )


@dataclass(frozen=True)
class CheckpointSettings:
    every_steps: int | None = knob(
        None,
        label="Every steps",
        help="Steps between checkpoints. Empty: by time only.",
        unit="steps",
        lo=1,
        resume="safe",
    )
    every_minutes: float = knob(
        10.0,
        label="Every minutes",
        help="A checkpoint at least this often.",
        unit="minutes",
        lo=0,
        lo_open=True,
        hi=1440,
        resume="safe",
    )
    keep: int = knob(
        2,
        label="Keep",
        help="Newest checkpoints kept, besides the best one.",
        lo=1,
        hi=100,
        resume="safe",
    )


@dataclass(frozen=True)
class OutputSettings:
    name: str | None = knob(
        None,
        label="Run name",
        help="Folder name of the run. Empty: model, data and time.",
        resume="safe",
    )
    runs_dir: str | None = knob(
        None,
        label="Runs folder",
        help="Where runs are kept. Empty: the program's own data folder.",
        resume="safe",
    )
    tracker: str = knob(
        "none",
        label="Tracker",
        help="Where the curves are sent besides the run's folder, with the tracker's own program and account. "
        "TensorBoard files are always written.",
        choices={"none": "None", "wandb": "Weights & Biases", "mlflow": "MLflow", "trackio": "Trackio"},
        is_expert=True,
        resume="safe",
    )
    tracker_project: str = knob(
        "qlora-studio",
        label="Tracker's project",
        help="Under which name the tracker keeps the runs together.",
        is_expert=True,
        resume="safe",
    )
    keep_awake: bool = knob(
        True,
        label="Keep the computer awake",
        help="The computer does not go to sleep by itself while the run trains.",
        is_expert=True,
        resume="safe",
    )


@dataclass(frozen=True)
class TrainingConfig:
    """A whole job file. Tables in the order in which they are written."""

    model: ModelSettings = field(default_factory=ModelSettings)
    quantization: QuantizationSettings = field(default_factory=QuantizationSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    output: OutputSettings = field(default_factory=OutputSettings)


@dataclass(frozen=True)
class Issue:
    """One problem of a configuration: `path` is dotted (`lora.rank`), `message` a sentence without it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def tables() -> dict[str, type]:
    """Table name -> dataclass, in file order."""
    return {f.name: f.default_factory for f in dataclasses.fields(TrainingConfig)}  # type: ignore[misc]


def all_knobs() -> dict[str, Knob]:
    """Dotted path -> knob, in file order."""
    return {
        f"{table}.{name}": found for table, cls in tables().items() for name, found in knobs_of(cls).items()
    }


def get_value(config: TrainingConfig, path: str) -> Any:
    table, name = path.split(".", 1)
    return getattr(getattr(config, table), name)


def with_value(config: TrainingConfig, path: str, value: Any) -> TrainingConfig:
    """A copy of `config` with one value changed; nothing is checked here."""
    table, name = path.split(".", 1)
    changed = dataclasses.replace(getattr(config, table), **{name: value})
    return dataclasses.replace(config, **{table: changed})


def changed_from(config: TrainingConfig, base: TrainingConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (value in `base`, value in `config`) wherever they differ."""
    pairs = ((path, get_value(base, path), get_value(config, path)) for path in all_knobs())
    return {path: (before, after) for path, before, after in pairs if before != after}


def validate(config: TrainingConfig) -> list[Issue]:
    """Every problem that can be seen without looking at the disk or the model, in file order."""
    ranges = ((path, problem_with(found, get_value(config, path))) for path, found in all_knobs().items())
    issues = [Issue(path, problem) for path, problem in ranges if problem]
    return issues or list(_cross_checks(config))


def _cross_checks(config: TrainingConfig) -> Iterator[Issue]:
    lora, training, data = config.lora, config.training, config.data
    if isinstance(lora.targets, str) and lora.targets not in TARGET_GROUPS:
        yield Issue(
            "lora.targets", f"must be one of {', '.join(TARGET_GROUPS)} or a list, not {lora.targets!r}"
        )
    if isinstance(lora.targets, tuple) and not lora.targets:
        yield Issue("lora.targets", "names no module; adapters need at least one")
    if training.micro_batch is not None and training.effective_batch % training.micro_batch:
        yield Issue(
            "training.micro_batch",
            f"must divide the effective batch: {training.effective_batch} rows are not a multiple of {training.micro_batch}",
        )
    if lora.init == "pissa":
        yield Issue(
            "lora.init",
            "PiSSA moves the largest components of each weight into the adapter, which a 4-bit base cannot give up: "
            "quantized a second time it would fit no published base; use LoftQ, made for quantized bases, or the default",
        )
    if lora.dora and lora.init == "loftq":
        yield Issue("lora.init", f"{INITS[lora.init]} cannot be combined with DoRA; choose one of the two")
    yield from _expert_checks(config)
    if not config.model.name.strip():
        yield Issue("model.name", "is empty; choose a model")
    for path, weight in data.more.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 100:
            yield Issue(
                "data.more", f"{path!r} must be seen more than 0 and at most 100 times, not {weight!r}"
            )
        if path == data.path:
            yield Issue("data.more", f"{path!r} is the dataset itself; name another")
    if not data.path.strip():
        yield Issue("data.path", "is empty; choose a dataset")
    if data.train_on == "answers" and data.format == "text":
        yield Issue(
            "data.train_on", "plain text has no answers; train on everything, or choose another format"
        )


def _expert_checks(config: TrainingConfig) -> Iterator[Issue]:
    lora, quantization = config.lora, config.quantization
    if lora.experts and lora.dropout:
        yield Issue(
            "lora.dropout",
            "must be 0 with adapters on the experts: all tokens of an expert share one product",
        )
    if lora.experts and (lora.dora or lora.init == "loftq"):
        name = "DoRA" if lora.dora else INITS[lora.init]
        yield Issue("lora.experts", f"PEFT knows no {name} for experts; choose one of the two")
    if quantization.experts == "16bit" and quantization.expert_placement == "host":
        yield Issue(
            "quantization.expert_placement",
            "only experts in 4 bits are kept on the host; set quantization.experts to 4bit",
        )
