"""Reading and tokenizing a large dataset: against `datasets.map` with the same tokenizer, template and processes, in turns.

`make bench-data`; ROWS=1000000 for a file of about a gigabyte, DATA=file for rows made of real conversations, TEMPLATE=file
for another chat template than the starter's, TOKENIZER=folder for another tokenizer, ALONE=1 without `datasets.map`. Prints seconds by the clock and by the processors, the peak memory of all
processes together, the first look, and the second time (from the cache); the ratio is that of processor time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
ROWS = int(os.environ.get("ROWS", "100000"))
TURNS = int(os.environ.get("TURNS", "2"))
PROCESSES = int(os.environ.get("PROCESSES", str(os.cpu_count() or 1)))
WORDS = (ROOT / "resources" / "help" / "qlora.md").read_text(encoding="utf-8").split()

CLOCK = """
import resource
def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
"""
OURS = (
    CLOCK
    + """
import sys, time
from qlora_engine.config import DataSettings
from qlora_engine import data
from qlora_engine.data.preview import preview
from transformers import AutoTokenizer
path, tokenizer_path, processes = sys.argv[1:4]
settings = DataSettings(path=path)
began = time.perf_counter(); preview(settings); first = time.perf_counter() - began
tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
began, used = time.perf_counter(), cpu()
prepared = data.prepare(settings, tokenizer, seed=1, model_max_length=2048, processes=int(processes))
print(first, time.perf_counter() - began, cpu() - used, len(prepared.train) + len(prepared.held_out))
"""
)
THEIRS = (
    CLOCK
    + """
import sys, time
import datasets
from transformers import AutoTokenizer
path, tokenizer_path, processes = sys.argv[1:4]
tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
def encode(rows):
    texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in rows["messages"]]
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
if __name__ == "__main__":
    began, used = time.perf_counter(), cpu()
    rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=sys.argv[4])
    done = rows.map(encode, batched=True, num_proc=int(processes), remove_columns=rows.column_names)
    print(0, time.perf_counter() - began, cpu() - used, len(done))
"""
)


def write_rows(path: Path, count: int = ROWS) -> None:
    rng = random.Random(3)
    make = _made_up if "DATA" not in os.environ else partial(_joined, _conversations(os.environ["DATA"]))
    with path.open("w", encoding="utf-8") as out:
        for _ in range(count):
            out.write(json.dumps({"messages": make(rng)}, ensure_ascii=False) + "\n")


def _made_up(rng: random.Random) -> list[dict[str, str]]:
    sizes = {"user": rng.randint(10, 40), "assistant": rng.randint(55, 220)}
    return [{"role": role, "content": " ".join(rng.choices(WORDS, k=size))} for role, size in sizes.items()]


def _joined(found: list[list[dict[str, str]]], rng: random.Random) -> list[dict[str, str]]:
    """One to three real conversations as one, so that no two rows are alike."""
    return [turn for talk in rng.sample(found, rng.choice((1, 1, 2, 3))) for turn in talk]


def _conversations(path: str) -> list[list[dict[str, str]]]:
    from qlora_engine.config import DataSettings
    from qlora_engine.data import formats, sources

    settings = DataSettings(path=path)
    store = sources.open_store(settings)
    rows = store.sample(0, len(store))
    detection = formats.detect(rows, settings)
    talks = [formats.read_row(row, 1, detection).messages for row in rows]
    return [[{"role": m.role, "content": m.text} for m in talk if m.role != "system"] for talk in talks]


def run(script: str, *arguments: str, home: Path) -> tuple[list[float], int]:
    """(the numbers that a script prints, the most memory that it and its children held together, in bytes)."""
    environment = {**os.environ, "QLORA_HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    file = home.parent / f"{'ours' if script is OURS else 'theirs'}.py"
    file.write_text(script, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(file), *arguments],
        stdout=subprocess.PIPE,
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


def tokenizer_folder(target: Path) -> str:
    """The starter's tokenizer, with the template of TEMPLATE and its markers."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    from tests.support.starter import starter_folder
    from tests.support.template_tokenizer import MARKER

    tokenizer = AutoTokenizer.from_pretrained(os.environ.get("TOKENIZER") or starter_folder())
    if "TEMPLATE" in os.environ:
        jinja = Path(os.environ["TEMPLATE"]).read_text(encoding="utf-8")
        new = [m for m in dict.fromkeys(MARKER.findall(jinja)) if m not in tokenizer.get_vocab()]
        tokenizer.add_tokens([AddedToken(m, special=m.startswith("<|"), normalized=False) for m in new])
        tokenizer.chat_template = jinja
    tokenizer.save_pretrained(target)
    return str(target)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="qlora-bench-") as name:
        folder = Path(name)
        tokenizer, file = tokenizer_folder(folder / "tokenizer"), folder / "rows.jsonl"
        write_rows(file)
        os.utime(file, (1_000_000_000, 1_000_000_000))
        print(f"{ROWS:,} rows, {file.stat().st_size / 1e6:,.0f} MB, {PROCESSES} processes", flush=True)
        spent: dict[str, float] = {}
        for turn in range(TURNS):
            home = folder / f"home{turn}"
            home.mkdir()
            ours = (str(file), tokenizer, str(PROCESSES))
            show("ours", run(OURS, *ours, home=home), spent)
            show("from the cache", run(OURS, *ours, home=home), {})
            if "ALONE" in os.environ:
                continue
            show("datasets.map", run(THEIRS, *ours, str(folder / f"theirs{turn}"), home=home), spent)
            for done in (home, folder / f"theirs{turn}"):
                shutil.rmtree(done)
        if "ALONE" in os.environ:
            return
        ratio = spent["ours"] / spent["datasets.map"]
        print(f"ours takes {ratio:.2f} of the processor time of datasets.map")


def show(name: str, found: tuple[list[float], int], spent: dict[str, float]) -> None:
    (first, seconds, used, _), peak = found
    spent[name] = spent.get(name, 0.0) + used
    look = f", first look {first:.2f} s" if first else ""
    print(
        f"{name:15} {seconds:8.1f} s, {used:8.1f} s of processors, {peak / 2**20:6.0f} MiB{look}", flush=True
    )


if __name__ == "__main__":
    main()
