"""`qlora quality`: what 4 bits cost on a model, in its weights and on held-out rows."""

from __future__ import annotations

from typing import Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.cli.commands.job import set_option
from qlora_engine.cli.commands.models import offline_option, revision_option
from qlora_engine.config import TrainingConfig
from qlora_engine.counting import counted
from qlora_engine.errors import EngineError
from qlora_engine.events import RunFinished
from qlora_engine.jobs import QualityJob
from qlora_engine.quantization import words
from qlora_engine.quantization.report import QualityReport, Score, WeightErrors, report_from
from qlora_engine.quantization.variants import BLOCK_SIZES, Options, Variant, options_from, variant_of


@click.command()
@click.argument("model")
@click.option("--data", "path", default="starter", show_default=True, help="Rows to measure the loss on.")
@click.option(
    "--rows",
    "max_rows",
    type=click.IntRange(1),
    default=Options.max_rows,
    show_default=True,
    help="Rows at most.",
)
@click.option(
    "--blocks",
    default=",".join(map(str, Options.block_sizes)),
    show_default=True,
    metavar="N,N",
    help=f"Weights per block: {', '.join(map(str, BLOCK_SIZES))}.",
)
@click.option(
    "--layers",
    "max_layers",
    type=click.IntRange(1),
    help="Measure so many layers at most, spread over the depth.",
)
@click.option(
    "--seconds",
    "max_seconds",
    type=click.FloatRange(0, min_open=True),
    help="Time at most; what is left out is told.",
)
@click.option("--no-loss", is_flag=True, help="Weights only: needs no data and no whole model in memory.")
@click.option("--again", "is_again", is_flag=True, help="Measure anew what is kept from before.")
@click.option("--all", "shows_all", is_flag=True, help="Show every block size in the table.")
@revision_option
@offline_option
@set_option
@output.json_option
def quality(model: str, path: str, as_json: bool, **given: Any) -> None:
    """Measure what 4 bits cost on MODEL: error of its weights, and held-out loss against 16-bit."""
    from qlora_engine import config_io

    options = options_from({
        "block_sizes": _block_sizes(given["blocks"]), "max_layers": given["max_layers"], "max_rows": given["max_rows"],
        "max_seconds": given["max_seconds"], "has_loss": not given["no_loss"], "is_again": given["is_again"],
    })  # fmt: skip
    config = _configured(model, path, given)
    job = QualityJob(config_io.to_dict(config), options.to_json())
    with progress.view(is_quiet=as_json) as view:
        end = driving.run_job(job, view.show)
    if not isinstance(end, RunFinished):
        raise click.Abort
    report = report_from(end.result)
    own = Variant(config.quantization.quant_type, double_quant=config.quantization.double_quant)
    if as_json:
        output.print_json({**end.result, "sentences": words.sentences(report, own)})
    else:
        _print_report(report, own, shows_all=given["shows_all"])


def _configured(model: str, path: str, given: dict[str, Any]) -> TrainingConfig:
    from qlora_engine import config_io
    from qlora_engine.config import with_value

    config = TrainingConfig()
    values = {
        "model.name": model, "model.revision": given["revision"], "model.offline": given["offline"], "data.path": path,
    }  # fmt: skip
    for option, value in values.items():
        config = with_value(config, option, value)
    return config_io.with_overrides(config, list(given["overrides"]))


def _block_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(piece) for piece in text.split(",") if piece.strip())
    except ValueError:
        raise EngineError(
            "usage.blocks", f"--blocks {text} is not a list of numbers", "write it as --blocks 64,128"
        ) from None


def _print_report(report: QualityReport, own: Variant, *, shows_all: bool) -> None:
    held_out = report.held_out
    rows = (
        ""
        if held_out is None
        else f"; loss on {counted(held_out.rows, 'row')}, {counted(held_out.tokens, 'trained token')}"
    )
    output.say(
        f"{report.model}: {len(report.weights.modules)} linear layers, {output.count(report.weights.parameters)} weights, "
        f"from {report.compute_dtype} on {report.device}{rows}"
    )
    output.say(f"measured {output.moment(report.unix_time)} in {output.duration(_seconds(report))}\n")
    output.table(
        ("variant", "bits/param", "rel. error", "SNR dB", "held-out loss", "+loss vs 16-bit", "KL", "same first choice"),
        [_line(report, variant_of(key)) for key in report.weights.totals if shows_all or variant_of(key).block_size == own.block_size],
    )  # fmt: skip
    output.say(f"\nworst layers, stored as {words.name_of(own)}:")
    output.table(
        ("module", "error / typical weight", "rel. error", "SNR dB", "largest / typical weight"),
        _worst(report.weights, own),
    )
    output.say()
    for sentence in words.sentences(report, own):
        output.say(sentence)


def _seconds(report: QualityReport) -> float:
    return report.weights.seconds + (report.held_out.seconds if report.held_out else 0.0)


def _line(report: QualityReport, variant: Variant) -> tuple[str, ...]:
    total = report.weights.totals[variant.key]
    score = report.held_out.scores.get(variant.key) if report.held_out else None
    return (
        variant.title, f"{total.bits:.3f}", f"{100 * total.relative_error:.2f} %", words.decibels(total.snr_db).removesuffix(" dB"),
        *_loss_cells(score),
    )  # fmt: skip


def _loss_cells(score: Score | None) -> tuple[str, str, str, str]:
    if score is None or score.extra is None or score.kl is None or score.agreement is None:
        missing = output.NOT_AVAILABLE
        return missing, missing, missing, missing
    return (
        f"{score.loss:.4f}", words.margin(score.extra, score.extra_error), f"{score.kl:.4f}",
        f"{100 * score.agreement:.1f} %",
    )  # fmt: skip


def _worst(weights: WeightErrors, own: Variant) -> list[tuple[str, ...]]:
    return [
        (
            found.module,
            f"{100 * found.typical_error(own.key):.2f} %",
            f"{100 * found.measures[own.key].relative_error:.2f} %",
            words.decibels(found.measures[own.key].snr_db).removesuffix(" dB"),
            f"{found.peak_ratio:.1f}",
        )
        for found in weights.worst(own.key)
    ]  # fmt: skip
