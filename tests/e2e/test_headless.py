"""The whole program without a window: `qlora starter`, shortened, and its results in the plain libraries alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.starter import starter_folder

pytestmark = [pytest.mark.slow, pytest.mark.starter]

SHORT = (
    "training.max_steps=12",
    "training.eval_every_steps=12",
    "training.end_rows=1",
    "training.eval_rows=8",
    "training.sample_tokens=8",
)
PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, merged = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(merged)
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Remind me to feed the cat at 6 pm."}], add_generation_prompt=True, return_tensors="pt"
)["input_ids"]

def logits(model):
    with torch.no_grad():
        return model.eval()(prompt).logits[0, -1].float()

plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
untouched = logits(plain)
tuned = logits(PeftModel.from_pretrained(plain, adapter))
alone = logits(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
print(json.dumps({
    "learned": float((tuned - untouched).abs().max()),
    "merge_error": float((alone - tuned).abs().max()),
    "first_token": tokenizer.decode(int(alone.argmax())),
    "has_our_code": any(name.split(".")[0] == "qlora_engine" for name in sys.modules),
}))
"""


@dataclass(frozen=True)
class Headless:
    """What one run of the program left: its words and its files."""

    out: str
    err: str
    base: Path
    home: Path

    def path(self, label: str) -> Path:
        found = re.search(rf"^  {label}: +(/.+)$", self.out, re.MULTILINE)
        assert found, self.out
        return Path(found[1])


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Headless:
    home = tmp_path_factory.mktemp("home")
    (home / "models").mkdir()
    base = starter_folder()
    (home / "models" / "starter").symlink_to(base, target_is_directory=True)
    environment = {
        k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "QLORA_ENGINE")
    }
    settings = [part for setting in SHORT for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "qlora_engine.cli.main", "starter", *settings],
        capture_output=True,
        text=True,
        env={**environment, "QLORA_HOME": str(home)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Headless(done.stdout, done.stderr, base, home)


def test_the_held_out_loss_falls_by_far_more_than_a_third(headless: Headless) -> None:
    found = re.search(r"Held-out loss: ([\d.]+) before, ([\d.]+) after", headless.out)
    assert found, headless.out
    before, after = map(float, found.groups())
    assert after < 0.5 * before


def test_a_newcomer_reads_what_happens(headless: Headless) -> None:
    said = [
        "The starter: a small model",
        "Loaded as NF4 with double quantization",
        "Plan: 12 steps of 4 rows",
        "with double quantization, ",
        "Held-out loss before training: ",
        "Answer before training to 'Remind me to polish the boots at half past eight.'",
        "[#...................] step 1/12",
        "Optimizer AdamW keeps ",
        "[####################] step 12/12",
        "Held-out loss at step 12: ",
        "Proving the export in a fresh process",
        "passed: logits equal base + adapter",
    ]
    where = [headless.err.find(words) for words in said]
    assert -1 not in where, dict(zip(said, where, strict=True))
    assert "FAILED" not in headless.err
    assert "\x1b" not in headless.err + headless.out
    assert "Asked:  Remind me to polish the boots at half past eight." in headless.out
    assert "Before: " in headless.out
    assert "After:  " in headless.out


def test_the_results_work_in_the_plain_libraries(headless: Headless, tmp_path: Path) -> None:
    paths = [headless.base, headless.path("Adapter"), headless.path("Merged model")]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["has_our_code"]
    assert found["learned"] > 1
    assert found["merge_error"] < 0.1 * found["learned"]
    assert found["first_token"] == '{"'


def test_the_run_is_in_the_history(headless: Headless) -> None:
    record = json.loads(next((headless.home / "runs").glob("*/run.json")).read_text(encoding="utf-8"))
    assert record["state"] == "finished"
    assert record["load_report"]["quant_type"] == "nf4"
    assert record["load_report"]["is_double_quant"] is True
    assert 0 < record["measured_peak_bytes"] < 2 * record["predicted_peak_bytes"]
