"""How fast and in how much memory a model of a billion parameters is merged, against the disk's own copy speed.

`make bench-merge`, or `python -m tests.bench.merge_speed [rounds]`. Makes a random model of 2 GB and a rank 16 adapter on
every linear layer in a temporary folder (`TMPDIR` chooses the disk; 6 GB for a moment), merges and copies in turn, both
flushed to the disk, and compares medians. Exit code 1 when a promise is broken.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from qlora_engine.control import Control
from qlora_engine.export import merge, stream
from qlora_engine.export.journal import Journal
from qlora_engine.export.weights import Weights

HIDDEN, INNER, LAYERS, VOCAB, KV = 2048, 5632, 22, 32000, 256
RANK = 16
ROUNDS = 3
PROMISED_SHARE = 0.6
PROMISED_BYTES = 3 << 30
COPY_BYTES = 8 << 20


def main(arguments: list[str]) -> int:
    """Print what was measured; 1 when a promise is broken."""
    rounds = int(arguments[0]) if arguments else ROUNDS
    with tempfile.TemporaryDirectory(prefix="qlora-merge-") as name:
        folder = Path(name)
        base = make_base(folder / "base")
        deltas = make_deltas(base)
        merged, copied, growth, peak = [], [], 0, 0
        for number in range(rounds):
            copied.append(timed(lambda: copy(base.folder, folder / "copy")))
            (folder / "copy").unlink()
            seconds, grown, most = watched(lambda n=number: merge_once(base, deltas, folder / f"out{n}"))  # type: ignore[misc]
            merged.append(seconds)
            growth, peak = max(growth, grown), max(peak, most)
    return told(base, merged, copied, growth, peak)


def told(base: Weights, merged: list[float], copied: list[float], growth: int, peak: int) -> int:
    size = sum(header.nbytes for header in base.headers.values())
    seconds, copy_seconds = statistics.median(merged), statistics.median(copied)
    share = copy_seconds / seconds
    print(
        f"{size / 2e9:.2f} billion parameters, {size / 1e9:.2f} GB in bf16, rank {RANK} on every linear layer"
    )
    print(
        f"copy:  {copy_seconds:.2f} s, {size / copy_seconds / 1e6:.0f} MB/s ({', '.join(f'{s:.2f}' for s in copied)} s)"
    )
    print(
        f"merge: {seconds:.2f} s, {size / seconds / 1e6:.0f} MB/s ({', '.join(f'{s:.2f}' for s in merged)} s)"
    )
    print(f"share of the copy speed: {share:.0%} (promised: {PROMISED_SHARE:.0%})")
    print(
        f"memory: {growth / 2**20:.0f} MiB more while merging, {peak / 2**20:.0f} MiB in all (promised: {PROMISED_BYTES / 2**30:.0f} GiB)"
    )
    return 0 if share >= PROMISED_SHARE and peak < PROMISED_BYTES else 1


def make_base(folder: Path) -> Weights:
    """A random llama of 1.1 billion parameters in two shards."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = dict(shapes())
    half = len(names) // 2
    places = {}
    for number, part in enumerate((list(names)[:half], list(names)[half:]), start=1):
        file = folder / f"model-{number:05}-of-00002.safetensors"
        layout = {name: (torch.bfloat16, names[name]) for name in part}
        with file.open("wb") as out:
            out.write(stream.header_of(layout))
            for name in part:
                out.write(memoryview(torch.randn(names[name]).to(torch.bfloat16).view(torch.uint8).numpy()))
            os.fsync(out.fileno())
        places.update(dict.fromkeys(part, file.name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return Weights.of(folder)


def shapes() -> dict[str, tuple[int, ...]]:
    block = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV, HIDDEN), "self_attn.v_proj": (KV, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
    }  # fmt: skip
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for n in range(LAYERS):
        found |= {f"model.layers.{n}.{name}.weight": shape for name, shape in block.items()}
    return {**found, "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def make_deltas(base: Weights) -> dict[str, merge.Delta]:
    modules = [name.removesuffix(".weight") for name in base.headers if "_proj" in name]
    return {
        module: merge.Delta(
            torch.randn(RANK, base.shape(f"{module}.weight")[1]), torch.randn(base.shape(f"{module}.weight")[0], RANK), 2.0
        )
        for module in modules
    }  # fmt: skip


def merge_once(base: Weights, deltas: dict[str, merge.Delta], out: Path) -> None:
    """As an export writes it: hashed, flushed, marked in the journal."""
    journal = Journal(out, {})
    plan = merge.AsFloats(merge.Merge(base, deltas), torch.bfloat16)
    merge.write_safetensors(plan, base, journal, Control(), lambda *_: None)
    journal.leave(keep=False)


def copy(folder: Path, target: Path) -> None:
    """The same bytes, read and written and flushed."""
    buffer = bytearray(COPY_BYTES)
    with target.open("wb", buffering=0) as out:
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb", buffering=0) as source:
                while count := source.readinto(buffer):
                    out.write(memoryview(buffer)[:count])
            os.fsync(out.fileno())


def timed(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def watched(work: Callable[[], None]) -> tuple[float, int, int]:
    """Seconds, by how much the process's memory grew at the most, and what it then was; looked at every 5 ms."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def look() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=look)
    watcher.start()
    seconds = timed(work)
    done.set()
    watcher.join()
    return seconds, peak - before, peak


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
