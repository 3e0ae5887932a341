"""The quality report: what each way to store the weights loses, module by module and on held-out rows. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WORST = 5
FEW_VALUES = 18


@dataclass(frozen=True)
class Measure:
    """How near a stored weight W' is to W. `relative_error`: ||W - W'|| / ||W||; `snr_db`: 20 log10 of its inverse, None
    where nothing was lost; `largest_error`: the largest |W - W'|; `bits`: stored per parameter, constants included."""

    bits: float
    relative_error: float
    snr_db: float | None
    largest_error: float


@dataclass(frozen=True)
class ModuleErrors:
    """One linear layer. A typical weight is the standard deviation that normal weights of the same median magnitude have:
    outliers do not move it. `peak_ratio`: the largest weight over it; `tail_ratio`: the root mean square over it, 1 for
    normal weights. `measures` by `Variant.key`."""

    module: str
    layer: int
    parameters: int
    peak_ratio: float
    tail_ratio: float
    measures: Mapping[str, Measure]

    def typical_error(self, key: str) -> float:
        """Root mean square error over a typical weight. Equals the relative error for normal weights; with outliers, which
        carry the norm and are stored well, it tells what the others lose."""
        return self.measures[key].relative_error * self.tail_ratio

    @property
    def name(self) -> str:
        """`mlp.down_proj` of `model.layers.3.mlp.down_proj`."""
        return self.module.partition(f".{self.layer}.")[2] or self.module


@dataclass(frozen=True)
class WeightErrors:
    """All measured modules in the order of the model, and together (`totals`, weighted by their parameters).

    `measured_layers` are fewer than `layers` where a limit made a sample; `is_out_of_time` when it was the clock.
    `distinct_in_32`: how many different values stand, on average, in 32 neighbouring weights of the files.
    """

    layers: int
    measured_layers: tuple[int, ...]
    parameters: int
    modules: tuple[ModuleErrors, ...]
    totals: Mapping[str, Measure]
    is_out_of_time: bool
    distinct_in_32: float
    seconds: float

    @property
    def were_few_bits(self) -> bool:
        """True where the files hold weights that were quantized before: 16 levels in each block of 32, as GGUF's 4-bit kinds
        have, leave at most 16 values, and weights as trained hold about 31 different ones."""
        return self.distinct_in_32 < FEW_VALUES

    def worst(self, key: str, count: int = WORST) -> tuple[ModuleErrors, ...]:
        """The modules whose typical weights lose most with this variant, worst first."""
        ranked = sorted(self.modules, key=lambda module: -module.typical_error(key))
        return tuple(ranked[:count])


@dataclass(frozen=True)
class Score:
    """A model on the rows. `loss`: nats per trained token; `row_losses`: summed, by row. Against the unquantized model, in
    nats per token: `extra` loss with its standard error over rows (None for a single row), `kl` divergence of the
    predictions, and `agreement`, the share of tokens whose likeliest is the same; all None for that model itself."""

    loss: float
    row_losses: tuple[float, ...]
    extra: float | None = None
    extra_error: float | None = None
    kl: float | None = None
    agreement: float | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


@dataclass(frozen=True)
class HeldOut:
    """The rows, `row_tokens` trained tokens of each, and the scores on them. `is_held_out` is False where nothing was held
    out and rows of the training part were taken instead. `is_out_of_time`: the clock took rows away."""

    origin: str
    data_sha256: str
    rows_available: int
    is_held_out: bool
    is_out_of_time: bool
    row_tokens: tuple[int, ...]
    reference: Score
    scores: Mapping[str, Score]
    seconds: float

    @property
    def rows(self) -> int:
        return len(self.row_tokens)

    @property
    def tokens(self) -> int:
        return sum(self.row_tokens)

    def difference(self, one: str, other: str) -> tuple[float, float | None]:
        """How many nats per token `one` loses more than `other`, and the standard error of that over rows."""
        return paired(self.scores[one].row_losses, self.scores[other].row_losses, self.row_tokens)


@dataclass(frozen=True)
class QualityReport:
    """`compute_dtype` is the type the weights were quantized from and the loss was computed in, `stored_dtype` the files'.
    `why_no_held_out` says why the loss was not measured, `notices` what else the person should know."""

    model: str
    base_sha256: str
    device: str
    compute_dtype: str
    stored_dtype: str
    weights: WeightErrors
    held_out: HeldOut | None
    why_no_held_out: str
    notices: tuple[str, ...]
    versions: Mapping[str, str]
    unix_time: float

    @property
    def reference_text(self) -> str:
        """What the quantized models are compared with: `16-bit` or `32-bit`."""
        is_wide = self.stored_dtype == "F32" and self.compute_dtype == "float32"
        return "32-bit" if is_wide else "16-bit"

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        if self.held_out is not None:
            for score, found in (
                (self.held_out.reference, plain["held_out"]["reference"]),
                *((score, plain["held_out"]["scores"][key]) for key, score in self.held_out.scores.items()),
            ):
                found["perplexity"] = score.perplexity
        return plain


def report_from(plain: Mapping[str, Any]) -> QualityReport:
    """The report of `QualityReport.to_json`.

    Raises:
        KeyError, TypeError: not such a document.
    """
    held_out = plain["held_out"]
    return QualityReport(
        **{
            **plain,
            "notices": tuple(plain["notices"]),
            "weights": _weights_from(plain["weights"]),
            "held_out": None if held_out is None else _held_out_from(held_out),
        }
    )


def paired(one: Sequence[float], other: Sequence[float], tokens: Sequence[int]) -> tuple[float, float | None]:
    """Mean difference per token of two sums over the same rows, and its standard error; None for a single row.

    The rows are the sample, since tokens of a row depend on each other: a ratio estimator, d = sum(x) / sum(n), with
    variance R / (R - 1) sum((x - d n)^2) / sum(n)^2 (Cochran, Sampling Techniques, 6.3).
    """
    differences = [a - b for a, b in zip(one, other, strict=True)]
    total, rows = sum(tokens), len(differences)
    mean = sum(differences) / total
    if rows < 2:
        return mean, None
    squares = sum((x - mean * n) ** 2 for x, n in zip(differences, tokens, strict=True))
    return mean, math.sqrt(rows / (rows - 1) * squares) / total


def _weights_from(plain: Mapping[str, Any]) -> WeightErrors:
    modules = tuple(
        ModuleErrors(**{**module, "measures": _measures_from(module["measures"])})
        for module in plain["modules"]
    )
    return WeightErrors(
        **{
            **plain,
            "measured_layers": tuple(plain["measured_layers"]),
            "modules": modules,
            "totals": _measures_from(plain["totals"]),
        }
    )


def _measures_from(plain: Mapping[str, Any]) -> dict[str, Measure]:
    return {key: Measure(**measure) for key, measure in plain.items()}


def _held_out_from(plain: Mapping[str, Any]) -> HeldOut:
    return HeldOut(
        **{
            **plain,
            "row_tokens": tuple(plain["row_tokens"]),
            "reference": _score_from(plain["reference"]),
            "scores": {key: _score_from(score) for key, score in plain["scores"].items()},
        }
    )


def _score_from(plain: Mapping[str, Any]) -> Score:
    values = {key: value for key, value in plain.items() if key != "perplexity"}
    return Score(**{**values, "row_losses": tuple(values["row_losses"])})
