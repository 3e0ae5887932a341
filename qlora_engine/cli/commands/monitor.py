"""`qlora monitor`: GPU, paged and host memory, live as a table, as lines in a log, or as JSON lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from qlora_engine.cli import output

SHARED_GPU = "process_shared_gpu_bytes"
"""Windows alone tells it."""
Sample = Mapping[str, Any]
Row = tuple[str, str]


@click.command()
@click.option(
    "--seconds", type=float, help="End after this time. [default: with Ctrl+C, or with the watched process]"
)
@click.option("--hz", type=float, default=4.0, show_default=True, help="Samples a second.")
@click.option(
    "--pid", type=int, help="Watch this process and its children, for example another run's engine."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line on stdout.")
def monitor(seconds: float | None, hz: float, pid: int | None, as_json: bool) -> None:
    """Watch GPU memory, paged optimizer memory and host memory."""
    from qlora_engine import monitor as engine_monitor

    samples = engine_monitor.stream(seconds, hz, pid)
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(samples):
        if as_json:
            for sample in samples:
                output.print_line(sample)
        elif sys.stdout.isatty():
            _show_live(samples)
        else:
            for sample in samples:
                output.say(line(sample))


def line(sample: Sample) -> str:
    """One sample as one line of a log."""
    from qlora_engine.monitor import words

    return f"{time.strftime('%H:%M:%S', time.localtime(sample['time']))}  {words.memory_line(sample)}"


def rows(sample: Sample) -> list[Row]:
    """Everything a sample tells, one figure a row; what is unknown says why."""
    found = [row for gpu in sample.get("gpus") or () for row in _gpu_rows(gpu)]
    if sample.get("gpu_problem"):
        found.append(("GPU", f"{output.NOT_AVAILABLE} ({sample['gpu_problem']})"))
    return [*found, *_paged_rows(sample), *_host_rows(sample), *_part_rows(sample)]


def _show_live(samples: Iterator[Sample]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False) as live:
        for sample in samples:
            table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
            table.add_row(Text("memory"), Text(line(sample)))
            for name, value in rows(sample):
                table.add_row(Text(name), Text(value))
            live.update(table, refresh=True)


def _gpu_rows(gpu: Sample) -> list[Row]:
    mig = "" if gpu.get("mig_index") is None else f" slice {gpu['mig_index']}"
    title = f"GPU {gpu['index']}{mig}"
    size, told = output.size, _teller(gpu)
    used = told("used_bytes", lambda v: f"{size(v)} of {size(gpu.get('total_bytes'))}")
    own = told("own_bytes", lambda v: f"{size(v)} here, {size(gpu.get('others_bytes'))} others")
    power = told("power_watts", lambda v: f"{v:.0f} of {_number(gpu.get('power_limit_watts'))} W")
    clocks = told("sm_clock_mhz", lambda v: f"{v} MHz, memory {_number(gpu.get('memory_clock_mhz'))} MHz")
    pcie = told(
        "pcie_received_bytes_per_second",
        lambda v: f"{size(v)}/s in, {size(gpu.get('pcie_sent_bytes_per_second'))}/s out",
    )
    return [
        (
            title,
            f"{gpu.get('name') or output.NOT_AVAILABLE}, driver {gpu.get('driver_version') or output.NOT_AVAILABLE}",
        ),
        ("  memory", used),
        ("  processes", own),
        ("  utilisation", told("utilisation_ratio", _percent)),
        ("  encoder", told("encoder_ratio", _percent)),
        ("  temperature", told("temperature_celsius", lambda v: f"{v:.0f} °C")),
        ("  power", power),
        ("  clocks", clocks),
        ("  held back by", told("throttle_reasons", lambda v: ", ".join(v) or "nothing")),
        ("  PCIe", pcie),
        ("  uncorrected errors", told("ecc_uncorrected_count", str)),
    ]


def _paged_rows(sample: Sample) -> list[Row]:
    paged = sample.get("paged")
    if not paged:
        why = (sample.get("unavailable") or {}).get("paged", "nothing to tell yet")
        return [("paged optimizer memory", f"{output.NOT_AVAILABLE} ({why})")]
    size, told = (
        output.size,
        _teller({**paged, "unavailable": {"on_cpu_bytes": paged.get("residency_reason")}}),
    )
    kind = paged.get("residency_kind")
    about = f" ± {size(paged.get('uncertainty_bytes'))} ({kind})" if kind == "estimated" else f" ({kind})"
    managed = size(paged.get("managed_bytes"))
    if paged.get("why_not_paged"):
        managed += f" ({paged['why_not_paged']})"
    return [
        ("paged optimizer memory", managed),
        ("  on the GPU", told("on_gpu_bytes", size)),
        ("  on the CPU", told("on_cpu_bytes", lambda v: size(v) + about)),
        ("  moving", _moving(paged)),
        *_fault_rows(paged),
    ]


def _moving(paged: Sample) -> str:
    """Both ways, and whether it was counted or follows from where the memory is."""
    words = f"{_rate(paged, 'to_gpu')} to the GPU, {_rate(paged, 'to_cpu')} to the CPU"
    how = paged.get("moving_kind") or paged.get("residency_kind")
    return f"{words} ({how})" if how else words


def _fault_rows(paged: Sample) -> list[Row]:
    """Faults of managed pages: only where somebody asked to have them counted."""
    reason = paged.get("page_moves_reason")
    if paged.get("moving_kind") is None:
        return [("  page moves", f"{output.NOT_AVAILABLE} ({reason})")] if reason else []
    gpu, cpu = paged.get("gpu_page_faults_per_second"), paged.get("cpu_page_faults_per_second")
    words = f"{_number(gpu)}/s by the GPU, {_number(cpu)}/s by the CPU"
    return [("  faults", f"{words} ({reason})" if reason else words)]


def _host_rows(sample: Sample) -> list[Row]:
    host = sample.get("host")
    if not host:
        return [("host", f"{output.NOT_AVAILABLE} ({(sample.get('unavailable') or {}).get('host')})")]
    size, told = output.size, _teller(host)
    used = host["total_bytes"] - host["available_bytes"]
    faults = told(
        "page_faults_per_second",
        lambda v: f"{v:.0f}/s, {host['major_page_faults_per_second']:.0f}/s from disk",
    )
    limit = told("cgroup_limit_bytes", lambda v: f"{size(host.get('cgroup_used_bytes'))} of {size(v)}")
    return [
        ("host memory", f"{size(used)} of {size(host['total_bytes'])}"),
        ("  swap", f"{size(host['swap_used_bytes'])} of {size(host['swap_total_bytes'])}"),
        ("  control group", limit),
        ("  processes watched", told("process_count", str)),
        ("  resident", told("process_resident_bytes", size)),
        ("  shared", told("process_shared_bytes", size)),
        *([("  shared GPU memory", told(SHARED_GPU, size))] if SHARED_GPU in host else []),
        ("  swapped", told("process_swap_bytes", size)),
        ("  processor", told("process_cpu_ratio", lambda v: f"{v:.2f} cores")),
        ("  page faults", faults),
    ]


def _part_rows(sample: Sample) -> list[Row]:
    from qlora_engine.monitor import parts

    found = parts.run_parts(sample)
    if len(found) < 2:
        return []
    return [("parts", "")] + [
        (f"  {p.name.replace('_', ' ')}", f"{output.size(p.bytes_)} ({p.kind})") for p in found
    ]


def _teller(block: Sample) -> Any:
    """Words for a field of `block`, or n/a and why."""

    def told(name: str, words: Any) -> str:
        if block.get(name) is not None:
            return str(words(block[name]))
        why = (block.get("unavailable") or {}).get(name)
        return f"{output.NOT_AVAILABLE} ({why})" if why else output.NOT_AVAILABLE

    return told


def _rate(paged: Sample, way: str) -> str:
    amount = paged.get(f"{way}_bytes_per_second")
    return output.NOT_AVAILABLE if amount is None else f"{output.size(amount)}/s"


def _number(value: float | None) -> str:
    return output.NOT_AVAILABLE if value is None else f"{value:.0f}"


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.0f} %"
