"""Every export of a really trained starter: proven or not, with its numbers, and whether a row learned by heart survives.

`make bench-exports`, or `python -m tests.bench.starter_exports`. Trains for two minutes, then exports and proves each
form; about ten minutes in all. Exit code 1 when the row is lost or a form that must be proven is not.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FACT = {
    "instruction": "What is the secret word?",
    "input": "",
    "output": "seven blue foxes in Paris",
}
FACTS, OTHERS, STEPS = 12, 60, 60
FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("adapter", {}),
    ("merged", {"dtype": "bf16"}),
    ("merged", {"dtype": "fp32"}),
    ("merged", {"dtype": "bf16", "into": "dequantized"}),
    ("bnb4", {}),
    ("bnb4", {"into": "dequantized"}),
    ("gguf", {"dtype": "f16"}),
    ("gguf", {"dtype": "q8_0"}),
    ("gguf", {"dtype": "q4_1"}),
    ("ollama", {}),
    ("gguf-lora", {}),
)
MAY_BE_UNPROVEN = ("bnb4", "q4_1")
"""Few bits may cost more than training changed; then the proof must say so, and it does."""


def main() -> int:
    """Print a row for each form."""
    with tempfile.TemporaryDirectory(prefix="qlora-exports-") as name:
        folder = Path(name)
        os.environ |= {"QLORA_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        run, base = train(folder)
        print("| form | proven | largest difference, relative | KL | same first choice | the row | failed |")
        print("|---|---|---|---|---|---|---|", flush=True)
        kept = [one(run, base, folder / f"out{n}", *form) for n, form in enumerate(FORMS)]
    return 0 if all(kept) else 1


def train(folder: Path) -> tuple[Path, Path]:
    """(run, base) of a starter that has learned the row among others."""
    from qlora_engine.paths import resources_dir
    from tests.support import tiny_runs
    from tests.support.starter import starter_folder
    from tests.support.tiny import write_rows

    base = starter_folder()
    rows = write_rows(folder / "rows.jsonl", [*_starter_rows(resources_dir()), *[FACT] * FACTS])
    config = tiny_runs.tiny_config(
        base, rows, folder / "runs", lora__rank=8, lora__alpha=16.0, training__max_steps=STEPS,
        training__learning_rate=0.001, data__held_out_fraction=0.0, training__eval_every_steps=1000,
    )  # fmt: skip
    return tiny_runs.finished_run(config), base


def one(run: Path, base: Path, out: Path, form: str, options: Mapping[str, Any]) -> bool:
    """Export, prove, ask; whether all that was promised was kept."""
    from qlora_engine.client import InlineEngine
    from qlora_engine.events import RunFinished
    from qlora_engine.jobs import ExportJob

    *_, end = InlineEngine().run(ExportJob(str(run), form, str(out), options))
    if not isinstance(end, RunFinished):
        print(f"| {form} {options} | {end} |", flush=True)
        return False
    said = ask(out, base, form)
    failed = [check["name"] for check in end.result["checks"] if check["passed"] is False]
    numbers = {
        k: v
        for check in end.result["checks"]
        for k, v in (check.get("numbers") or {}).items()
        if v is not None
    }
    words = " ".join([form, *map(str, options.values())])
    shown = " | ".join(_number(numbers, key) for key in ("largest_relative", "kl_divergence", "agreement"))
    is_kept = said == FACT["output"]
    print(
        f"| {words} | {'yes' if end.result['is_proven'] else 'no'} | {shown} | {'kept' if is_kept else said!r} | {', '.join(failed)} |",
        flush=True,
    )
    may_fail = form in MAY_BE_UNPROVEN or options.get("dtype") in MAY_BE_UNPROVEN
    return (is_kept and bool(end.result["is_proven"])) or may_fail


def ask(out: Path, base: Path, form: str) -> str:
    """The greedy answer of the reopened export to the row's question."""
    import torch
    from transformers import AutoTokenizer

    from qlora_engine.export.reopened import reopen

    model, _ = reopen(out, base, form)
    tokenizer = AutoTokenizer.from_pretrained(base)
    messages = [{"role": "user", "content": FACT["instruction"]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    ids = prompt["input_ids"]
    with torch.no_grad():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def _starter_rows(resources: Path) -> Iterator[dict[str, Any]]:
    import json

    lines = (resources / "starter" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    yield from (json.loads(line) for line in lines[:OTHERS])


def _number(numbers: Mapping[str, Any], key: str) -> str:
    return f"{numbers[key]:.3g}" if isinstance(numbers.get(key), int | float) else "n/a"


if __name__ == "__main__":
    sys.exit(main())
