"""What a quality report says, in sentences, and how sure it can be. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from qlora_engine.quantization.report import HeldOut, QualityReport, WeightErrors
from qlora_engine.quantization.variants import TYPES, Variant

SURE = 2.0
"""A difference counts from so many standard errors on."""
FEW_ROWS = 30
ORDER = ("int4-64", "fp4-64", "nf4-64-dq")
"""Worst first, as the paper found it (arXiv 2305.14314, table 2: mean perplexity 34.34, 31.07 and 27.41)."""
PAPER_NAMES = {"int4-64": "linear int4", "fp4-64": "FP4", "nf4-64-dq": "NF4 with double quantization"}


def name_of(variant: Variant) -> str:
    """As a sentence has it: `NF4 with double quantization`."""
    return TYPES[variant.quant_type] + (" with double quantization" if variant.double_quant else "")


def sentences(report: QualityReport, own: Variant) -> tuple[str, ...]:
    """The report in words, what matters most first. `own` is how the job at hand stores its weights."""
    return tuple(_sentences(report, own))


def warnings(report: QualityReport) -> tuple[str, ...]:
    """What must be known to read the numbers rightly."""
    before = (_few_bits(report.weights),) if report.weights.were_few_bits else ()
    return (*before, *report.notices)


def _sentences(report: QualityReport, own: Variant) -> Iterator[str]:
    if report.held_out is None:
        yield f"The loss was not measured: {report.why_no_held_out}."
        yield from warnings(report)
    else:
        yield _cost(report, report.held_out, own)
        yield from warnings(report)
        yield _order(report.held_out)
        yield _movement(report.held_out)
        yield _nesting(report, report.held_out, own)
    yield _weights(report.weights, own)
    yield from _limits(report)


def _cost(report: QualityReport, held_out: HeldOut, own: Variant) -> str:
    """What the job's own way costs, then the others."""
    others = [Variant(t, own.block_size, own.double_quant) for t in TYPES if t != own.quant_type]
    first, second = (f"{TYPES[v.quant_type]} {_cost_of(held_out, v)}" for v in others)
    return (
        f"On {held_out.rows} rows of your data ({held_out.tokens:,} trained tokens) the {report.reference_text} loss is "
        f"{held_out.reference.loss:.3f} nats per token. {name_of(own)} costs {_cost_of(held_out, own)} on top; stored "
        f"likewise, {first} and {second}."
    )


def _cost_of(held_out: HeldOut, variant: Variant) -> str:
    """`0.012 ± 0.004 (+0.4 %)`."""
    score = held_out.scores[variant.key]
    assert score.extra is not None
    share = 100 * score.extra / held_out.reference.loss if held_out.reference.loss else 0.0
    return f"{margin(score.extra, score.extra_error)} ({share:+.1f} %)"


def margin(value: float, error: float | None) -> str:
    """`0.012 ± 0.004`: a value and its standard error over rows."""
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _order(held_out: HeldOut) -> str:
    """Whether the paper's order is found on these rows, by loss and by KL divergence."""
    verdicts = [_is_sure(held_out, worse, better) for worse, better in pairwise(ORDER)]
    found = sorted(ORDER, key=lambda key: -(held_out.scores[key].extra or 0.0))
    listed = ", ".join(PAPER_NAMES[key] for key in found)
    paper = "linear int4 worse than FP4, FP4 worse than NF4 with double quantization"
    if all(verdicts):
        return f"The paper's order holds here ({paper})."
    if tuple(found) == ORDER:
        return f"The paper's order ({paper}) shows here too, but these rows are too few to be sure."
    return f"By loss the paper's order ({paper}) is not found here: worst first, it is {listed}."


def _is_sure(held_out: HeldOut, worse: str, better: str) -> bool:
    difference, error = held_out.difference(worse, better)
    return error is not None and difference > SURE * error


def _movement(held_out: HeldOut) -> str:
    """KL beside the loss: noise can lower the loss of rows that a model predicts badly, KL has no such luck."""
    by_loss = sorted(ORDER, key=lambda key: -(held_out.scores[key].extra or 0.0))
    by_kl = sorted(ORDER, key=lambda key: -(held_out.scores[key].kl or 0.0))
    listed = ", ".join(f"{PAPER_NAMES[key]} {held_out.scores[key].kl:.3f}" for key in by_kl)
    if by_loss == by_kl:
        return f"The predictions moved by (KL divergence, nats per token) {listed}."
    return (
        f"By how far the predictions moved (KL divergence, nats per token) it is {listed}. Where the two disagree, trust this "
        "one: rows that the model predicts badly can gain from noise by chance."
    )


def _nesting(report: QualityReport, held_out: HeldOut, own: Variant) -> str:
    single = Variant(own.quant_type, own.block_size, False)
    double = Variant(own.quant_type, own.block_size, True)
    difference, error = held_out.difference(double.key, single.key)
    saved = report.weights.totals[single.key].bits - report.weights.totals[double.key].bits
    unsure = (
        "" if error is not None and abs(difference) > SURE * error else ", no more than chance on these rows"
    )
    return (
        f"Double quantization saves {saved:.3f} bits per parameter and changes the loss of {TYPES[own.quant_type]} by "
        f"{margin(difference, error)}{unsure}."
    )


def _weights(weights: WeightErrors, own: Variant) -> str:
    total = weights.totals[own.key]
    worst = weights.worst(own.key, 1)[0]
    return (
        f"The weights themselves: {name_of(own)} loses {100 * total.relative_error:.2f} % of them "
        f"(signal-to-noise {decibels(total.snr_db)}). Worst is {worst.module}, where the error is "
        f"{100 * worst.typical_error(own.key):.2f} % of a typical weight."
    )


def _few_bits(weights: WeightErrors) -> str:
    return (
        f"These files hold weights that were stored in 4 bits before: of 32 neighbours only {weights.distinct_in_32:.0f} differ, of "
        "weights as trained about 31. So this is a second loss on top of a first, and a grid like their own (linear int4) is "
        "favoured; the model's 16-bit original would tell what 4 bits cost by themselves."
    )


def decibels(value: float | None) -> str:
    """`20.6 dB`; `n/a` where nothing was lost."""
    return "n/a" if value is None else f"{value:.1f} dB"


def _limits(report: QualityReport) -> Iterator[str]:
    """What was not measured, and how far the rows carry."""
    weights, held_out = report.weights, report.held_out
    if len(weights.measured_layers) < weights.layers:
        why = "the time was up" if weights.is_out_of_time else "as asked"
        yield (
            f"{len(weights.measured_layers)} of {weights.layers} layers were measured, spread over the depth ({why}): "
            f"{', '.join(map(str, weights.measured_layers))}."
        )
    if held_out is None:
        return
    if not held_out.is_held_out:
        yield "Nothing is held out, so rows of the training part were read; the model has seen neither."
    if held_out.is_out_of_time:
        yield f"Time or memory allowed {held_out.rows} of {held_out.rows_available} rows."
    if held_out.rows < FEW_ROWS:
        yield f"{held_out.rows} rows are few: the numbers after ± are standard errors over rows; take twice that as the doubt."
