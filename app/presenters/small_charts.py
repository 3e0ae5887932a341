"""The small charts beside the memory charts: which there are, and their newest values in words. Without Qt.

Imports numpy through `series`: import it late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.presenters import numerals
from app.presenters.words import GIB, MIB, capital, gib_figure, gib_text, percent_text
from qlora_engine.monitor.residency import ESTIMATED
from qlora_engine.monitor.series import numbers

HELD_BACK = "\u25bc"
"""Behind a clock that could be higher; why is in the tooltip."""


@dataclass(frozen=True)
class SmallLine:
    """One line of a small chart: a series of the ring, what it is multiplied with, and how it is called."""

    series: str
    title: str
    colour: str
    factor: float = 1.0


@dataclass(frozen=True)
class SmallChart:
    """`unit` of all its lines; `top` is the least upper end of its scale."""

    name: str
    title: str
    unit: str
    lines: tuple[SmallLine, ...]
    top: float = 0.0
    digits: int = 0


@dataclass(frozen=True)
class SmallReading:
    """The newest values in words, and the reason where there is none."""

    text: str
    tip: str = ""


HOST_CHARTS = (
    SmallChart(
        "host", "Host", "GiB", (SmallLine("host.used_bytes", "used", "#0072B2", 1 / GIB),), digits=2
    ),
    SmallChart("swap", "Swap", "GiB", (SmallLine("host.swap_used_bytes", "used", "#E69F00", 1 / GIB),), 0.1, 2),
    SmallChart(
        "cores", "Engine CPU", "cores", (SmallLine("host.process_cpu_ratio", "busy", "#009E73"),), 1.0, 1
    ),
    SmallChart(
        "faults", "Engine faults", "/s", (SmallLine("host.major_page_faults_per_second", "from disk", "#CC79A7"),), 10.0
    ),
)  # fmt: skip
PAGES_CHART = SmallChart(
    "pages", "Paging", "MiB/s",
    (
        SmallLine("paged.to_cpu_bytes_per_second", "to CPU", "#E69F00", 1 / MIB),
        SmallLine("paged.to_gpu_bytes_per_second", "to GPU", "#D55E00", 1 / MIB),
    ),
    1.0,
)  # fmt: skip
MOVES_CHART = SmallChart(
    "moves", "Paging faults", "/s", (SmallLine("paged.page_faults_per_second", "faults", "#CC79A7"),), 10.0
)  # fmt: skip
"""Where page moves are counted (`training.count_page_moves`)."""


def gpu_key(gpu: Mapping[str, Any]) -> str:
    """The ring's name of a GPU or MIG slice."""
    mig = gpu.get("mig_index")
    return f"gpu{gpu['index']}" if mig is None else f"gpu{gpu['index']}.{mig}"


def gpu_charts(gpu: Mapping[str, Any], *, has_memory: bool) -> tuple[SmallChart, ...]:
    """A row of small charts for one GPU; its memory too where there are several."""
    key = gpu_key(gpu)
    name = f"GPU {key.removeprefix('gpu')}"
    memory = SmallChart(
        f"{key}.memory", f"{name} memory", "GiB", (SmallLine(f"{key}.used_bytes", "used", "#0072B2", 1 / GIB),), digits=2
    )  # fmt: skip
    found = (
        SmallChart(
            f"{key}.use", name, "%",
            (
                SmallLine(f"{key}.utilisation_ratio", "", "#009E73", 100),
                SmallLine(f"{key}.encoder_ratio", "encoder", "#CC79A7", 100),
            ),
            100,
        ),
        SmallChart(f"{key}.clock", "Clock", "MHz", (SmallLine(f"{key}.sm_clock_mhz", "chip", "#0072B2"),), 1000),
        SmallChart(f"{key}.power", "Power", "W", (SmallLine(f"{key}.power_watts", "drawn", "#E69F00"),), 50),
        SmallChart(f"{key}.heat", "Heat", "\u00b0C", (SmallLine(f"{key}.temperature_celsius", "chip", "#D55E00"),), 60),
        SmallChart(
            f"{key}.pcie", "PCIe, MiB/s", "",
            (
                SmallLine(f"{key}.pcie_received_bytes_per_second", "in", "#56B4E9", 1 / MIB),
                SmallLine(f"{key}.pcie_sent_bytes_per_second", "out", "#CC79A7", 1 / MIB),
            ),
            1.0,
        ),
    )  # fmt: skip
    return (memory, *found) if has_memory else found


def small_reading(chart: SmallChart, sample: Mapping[str, Any] | None) -> SmallReading:
    """The newest values: `62 °C`, or `n/a` with the reason."""
    if sample is None:
        return SmallReading("n/a", "nothing was measured yet")
    values = numbers(sample)
    known = [(line, values.get(line.series)) for line in chart.lines]
    texts = [
        f"{line.title + ' ' if line.title and len(chart.lines) > 1 else ''}{numerals.decimal(value * line.factor, chart.digits)}"
        for line, value in known
        if value is not None
    ]
    block = _block(sample, chart.lines[0].series)
    if not texts:
        return SmallReading("n/a", _reason(sample, block, chart))
    text = numerals.measured(", ".join(texts), chart.unit)
    return SmallReading(text + _limit(chart, block), _more(chart, block))


