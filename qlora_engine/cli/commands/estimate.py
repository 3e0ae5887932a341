"""`qlora estimate`: memory of a run by part, with and without double quantization, and where it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.cli.commands.job import set_option
from qlora_engine.cli.commands.models import offline_option, revision_option
from qlora_engine.config import TARGET_GROUPS, LoraSettings, TrainingConfig, TrainingSettings
from qlora_engine.errors import EngineError
from qlora_engine.events import RunFinished
from qlora_engine.jobs import RehearseJob
from qlora_engine.knobs import knobs_of

SEQ_LEN = 512
OPTIMIZERS = tuple(knobs_of(TrainingSettings)["optimizer"].choices or ())
LOSSES = tuple(knobs_of(TrainingSettings)["loss"].choices or ())
DTYPES = tuple(knobs_of(LoraSettings)["dtype"].choices or ())
DEFAULT = TrainingConfig()
PART_WORDS = {
    "quantized_weights": "4-bit weights",
    "quantization_constants": "quantization constants",
    "unquantized_weights": "unquantized weights",
    "optimizer_resident": "optimizer, resident",
    "optimizer_pageable": "optimizer, pageable",
    "step_temporary": "largest temporary",
    "allocator_rounding": "allocator rounding",
    "device_context": "device context",
}


@click.command()
@click.argument("model")
@click.option("--seq-len", type=click.IntRange(8), default=SEQ_LEN, show_default=True, help="Tokens per row.")
@click.option(
    "--micro-batch", type=click.IntRange(1), default=1, show_default=True, help="Rows computed at once."
)
@click.option(
    "--rank", type=click.IntRange(1), default=DEFAULT.lora.rank, show_default=True, help="LoRA rank."
)
@click.option(
    "--targets", default="all-linear", show_default=True, help="attention, all-linear, or names with commas."
)
@click.option(
    "--optimizer",
    type=click.Choice(OPTIMIZERS),
    default=DEFAULT.training.optimizer,
    show_default=True,
    help="Optimizer.",
)
@click.option(
    "--checkpointing/--no-checkpointing", default=True, show_default=True, help="Gradient checkpointing."
)
@click.option(
    "--loss", type=click.Choice(LOSSES), default="chunked", show_default=True, help="How logits are held."
)
@click.option(
    "--adapter-dtype",
    type=click.Choice(DTYPES),
    default="fp32",
    show_default=True,
    help="Type of the adapters.",
)
@click.option(
    "--upcast-unquantized", is_flag=True, help="Embeddings, head and norms in fp32, as PEFT prepares them."
)
@click.option("--gpu", metavar="NAME", help="The GPU to judge by. [default: all of the table]")
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    default="cuda",
    show_default=True,
    help="Where it would run.",
)
@click.option(
    "--rehearse/--no-rehearse",
    default=None,
    help="Run one step symbolically and count, instead of the closed form. A model type without a formula of its own is "
    "rehearsed by itself, once.",
)
@revision_option
@offline_option
@set_option
@output.json_option
def estimate(model: str, as_json: bool, **options: Any) -> None:
    """Tell what a run needs in memory, by part, before it starts. No weights are loaded."""
    from qlora_engine.memory import gpus

    wanted_gpu = gpus.find(options["gpu"]).name if options["gpu"] else None
    config = configured(model, options)
    size = {key: options[key] for key in ("seq_len", "micro_batch", "device", "upcast_unquantized")}
    size["gpu"] = wanted_gpu
    document = _answer(config, size, options["rehearse"], is_quiet=as_json)
    if wanted_gpu:
        document["fits"] = [fit for fit in document["fits"] if fit["gpu"] == wanted_gpu]
        if options["device"] == "cuda":
            document["largest"] = _largest(config, size, wanted_gpu)
    if as_json:
        output.print_json(document)
        return
    _print_estimate(document, wanted_gpu)
    for line in _experts_words(config):
        output.say(line)
    if "largest" in document:
        output.say(_largest_words(document["largest"]))


def configured(model: str, options: Mapping[str, Any]) -> TrainingConfig:
    """The job whose memory is asked for; `--set` wins over the named options.

    Raises:
        EngineError: an option out of range, all at once.
    """
    from qlora_engine import config_io
    from qlora_engine.config import with_value

    targets = options["targets"]
    values = {
        "model.name": model,
        "model.revision": options["revision"],
        "model.offline": options["offline"],
        "data.seq_len": options["seq_len"],
        "lora.rank": options["rank"],
        "lora.targets": targets if targets in TARGET_GROUPS else tuple(filter(None, targets.split(","))),
        "lora.dtype": options["adapter_dtype"],
        "training.optimizer": options["optimizer"],
        "training.gradient_checkpointing": options["checkpointing"],
        "training.loss": options["loss"],
        "training.micro_batch": options["micro_batch"],
        "training.effective_batch": options["micro_batch"],
    }
    config = DEFAULT
    for path, value in values.items():
        config = with_value(config, path, value)
    return config_io.with_overrides(config, list(options["overrides"]))


def _answer(
    config: TrainingConfig, size: Mapping[str, Any], is_rehearsed: bool | None, *, is_quiet: bool
) -> dict[str, Any]:
    """Rehearsed if so asked, or if not asked and nothing else could tell; else the closed form."""
    if is_rehearsed:
        return _rehearsed(config, size, is_quiet)
    if is_rehearsed is None and _has_no_formula(config, size["device"]):
        try:
            return _rehearsed(config, size, is_quiet)
        except EngineError as error:
            output.note(
                f"It could not be rehearsed ({error.message}), so what a step holds is a count of its layers, which is rough"
            )
    return _closed_form(config, size)


def _has_no_formula(config: TrainingConfig, device: str) -> bool:
    """Whether this model's class is known by its parts alone and was never rehearsed."""
    from qlora_engine.memory import generic

    facts = _facts(config)
    return facts.source == "class" and not generic.is_measured(facts, config, device)


