"""A chat template that is stuck in C ends its process by name, and only then."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_engine import child, config_io, jobs
from qlora_engine.client import ProcessEngine, died
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.data import parallel, pipeline, sources
from qlora_engine.errors import EngineError
from qlora_engine.events import RunFailed
from qlora_engine.models.tokenizer_file import load_tokenizer
from tests.support.tiny import CHATML, instruction_rows, make_tiny, write_rows

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX timers")

DOUBLED = (
    "{% set ns = namespace(x=[1], y=[1]) %}"
    "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}"
)
"""Comparing lists that hold each other sixty deep takes 2**60 steps of C, which hold Python's lock."""
ROGUE = "{% if 'boom' in messages[0].content %}" + DOUBLED + "{% endif %}" + CHATML


def ran(script: str) -> subprocess.CompletedProcess[str]:
    begin = "from qlora_engine.data import last_resort, sandbox\nlast_resort.arm()\n"
    return subprocess.run(
        [sys.executable, "-P", "-c", begin + script], env=child.environment(), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_STUCK_SECONDS", "1")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    """Rows of which the last one is what the template is stuck at."""
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    rows = [*instruction_rows(12), {"instruction": "boom", "output": "yes"}]
    (tmp_path / "rogue.jinja").write_text(ROGUE, encoding="utf-8")
    found = with_value(TrainingConfig(), "model.name", str(make_tiny("llama", tmp_path / "model")))
    found = with_value(found, "data.path", str(write_rows(tmp_path / "a.jsonl", rows)))
    return with_value(found, "data.chat_template", str(tmp_path / "rogue.jinja"))


def test_the_log_of_a_process_that_was_stuck_names_the_template() -> None:
    done = ran(f"sandbox.run('hello', 'quick', {{}})\nsandbox.run({DOUBLED!r}, 'Bögen/rogue.jinja', {{}})\n")
    assert done.returncode == -signal.SIGPROF
    assert (
        died(done.returncode, done.stderr).message
        == "the chat template Bögen/rogue.jinja runs without an end"
    )


def test_what_a_process_does_after_a_render_is_not_timed() -> None:
    done = ran("import time\nsandbox.run('hello', 'x', {})\nwhile time.process_time() < 3: pass\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_engine_whose_template_is_stuck_ends_with_its_name(config: TrainingConfig) -> None:
    job = jobs.DataReportJob(config_io.to_dict(config))
    end = list(ProcessEngine().run(job))[-1]
    assert isinstance(end, RunFailed)
    assert (end.code, end.message) == ("data.template", "the chat template rogue.jinja runs without an end")
    assert "data.chat_template" in end.hint


@pytest.mark.slow
def test_a_process_that_tokenizes_ends_by_the_name_of_its_template(config: TrainingConfig) -> None:
    tokenizer = load_tokenizer(Path(config.model.name))
    store = sources.open_store(config.data)
    plan = pipeline.plan_of(store, pipeline.Request(config.data, tokenizer, 1))
    with pytest.raises(EngineError, match=r"chat template rogue\.jinja runs without an end"):
        list(parallel.run(plan, store.blocks(5), 2, lambda: None))
