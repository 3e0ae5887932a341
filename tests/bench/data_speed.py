"""Reading and tokenizing a large dataset: against `datasets.map` with the same tokenizer, template and processes, in turns.

`make bench-data`; ROWS=1000000 for a file of about a gigabyte. Prints seconds, peak memory of all processes together, the
first look, and the second time (from the cache).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
ROWS = int(os.environ.get("ROWS", "100000"))
TURNS = int(os.environ.get("TURNS", "2"))
PROCESSES = int(os.environ.get("PROCESSES", str(os.cpu_count() or 1)))
WORDS = (ROOT / "resources" / "help" / "qlora.md").read_text(encoding="utf-8").split()

OURS = """
import sys, time
from qlora_engine.config import DataSettings
from qlora_engine import data
from qlora_engine.data.preview import preview
from transformers import AutoTokenizer
path, tokenizer_path, processes = sys.argv[1:4]
settings = DataSettings(path=path)
began = time.perf_counter(); preview(settings); first = time.perf_counter() - began
tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
began = time.perf_counter()
prepared = data.prepare(settings, tokenizer, seed=1, model_max_length=2048, processes=int(processes))
print(first, time.perf_counter() - began, len(prepared.train) + len(prepared.held_out))
"""
THEIRS = """
import sys, time
import datasets
from transformers import AutoTokenizer
path, tokenizer_path, processes = sys.argv[1:4]
tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
def encode(rows):
    texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in rows["messages"]]
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
if __name__ == "__main__":
    began = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=sys.argv[4])
    done = rows.map(encode, batched=True, num_proc=int(processes), remove_columns=rows.column_names)
    print(0, time.perf_counter() - began, len(done))
"""


def write_rows(path: Path) -> None:
    rng = random.Random(3)
    with path.open("w", encoding="utf-8") as out:
        for _ in range(ROWS):
            turns = []
            for role, most in (("user", 40), ("assistant", 220)):
                turns.append(
                    {"role": role, "content": " ".join(rng.choices(WORDS, k=rng.randint(most // 4, most)))}
                )
            out.write(json.dumps({"messages": turns}) + "\n")


def run(script: str, *arguments: str, home: Path) -> tuple[list[float], int]:
    """(the numbers that a script prints, the most memory that it and its children held together, in bytes)."""
    environment = {**os.environ, "QLORA_HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    file = home.parent / f"{'ours' if script is OURS else 'theirs'}.py"
    file.write_text(script, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(file), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    peaks = [0]
    threading.Thread(target=_watch, args=(process.pid, peaks), daemon=True).start()
    out, _ = process.communicate()
    return [float(word) for word in out.split()], peaks[0]


def _watch(pid: int, peaks: list[int]) -> None:
    """Unique memory of the whole family, looked at five times a second."""
    try:
        top = psutil.Process(pid)
        while True:
            peaks[0] = max(peaks[0], sum(_bytes(p) for p in (top, *top.children(recursive=True))))
            time.sleep(0.2)
    except psutil.Error:
        return


def _bytes(process: psutil.Process) -> int:
    try:
        return int(
            process.memory_full_info().pss
            if hasattr(process.memory_full_info(), "pss")
            else process.memory_info().rss
        )
    except psutil.Error:
        return 0


def tokenizer_folder() -> str:
    from qlora_engine.control import Control
    from qlora_engine.models import prepare

    def quiet(*_: Any) -> None:
        return None

    return str(prepare.ensure_ready("starter", None, False, Control(), quiet))


def main() -> None:
    tokenizer = os.environ.get("TOKENIZER") or tokenizer_folder()
    with tempfile.TemporaryDirectory(prefix="qlora-bench-") as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file)
        os.utime(file, (1_000_000_000, 1_000_000_000))
        print(f"{ROWS:,} rows, {file.stat().st_size / 1e6:,.0f} MB, {PROCESSES} processes")
        totals = {"ours": 0.0, "datasets.map": 0.0}
        for turn in range(TURNS):
            home = Path(folder) / f"home{turn}"
            home.mkdir()
            (first, seconds, _), peak = run(OURS, str(file), tokenizer, str(PROCESSES), home=home)
            totals["ours"] += seconds
            print(
                f"ours          {seconds:8.1f} s, {peak / 2**20:6.0f} MiB, first look {first:.2f} s",
                flush=True,
            )
            (_, again, _), _ = run(OURS, str(file), tokenizer, str(PROCESSES), home=home)
            print(f"from cache    {again:8.2f} s", flush=True)
            cache = str(Path(folder) / f"theirs{turn}")
            (_, seconds, _), peak = run(THEIRS, str(file), tokenizer, str(PROCESSES), cache, home=home)
            totals["datasets.map"] += seconds
            print(f"datasets.map  {seconds:8.1f} s, {peak / 2**20:6.0f} MiB", flush=True)
        print(f"ours takes {totals['ours'] / totals['datasets.map']:.2f} of the time of datasets.map")


if __name__ == "__main__":
    main()