def _closed_form(config: TrainingConfig, size: Mapping[str, Any]) -> dict[str, Any]:
    from qlora_engine.memory import estimate as closed_form
    from qlora_engine.memory.context import context_of

    settings = {key: value for key, value in size.items() if key != "gpu"}
    return closed_form.estimate(_facts(config), config, **settings, context=context_of(size["gpu"])).to_json()


def _rehearsed(config: TrainingConfig, size: Mapping[str, Any], is_quiet: bool) -> dict[str, Any]:
    from qlora_engine import config_io

    job = RehearseJob(config_io.to_dict(config), size)
    with progress.view(is_quiet=is_quiet) as shown:
        end = driving.run_job(job, shown.show)
    if not isinstance(end, RunFinished):
        raise click.Abort
    return dict(end.result)


def _print_estimate(document: Mapping[str, Any], gpu: str | None) -> None:
    double, single = document["double_quant"], document["single_quant"]
    output.say(
        f"{document['model']}: {output.count(document['parameters'])} parameters, "
        f"{output.count(document['quantized_parameters'])} of them in 4 bits"
    )
    output.say(_settings_words(document["settings"]))
    output.say()
    rows: list[tuple[str, ...]] = [
        (PART_WORDS.get(name, name), output.size(double["parts"][name]), output.size(single["parts"][name]))
        for name in double["parts"]
    ]
    rows.append(("peak of tensors", output.size(double["peak_bytes"]), output.size(single["peak_bytes"])))
    rows.append(
        ("on the device, likely", *(output.size(side["device_bytes"]["likely"]) for side in (double, single)))
    )
    rows.append(("  low to high", *(_range(side["device_bytes"]) for side in (double, single))))
    output.table(("", "double quantization", "without"), rows)
    output.say(f"\nsource: {double['source']}{_peak_words(double)}")
    if document["settings"]["device_context"]:
        output.say(f"device context: {document['settings']['device_context']}")
    if document["kept_weights_bytes"]:
        output.say(
            f"besides: {output.size(document['kept_weights_bytes'])} of dequantized weights, kept where that much is free and "
            "given up first (training.kept_weights_gib)"
        )
    if document["grouped_experts_bytes"]:
        output.say(
            f"besides: {output.size(document['grouped_experts_bytes'])} to compute all experts of a block together, where that "
            "much is free and given up first (training.group_experts)"
        )
    compare = document["compare"]
    is_cpu = document["settings"]["device"] == "cpu"  # which computes in fp32
    lora, full = ("LoRA in fp32", "full in fp32") if is_cpu else ("16-bit LoRA", "full 16-bit")
    output.say(f"{lora}: {output.size(compare['lora_16bit'])}, {full}: {output.size(compare['full_16bit'])}")
    for line in verdict(document, gpu):
        output.say(line)


