"""The sizes that a slider moves, the largest that fits of each, and the costs that other calculators leave out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from app.presenters.words import bytes_text, count_text, plural
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.memory import advise
from qlora_engine.memory import estimate as closed_form
from qlora_engine.memory.activations import CHUNK_TOKENS
from qlora_engine.memory.advise import Largest
from qlora_engine.memory.context import UNMEASURED, Context
from qlora_engine.memory.estimate import Advice
from qlora_engine.memory.explain import Comparison
from qlora_engine.models.spec import ModelFacts

SEQ_LEN, MICRO_BATCH, RANK, MODEL = "data.seq_len", "training.micro_batch", "lora.rank", "model.name"
SHORTEST_ASKED = 8
"""Where the search for the longest row begins."""
USUAL_LONGEST = 131_072
IN_USE = "In use already"
"""On the button that would apply what is set."""
RANKS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True)
class Subject:
    """What is estimated: the model, the settings, rows of `seq_len` tokens, `micro_batch` at a time."""

    facts: ModelFacts
    config: TrainingConfig
    seq_len: int
    micro_batch: int
    device: str
    context: Context = UNMEASURED


@dataclass(frozen=True)
class Fitting:
    """The largest that fits. `rows` is the largest micro-batch that also divides the effective batch; `plan` are the
    cheapest changes that together make the settings fit, empty when they do, None when nothing does."""

    largest: Largest
    rows: int | None
    plan: tuple[Advice, ...] | None = ()


@dataclass(frozen=True)
class Size:
    """One setting with its stops and the largest that fits; `use` is None where there is nothing to apply."""

    path: str
    title: str
    value_text: str
    position: int
    stops: tuple[int, ...]
    fits_text: str
    use_text: str
    use: Any
    tip: str


@dataclass(frozen=True)
class Cost:
    title: str
    bytes_text: str
    text: str


def fitting(subject: Subject, usable_bytes: int) -> Fitting:
    """Ten to twenty milliseconds of arithmetic: not in the GUI thread."""
    facts, config = subject.facts, subject.config
    largest = advise.largest_that_fits(
        facts, config, seq_len=subject.seq_len, micro_batch=subject.micro_batch, usable_bytes=usable_bytes,
        device=subject.device, context=subject.context,
    )  # fmt: skip

    def fits(rows: int) -> bool:
        found = closed_form.variant_of(
            facts, config, seq_len=subject.seq_len, micro_batch=rows, device=subject.device, context=subject.context
        )  # fmt: skip
        return found.device_likely <= usable_bytes

    divisors = reversed(divisors_of(config.training.effective_batch))
    plan = advise.plan(
        facts, config, seq_len=subject.seq_len, micro_batch=subject.micro_batch, usable_bytes=usable_bytes,
        device=subject.device, context=subject.context,
    )  # fmt: skip
    return Fitting(largest, next((rows for rows in divisors if fits(rows)), None), plan)


def sizes(subject: Subject | None, found: Fitting | None) -> tuple[Size, ...]:
    """Length, micro-batch, rank and model, in this order."""
    if subject is None:
        return ()
    return (_length(subject, found), _rows(subject, found), _rank(subject, found), _model(subject, found))


def _length(subject: Subject, found: Fitting | None) -> Size:
    limit = subject.facts.max_positions
    stops = length_stops(limit or USUAL_LONGEST)
    largest = found.largest.seq_len if found else None
    is_limit = largest is not None and largest == limit
    fits = f"All {count_text(largest)} tokens of the model fit" if is_limit else f"At most {count_text(largest)} tokens fit"  # fmt: skip
    return _size(
        SEQ_LEN, "Sequence length", f"{count_text(subject.seq_len)} tokens", subject.seq_len, stops,
        found, largest, fits, f"Not even {count_text(SHORTEST_ASKED)} tokens fit", lambda n: f"Use {count_text(n)} tokens",
        tip="Longest row that fits, all else as it is",
    )  # fmt: skip


def _rows(subject: Subject, found: Fitting | None) -> Size:
    batch = subject.config.training.effective_batch
    most = found.largest.micro_batch if found else None
    usable = found.rows if found else None
    fits = f"At most {_rows_text(most or 0)} fit{'s' if most == 1 else ''}"
    if most is not None and usable is not None and most > usable:
        fits += f"; the effective batch of {_rows_text(batch)} takes {count_text(usable)} at once"
    return _size(
        MICRO_BATCH, "Micro-batch", _rows_text(subject.micro_batch), subject.micro_batch, divisors_of(batch),
        found, usable, fits, "Not even 1 row fits",
        lambda n: f"Use {_rows_text(n)}",
        tip=f"The micro-batch must divide the effective batch of {_rows_text(batch)}",
    )  # fmt: skip


def _rank(subject: Subject, found: Fitting | None) -> Size:
    rank = subject.config.lora.rank
    largest = found.largest.rank if found else None
    return _size(
        RANK, "Rank", f"rank {count_text(rank)}", rank, RANKS, found, largest, f"At most rank {count_text(largest)} fits", "Not even rank 1 fits",
        lambda n: f"Use rank {count_text(n)}", tip="Highest rank that fits, all else as it is",
    )  # fmt: skip


def _model(subject: Subject, found: Fitting | None) -> Size:
    name = found.largest.model if found else None
    found_size = _size(
        MODEL, "Model", subject.facts.name, name, (), found, name, "Largest known model that fits",
        "No known model fits", lambda n: f"Use {n}",
        tip="Of the models this program knows by name; choosing one downloads nothing yet",
    )  # fmt: skip
    return replace(found_size, use=None, use_text=IN_USE) if name == subject.facts.name else found_size


def _size(
    path: str, title: str, value_text: str, value: Any, stops: tuple[int, ...], found: Fitting | None, largest: Any,
    fits: str, none_fits: str, use: Callable[[Any], str], *, tip: str,
) -> Size:  # fmt: skip
    position = nearest(stops, value) if stops else 0
    if found is None:
        return Size(path, title, value_text, position, stops, "", "Looking", None, "")
    if largest is None:
        return Size(path, title, value_text, position, stops, none_fits, "Nothing to use", None, tip)
    is_there = bool(stops) and largest == value
    return Size(path, title, value_text, position, stops, fits, IN_USE if is_there else use(largest), None if is_there else largest, tip)  # fmt: skip


def _rows_text(count: int) -> str:
    return plural(count, "row")


def length_stops(limit: int) -> tuple[int, ...]:
    """Four stops per doubling from 32 to `limit`, which is one itself."""
    found = [32, 40, 48, 56]
    while found[-1] < limit:
        found += [2 * n for n in found[-4:]]
    return (*(n for n in found if n < limit), limit)


@cache
def divisors_of(whole: int) -> tuple[int, ...]:
    """In order: `divisors_of(12) == (1, 2, 3, 4, 6, 12)`."""
    return tuple(n for n in range(1, whole + 1) if whole % n == 0)


def nearest(stops: tuple[int, ...], value: int) -> int:
    """The index of the stop nearest to `value`."""
    return min(range(len(stops)), key=lambda index: abs(stops[index] - value))


def hidden_costs(subject: Subject | None, found: Comparison | None) -> tuple[Cost, ...]:
    """What many calculators leave out, for these settings."""
    if subject is None or found is None:
        return ()
    return (*_upcast(subject), _logits(subject), _constants(found))


def _upcast(subject: Subject) -> tuple[Cost, ...]:
    """PEFT's preparation for 4-bit training casts every 16-bit weight that is not quantized to fp32: two bytes more."""
    if subject.device == "cpu":
        return ()
    extra = 2 * subject.facts.unquantized_parameters
    text = "Not spent here: they stay in 16 bits. Preparing the model the usual way would add this."
    title = "Embeddings, head, norms and experts in fp32" if subject.facts.experts else "Embeddings, head and norms in fp32"  # fmt: skip
    return (Cost(title, bytes_text(extra), text),)