def _block(sample: Mapping[str, Any], series: str) -> Mapping[str, Any]:
    head = series.rsplit(".", 1)[0]
    if head in ("host", "paged"):
        return sample.get(head) or {}
    return next((gpu for gpu in sample.get("gpus") or () if gpu_key(gpu) == head), {})


def _reason(sample: Mapping[str, Any], block: Mapping[str, Any], chart: SmallChart) -> str:
    field = chart.lines[0].series.rsplit(".", 1)[1]
    if field.startswith("process_") and field not in block:
        return "no engine is running"
    why = (block.get("unavailable") or {}).get(field) or sample.get("gpu_problem")
    return str(why or "it is not told")


def _limit(chart: SmallChart, block: Mapping[str, Any]) -> str:
    """What it is measured against, where that is known."""
    if chart.name.endswith(".power") and block.get("power_limit_watts"):
        return f" of {numerals.decimal(block['power_limit_watts'], 0)}"
    if chart.name.endswith(".clock") and held_back_by(block):
        return f" {HELD_BACK}"
    if chart.name == "host" and block.get("total_bytes"):
        return f" of {gib_figure(block['total_bytes'])}"
    if chart.name == "swap" and block.get("swap_total_bytes") is not None:
        return f" of {gib_figure(block['swap_total_bytes'])}"
    if chart.name.endswith(".memory") and block.get("total_bytes"):
        return f" of {gib_figure(block['total_bytes'])}"
    return ""


def held_back_by(gpu: Mapping[str, Any]) -> tuple[str, ...]:
    """Why the clocks are lower than they could be; that nobody asks for more is no reason."""
    return tuple(reason for reason in gpu.get("throttle_reasons") or () if reason != "idle")


def _more(chart: SmallChart, block: Mapping[str, Any]) -> str:
    """What belongs to a chart and has no line in it, for its tooltip."""
    if chart.name == "host":
        return _host_words(block)
    if chart.name == "faults":
        return f"All page faults, most of them without the disk: {_told(block, 'page_faults_per_second', _per_second)}"
    if chart.name == "pages":
        return _moving_words(block)
    if chart.name == "moves":
        return "\n".join(
            f"{title}: {_told(block, name, _per_second)}"
            for title, name in (("By the GPU", "gpu_page_faults_per_second"), ("By the CPU", "cpu_page_faults_per_second"))
        )  # fmt: skip
    return _gpu_words(chart, block)


def _host_words(host: Mapping[str, Any]) -> str:
    lines = [
        f"{title}: {_told(host, name, gib_text)}"
        for title, name in (
            ("Engine, resident", "process_resident_bytes"),
            ("of it shared with others", "process_shared_bytes"),
            ("Engine, swapped out", "process_swap_bytes"),
            ("Engine, in shared GPU memory", "process_shared_gpu_bytes"),
            ("Limit of the control group", "cgroup_limit_bytes"),
            ("Used in the control group", "cgroup_used_bytes"),
        )
        if host.get(name) is not None
    ]
    return "\n".join(lines)


def _moving_words(paged: Mapping[str, Any]) -> str:
    """How the rates are known."""
    if paged.get("moving_kind"):
        return capital(f"{paged['moving_kind']} by the driver\n{paged.get('page_moves_reason', '')}".strip())
    why = paged.get("page_moves_reason")
    how = "Estimated from how the part on the CPU changes"
    if paged.get("residency_kind") != ESTIMATED:
        how = "Nothing had to move"
    return f"{how}\nNot counted: {why}" if why else how


def _gpu_words(chart: SmallChart, gpu: Mapping[str, Any]) -> str:
    if chart.name.endswith(".use"):
        return (
            f"Memory controller: {_told(gpu, 'memory_utilisation_ratio', percent_text)}\n"
            f"Video encoder: {_told(gpu, 'encoder_ratio', percent_text)}"
        )
    if not chart.name.endswith(".clock"):
        return ""
    reasons = gpu.get("throttle_reasons")
    held = f"Held back by: {', '.join(reasons)}" if reasons else "Not held back"
    if reasons is None:
        held = f"What holds it back: {_told(gpu, 'throttle_reasons', str)}"
    return f"Memory clock: {_told(gpu, 'memory_clock_mhz', _megahertz)}\n{held}"


def _told(block: Mapping[str, Any], name: str, write: Callable[[Any], str]) -> str:
    """A figure in words, or n/a and why."""
    value = block.get(name)
    if value is not None:
        return write(value)
    why = (block.get("unavailable") or {}).get(name)
    return f"n/a ({why})" if why else "n/a"


def _per_second(count: float) -> str:
    return f"{numerals.decimal(count, 0)}/s"


def _megahertz(mhz: float) -> str:
    return f"{numerals.decimal(mhz, 0)} MHz"