def _settings_words(settings: Mapping[str, Any]) -> str:
    targets = settings["targets"]
    return (
        f"{settings['micro_batch']} x {settings['seq_len']} tokens, rank {settings['rank']} on "
        f"{targets if isinstance(targets, str) else ', '.join(targets)}, {settings['adapter_dtype']} adapters, "
        f"{settings['optimizer']}, {'' if settings['checkpointing'] else 'no '}checkpointing, "
        f"{settings['loss']} loss, {settings['device']}"
    )


def _experts_words(config: TrainingConfig) -> list[str]:
    """Where the experts of a mixture are, and in how many bits; what of them is in the computer's memory."""
    from qlora_engine.memory.experts import as_configured, moved_to_host

    facts = as_configured(_facts(config), config.quantization)
    count = sum(one.weights for one in facts.stacked)
    if not count:
        return []
    if config.quantization.experts == "16bit":
        return [f"experts: {output.count(count)} parameters stay in 16 bits, as quantization.experts says"]
    if config.quantization.expert_placement == "device":
        return [f"experts: {output.count(count)} parameters in 4 bits, on the device"]
    away = sum(moved_to_host(facts, is_double_quant=config.quantization.double_quant))
    where = "of them wait in the computer's memory, two blocks at a time are on the device"
    return [f"experts: {output.count(count)} parameters in 4 bits; {away / 2**30:.2f} GiB {where}"]


def _largest(config: TrainingConfig, size: Mapping[str, Any], gpu: str) -> dict[str, Any]:
    """The largest that fits the GPU, one question at a time, all else as it is; None: not even the smallest."""
    from qlora_engine.memory import advise, gpus
    from qlora_engine.memory.context import context_of

    found = advise.largest_that_fits(
        _facts(config), config, seq_len=size["seq_len"], micro_batch=size["micro_batch"],
        usable_bytes=gpus.find(gpu).usable_bytes, context=context_of(gpu),
    )  # fmt: skip
    return vars(found)


def _largest_words(found: Mapping[str, Any]) -> str:
    shown = {name: output.NOT_AVAILABLE if value is None else value for name, value in found.items()}
    return (
        f"largest that fits, all else as it is: {shown['seq_len']} tokens, micro-batch {shown['micro_batch']}, "
        f"rank {shown['rank']}, of the known models {shown['model']}"
    )


def _facts(config: TrainingConfig) -> Any:
    from qlora_engine.models import catalog

    return catalog.facts_for(config.model)


def _range(device_bytes: Mapping[str, int]) -> str:
    return f"{output.size(device_bytes['low'])} to {output.size(device_bytes['high'])}"


def _peak_words(side: Mapping[str, Any]) -> str:
    return f", peak in {side['peak_operation']}" if side["peak_operation"] else ""


def verdict(document: Mapping[str, Any], gpu: str | None) -> list[str]:
    """Where it fits, in words, and the cheapest change where it does not."""
    if document["settings"]["device"] == "cpu":
        return []
    double = document["double_quant"]["device_bytes"]
    if gpu is None:
        return [_smallest(document["fits"], key) for key in ("double_quant", "single_quant")]
    (fit,) = document["fits"]
    usable = fit["usable_bytes"]
    if fit["double_quant"]:
        spare = output.size(usable - double["likely"])
        without = "" if fit["single_quant"] else "; without double quantization it does not"
        return [f"{gpu}: fits with {spare} to spare of {output.size(usable)} usable{without}"]
    only_low = "; it fits only if the low end holds" if double["low"] <= usable else ""
    lines = [
        f"{gpu}: does not fit, {output.size(double['likely'])} of {output.size(usable)} usable{only_low}"
    ]
    return lines + [
        f"  {advice['change']} saves {output.size(advice['saves_bytes'])}"
        for advice in document["advice"][:3]
    ]


def _smallest(fits: Sequence[Mapping[str, Any]], key: str) -> str:
    name = {"double_quant": "with double quantization", "single_quant": "without"}[key]
    fitting = next((fit for fit in fits if fit[key]), None)
    if fitting is None:
        return f"{name}: fits no GPU of the table"
    return f"{name}: fits from {fitting['gpu']} ({output.size(fitting['usable_bytes'])} usable)"
