"""How fast the engine trains beside a bare PEFT loop and TRL, on the same rows and the same starter model.

`make bench-speed`, or `python -m tests.bench.speed_table [rounds] [json file]`. Every program trains the same rows in turn,
round after round; medians, ratios and their spread count, since other work on the machine slows all of them. TRL takes part
where it is installed (`pip install trl`, or `QLORA_BENCH_PATH` names a folder that has it). Prints a table and JSON; exit
code 1 when a promised ratio is missed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.bench import speed_contestants as contestants

ROUNDS = 3
PROMISED = {
    "bare loop": ("engine, packed", 1.15),
    "TRL, at its best": ("engine, packed", 1.5),
    "TRL, packed": ("engine, packed", 2.0),
    "TRL, padded": ("engine, padding-free", 2.2),
}
"""Of whom, by whom, how much at least."""
PROMISED_CEILING = 0.75
PROMISED_OPERATORS = 0.7
ENGINES = ("engine, packed", "engine, padding-free")
LAYERS = 30
PRODUCT_TOKENS, PRODUCT_PASSES = 1000, 3
"""About as many tokens as a packed step has."""
ONLY = "QLORA_BENCH_ONLY"
"""Names the contestants that take part by the beginning of their names; all without it."""


def main(arguments: Sequence[str]) -> int:
    """Print what was measured; 1 when a promise is broken."""
    rounds = int(arguments[0]) if arguments else ROUNDS
    if os.environ.get("QLORA_BENCH_PATH"):
        sys.path.append(os.environ["QLORA_BENCH_PATH"])
    load = contestants.prepare()
    programs = contestants.all_of(load, has_trl=importlib.util.find_spec("trl") is not None)
    programs = {name: train for name, train in programs.items() if name.startswith(os.environ.get(ONLY, ""))}
    runs: dict[str, list[contestants.Pace]] = {name: [] for name in programs}
    ceilings: dict[str, list[float]] = {name: [] for name in programs}
    products = Products()
    for number in range(rounds):
        before = products.gflops()
        for name, train in list(programs.items()):
            began = time.perf_counter()
            try:
                runs[name].append(train())
            except Exception as error:
                if name.startswith("engine"):
                    raise
                print(f"{name} is left out: {type(error).__name__}: {error}", flush=True)
                del programs[name], runs[name], ceilings[name]
                continue
            after = products.gflops()
            ceilings[name].append((before + after) / 2)
            before = after
            print(f"round {number + 1}: {name}: {runs[name][-1].tokens_per_second:.1f} tokens/s ({time.perf_counter() - began:.0f} s)", flush=True)  # fmt: skip
    found = summary(load, runs, ceilings)
    found["counts"] = {name: vars(one) for name, one in contestants.counts_of(load).items()}
    found["promises"] += [operator_promise(found["counts"], name) for name in ENGINES]
    print(table(found))
    print(json.dumps(found, indent=1))
    if len(arguments) > 1:
        Path(arguments[1]).write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0 if all(one["holds"] for one in found["promises"]) else 1


def summary(
    load: contestants.Load, runs: dict[str, list[contestants.Pace]], ceilings: dict[str, list[float]]
) -> dict[str, Any]:
    rows = {name: row(load, paces, ceilings[name]) for name, paces in runs.items()}
    promises = [
        promise(runs, name, ours, wanted)
        for name, (ours, wanted) in PROMISED.items()
        if name in runs and ours in runs
    ]
    shares = rows["engine, packed"]["ceiling_share"]
    promises.append(
        {
            "against": "ceiling",
            "wanted": PROMISED_CEILING,
            "found": shares,
            "holds": shares >= PROMISED_CEILING,
        }
    )
    return {
        "threads": torch.get_num_threads(),
        "multiply_gflops": [round(one, 1) for one in ceilings["engine, packed"]],
        "programs": rows,
        "promises": promises,
    }


def row(
    load: contestants.Load, paces: Sequence[contestants.Pace], ceilings: Sequence[float]
) -> dict[str, Any]:
    speeds = [pace.tokens_per_second for pace in paces]
    flops = [load.flops_per_token(pace.trained_share) for pace in paces]
    shares = [f * s / c / 1e9 for f, s, c in zip(flops, speeds, ceilings, strict=True)]
    return {
        "tokens_per_second": round(statistics.median(speeds), 1),
        "spread": [round(min(speeds), 1), round(max(speeds), 1)],
        "trained_tokens_per_second": round(statistics.median(speeds) * load.trained_share, 1),
        "peak_bytes": max(pace.peak_bytes for pace in paces),
        "loss": paces[-1].loss,
        "ceiling_share": round(statistics.median(shares), 3),
    }


def promise(runs: dict[str, list[contestants.Pace]], name: str, ours: str, wanted: float) -> dict[str, Any]:
    """Ratios within a round: what slowed one slowed the other."""
    ratios = [a.tokens_per_second / b.tokens_per_second for a, b in zip(runs[ours], runs[name], strict=True)]
    found = statistics.median(ratios)
    return {
        "against": name, "by": ours, "wanted": wanted, "found": round(found, 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)], "holds": found >= wanted,
    }  # fmt: skip


def operator_promise(counts: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Operators dispatched in a step, as a share of the bare loop's."""
    share = counts[name]["operators"] / counts["bare loop"]["operators"]
    return {
        "against": "the bare loop's operators", "by": name, "wanted": PROMISED_OPERATORS, "found": round(share, 3),
        "holds": share <= PROMISED_OPERATORS,
    }  # fmt: skip


