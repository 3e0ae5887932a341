"""What 4 bits cost on the chosen model, as the Model page shows it: sentences, a table, the worst layers, a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.presenters import numerals
from app.presenters.in_window import in_window
from app.presenters.words import (
    UNKNOWN,
    capital,
    count_text,
    date_text,
    duration_text,
    joined,
    of_text,
    percent_text,
)
from qlora_engine.errors import EngineError
from qlora_engine.quantization import words
from qlora_engine.quantization.report import ModuleErrors, QualityReport, Score, WeightErrors
from qlora_engine.quantization.variants import MAIN, TYPES, Variant, variant_of

HEADERS = ("Stored as", "Bits", "Weight error", "SNR", "Loss", "Costs", "KL", "Same choice")
HEADER_TIPS = (
    "How the linear layers are stored; the job at hand is set in bold",
    "Bits per parameter, constants included, as they stay in memory",
    "Length of the difference over length of the weights, all measured layers together",
    "Signal-to-noise ratio of the weights; 6\u00a0dB more is half the error",
    "Held-out loss in nats per trained token, as in training",
    "How much more loss than unquantized, with the standard error over rows",
    "How far the predictions moved: Kullback-Leibler divergence in nats per token",
    "Share of the tokens whose likeliest prediction is the unquantized model's",
)
IDLE = (
    "Stores every linear layer of this model in NF4, FP4 and linear int4, tells what each loses, and reads held-out rows of "
    "your data with each of them. Takes minutes on a CPU, and can be stopped at any moment."
)
HELD = "A run is training. This can be measured when it has ended."
UNITS = {"measuring": "layers stored", "evaluating": "rows read"}


@dataclass(frozen=True)
class QualityStatus:
    """What the measuring does: `text` is empty while nothing runs; `is_held` while a run trains."""

    text: str = ""
    share: float | None = None
    error: EngineError | None = None
    note: str = ""
    is_held: bool = False


@dataclass(frozen=True)
class TableRow:
    cells: tuple[str, ...]
    is_own: bool


@dataclass(frozen=True)
class WorstLine:
    """`rank` is the number that the picture marks it with."""

    rank: int
    module: str
    text: str


@dataclass(frozen=True)
class Dot:
    """One module: its layer, its error as a share of a typical weight, what a hover tells, its rank among the worst."""

    layer: int
    error: float
    tip: str
    rank: int = 0


@dataclass(frozen=True)
class Series:
    """One way to store, in the order of the legend. `line` joins each layer's mean (layer, error)."""

    name: str
    title: str
    dots: tuple[Dot, ...]
    line: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class QualityPicture:
    series: tuple[Series, ...]
    layers: int
    top: float
    summary: str


@dataclass(frozen=True)
class QualityState:
    button_text: str
    can_measure: bool
    hint: str
    running_text: str = ""
    running_share: float | None = None
    problem: str = ""
    problem_hint: str = ""
    verdict: str = ""
    warning: str = ""
    more: str = ""
    rows: tuple[TableRow, ...] = ()
    blocks: str = ""
    worst: tuple[WorstLine, ...] = ()
    picture: QualityPicture | None = None
    measured_text: str = ""

    @property
    def is_running(self) -> bool:
        return bool(self.running_text)


def quality_state(
    report: QualityReport | None, own: Variant, status: QualityStatus, *, has_model: bool
) -> QualityState:
    """`own`: how the job at hand stores its weights."""
    can_measure = has_model and not status.text and not status.is_held
    hint = HELD if status.is_held else status.note or ("" if report is not None else IDLE)
    state = QualityState(
        button_text="Measure again" if report is not None else "Measure what 4 bits cost",
        can_measure=can_measure,
        hint="" if status.text else hint,
        running_text=status.text,
        running_share=status.share,
        problem=capital(status.error.message) if status.error else "",
        problem_hint=capital(in_window(status.error.hint)) if status.error else "",
    )
    return state if report is None else _with_report(state, report, own)


def progress_text(phase: str, done: int, total: int | None, unit: str) -> str:
    """`60 of 210 layers stored`."""
    return f"{of_text(done, total or None)} {UNITS.get(phase, f'{unit}, {phase}')}"


def _with_report(state: QualityState, report: QualityReport, own: Variant) -> QualityState:
    verdict, *more = words.sentences(report, own)
    warnings = words.warnings(report)
    worst = report.weights.worst(own.key)
    seconds = report.weights.seconds + (report.held_out.seconds if report.held_out else 0.0)
    where = "the CPU" if report.device == "cpu" else "the GPU"
    return QualityState(
        **{
            **vars(state),
            "verdict": verdict,
            "warning": "\n".join(warnings),
            "more": "\n".join(sentence for sentence in more if sentence not in warnings),
            "rows": tuple(_rows(report, own)),
            "blocks": _blocks(report.weights, own),
            "worst": tuple(_worst_line(rank, module, own) for rank, module in enumerate(worst, start=1)),
            "picture": _picture(report.weights, own, worst),
            "measured_text": f"Measured {date_text(report.unix_time)} in {duration_text(seconds)} on {where}, from {report.compute_dtype}",
        }
    )


