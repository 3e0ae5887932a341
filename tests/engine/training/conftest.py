"""A program folder of the test's own, one tiny model, and rows of very different lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_engine.config import TrainingConfig
from tests.support import tiny_runs
from tests.support.tiny import make_tiny

MakeConfig = Callable[..., TrainingConfig]


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
    """One layer: most tests look at everything around it."""
    return make_tiny("llama", tmp_path_factory.mktemp("models") / "tiny", num_hidden_layers=1)


@pytest.fixture(scope="package")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("models") / "two")


@pytest.fixture(scope="package")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.data_file(tmp_path_factory.mktemp("data"))


@pytest.fixture
def make_config(model_dir: Path, rows: Path, tmp_path: Path) -> MakeConfig:
    """A quick run on the tiny model; arguments are dotted paths with `__`: `lora__rank=8`."""

    def make(**changes: Any) -> TrainingConfig:
        return tiny_runs.tiny_config(changes.pop("model", model_dir), rows, tmp_path / "runs", **changes)

    return make