class Products:
    """Nothing but the products of a step: every linear layer's own weight once forward and once back, in fp32.

    A layer's weight comes from memory, as in training, and is not what the processor's cache still holds of the last product.
    """

    def __init__(self) -> None:
        shapes = [shape for shape, count in contestants.SHAPE_COUNTS.items() for _ in range(count // LAYERS)]
        self._weights = [torch.randn(*shape) for _ in range(LAYERS) for shape in shapes]
        self._states = {width: torch.randn(PRODUCT_TOKENS, width) for shape in shapes for width in shape}
        self._flops = 4 * PRODUCT_TOKENS * sum(weight.numel() for weight in self._weights)

    def gflops(self) -> float:
        """GFLOP/s, the median of some passes: what training in the same moment cannot exceed."""
        return self._flops / statistics.median(timed(self._pass) for _ in range(PRODUCT_PASSES)) / 1e9

    def _pass(self) -> None:
        for weight in self._weights:
            out, inner = weight.shape
            torch.mm(self._states[inner], weight.t())
            torch.mm(self._states[out], weight)


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{'':24}{'tokens/s':>10}{'spread':>16}{'trained/s':>11}{'peak MiB':>10}{'ceiling':>9}{'loss':>9}"
    ]
    for name, one in found["programs"].items():
        low, high = one["spread"]
        lines.append(
            f"{name:24}{one['tokens_per_second']:>10.1f}{low:>9.1f}-{high:<6.1f}{one['trained_tokens_per_second']:>11.1f}"
            f"{one['peak_bytes'] / 2**20:>10.0f}{one['ceiling_share']:>9.0%}{one['loss']:>9.4f}"
        )
    lines.append(
        f"{'in a step':24}{'operators':>10}{'a layer':>9}{'views':>7}{'MiB made':>10}{'dequantized':>13}{'host reads':>12}"
    )
    for name, one in found["counts"].items():
        lines.append(
            f"{name:24}{one['operators']:>10}{one['operators'] / LAYERS:>9.0f}{one['views']:>7}"
            f"{one['allocated_bytes'] / 2**20:>10.0f}{one['dequantizations']:>13}{one['host_reads']:>12}"
        )
    lines.append("beside these the engine reads loss and gradient norm together, once, at the end of a step")
    for one in found["promises"]:
        sign = "holds" if one["holds"] else "MISSED"
        lines.append(f"against {one['against']}: {one['found']:.2f}, promised {one['wanted']:.2f}: {sign}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