def _rows(report: QualityReport, own: Variant) -> Iterator[TableRow]:
    for variant in MAIN:
        total = report.weights.totals[variant.key]
        score = report.held_out.scores.get(variant.key) if report.held_out else None
        cells = (
            variant.title,
            numerals.decimal(total.bits, 3),
            percent(total.relative_error),
            decibels(total.snr_db),
            *_score_cells(score),
        )
        yield TableRow(cells, variant == own)


def _score_cells(score: Score | None) -> tuple[str, str, str, str]:
    if score is None or score.extra is None or score.kl is None or score.agreement is None:
        return ("n/a",) * 4
    return (
        numerals.decimal(score.loss, 3), margin(score.extra, score.extra_error), numerals.decimal(score.kl, 3),
        percent_text(score.agreement, 1),
    )  # fmt: skip


def _blocks(weights: WeightErrors, own: Variant) -> str:
    """`Larger blocks lose more: NF4 9.36 % at 64, 9.91 % at 128 ...`, with what they save."""
    sizes = sorted({variant_of(key).block_size for key in weights.totals})
    if len(sizes) < 2:
        return ""
    told = []
    for quant_type, name in TYPES.items():
        found = (weights.totals[Variant(quant_type, size, own.double_quant).key] for size in sizes)
        told.append(
            f"{name} {joined([f'{percent(m.relative_error)} at {count_text(s)}' for s, m in zip(sizes, found, strict=True)])}"
        )
    bits = [weights.totals[Variant(own.quant_type, size, own.double_quant).key].bits for size in sizes]
    return (
        f"Weights per block: {'; '.join(told)}. Training uses blocks of {count_text(own.block_size)}; "
        f"{joined([f'{numerals.decimal(b, 3)} bits at {count_text(s)}' for s, b in zip(sizes, bits, strict=True)])}."
    )


def _worst_line(rank: int, module: ModuleErrors, own: Variant) -> WorstLine:
    measure = module.measures[own.key]
    return WorstLine(
        rank,
        module.module,
        f"{percent(module.typical_error(own.key))} \u00b7 {decibels(measure.snr_db)} \u00b7 largest weight "
        f"{numerals.decimal(module.peak_ratio, 1)}\u00d7 a typical one",
    )


def _picture(weights: WeightErrors, own: Variant, worst: Sequence[ModuleErrors]) -> QualityPicture:
    ranks = {module.module: rank for rank, module in enumerate(worst, start=1)}
    series = []
    for quant_type in TYPES:
        variant = Variant(quant_type, own.block_size, own.double_quant)
        is_own = variant == own
        dots = tuple(
            _dot(module, variant, ranks.get(module.module, 0) if is_own else 0) for module in weights.modules
        )
        series.append(Series(quant_type, words.name_of(variant), dots, _means(weights, variant)))
    return QualityPicture(
        series=tuple(series),
        layers=weights.layers,
        top=max(dot.error for found in series for dot in found.dots),
        summary=f"Error of {count_text(len(weights.modules))} linear layers along the depth of the model, for {joined([s.title for s in series])}",
    )


def _dot(module: ModuleErrors, variant: Variant, rank: int) -> Dot:
    measure = module.measures[variant.key]
    error = module.typical_error(variant.key)
    tip = (
        f"{module.module}\n{words.name_of(variant)}: {percent(error)} of a typical weight, "
        f"{percent(measure.relative_error)} of all, {decibels(measure.snr_db)}\n"
        f"largest error {numerals.short(measure.largest_error, 3)}, {numerals.decimal(measure.bits, 3)} bits per parameter"
    )
    return Dot(module.layer, error, tip, rank)


def _means(weights: WeightErrors, variant: Variant) -> tuple[tuple[int, float], ...]:
    """Of each measured layer the mean over its modules, weighted by their parameters."""
    found = []
    for layer in weights.measured_layers:
        modules = [module for module in weights.modules if module.layer == layer]
        total = sum(module.parameters for module in modules)
        mean = sum(module.parameters * module.typical_error(variant.key) for module in modules) / total
        found.append((layer, mean))
    return tuple(found)


def percent(ratio: float) -> str:
    """`9.36 %`."""
    return percent_text(ratio, 2)


def margin(value: float, error: float | None) -> str:
    """`0.012 \u00b1 0.004`: a value and its standard error over rows."""
    told = numerals.decimal(value, 3)
    return told if error is None else f"{told} \u00b1 {numerals.decimal(error, 3)}"


def decibels(value: float | None) -> str:
    """`20.6 dB`; `n/a` where nothing was lost."""
    return UNKNOWN if value is None else numerals.measured(numerals.decimal(value, 1), "dB")