def _logits(subject: Subject) -> Cost:
    tokens = subject.seq_len * subject.micro_batch
    whole = 4 * tokens * subject.facts.vocab_size
    full, chunked = (_peak_with_loss(subject, kind) for kind in ("full", "chunked"))
    more = bytes_text(full - chunked)
    if subject.config.training.loss == "full":
        text = f"Held at once, as set. Chunks would lower the peak by {more}."
    else:
        text = f"Here at most {count_text(CHUNK_TOKENS)} trained tokens at a time; all at once would raise the peak by {more}."
    return Cost(f"Logits in fp32, one copy for {count_text(tokens)} tokens", bytes_text(whole), text)


def _peak_with_loss(subject: Subject, kind: str) -> int:
    return closed_form.variant_of(
        subject.facts, with_value(subject.config, "training.loss", kind), seq_len=subject.seq_len,
        micro_batch=subject.micro_batch, device=subject.device,
    ).peak_bytes  # fmt: skip


def _constants(found: Comparison) -> Cost:
    double, single = (found.bar(side).part("quantization_constants").bytes_ for side in ("double_quant", "single_quant"))  # fmt: skip
    text = f"Double quantization brings them down to {bytes_text(double)}."
    return Cost("Quantization constants, not quantized again", bytes_text(single), text)
