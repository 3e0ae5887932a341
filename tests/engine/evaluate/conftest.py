"""One finished tiny run, trained until it gives one short answer to everything, and ends its turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import tiny_runs
from tests.support.tiny import make_tiny, write_rows


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, which wait for each other for seconds on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="package")
def trained(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that answers `water plants fox dog`."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_HOME", str(folder / "home"))
        rows = [{**row, "output": "water plants fox dog"} for row in tiny_runs.varied_rows(30)]
        config = tiny_runs.tiny_config(
            model_dir,
            write_rows(folder / "rows.jsonl", rows),
            folder / "runs",
            lora__rank=16,
            training__max_steps=60,
            training__learning_rate=0.01,
            training__eval_every_steps=60,
            training__keep_best=False,
            output__name="trained",
        )
        return tiny_runs.finished_run(config)
