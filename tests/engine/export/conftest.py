"""Finished tiny runs to export, one of each kind of adapter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_engine.client import InlineEngine
from qlora_engine.events import Event, RunFinished
from qlora_engine.export import source, verify, verify_child
from qlora_engine.jobs import ExportJob
from tests.support import tiny_runs
from tests.support.tiny import make_tiny

Export = Callable[..., Path]
RunOf = Callable[..., Path]


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("QLORA_HOME", str(folder))
    return folder


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, which wait for each other for seconds on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return make_tiny("llama", folder, tie_word_embeddings=True, intermediate_size=128, max_shard_size="100KB")


@pytest.fixture(scope="package")
def run_of(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunOf:
    """`run_of("lora", lora__rank=8)`: the folder of a finished run of that name, trained once."""
    folder, made = tmp_path_factory.mktemp("trained"), {}
    data = tiny_runs.data_file(folder)

    def make(name: str, model: Path = model_dir, **changes: Any) -> Path:
        if name not in made:
            config = tiny_runs.tiny_config(
                model, data, folder / "runs",
                **{"training__max_steps": 12, "training__eval_every_steps": 12, **changes},
                lora__rank=8, lora__alpha=24.0, output__name=name,
            )  # fmt: skip
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("QLORA_HOME", str(folder / "home"))
                made[name] = tiny_runs.finished_run(config)
        return made[name]

    make("lora")  # before any test has patched what training needs: the disk, files, the clock
    return make


def export_events(run: Path, format_: str, out: Path, **options: Any) -> list[Event]:
    return list(InlineEngine().run(ExportJob(str(run), format_, str(out), options)))


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Export without proof unless asked; the folder."""

    def write(run: Path, format_: str, name: str = "out", **options: Any) -> Path:
        events = export_events(run, format_, tmp_path / name, **{"verify": False, **options})
        assert isinstance(events[-1], RunFinished), events[-1]
        return tmp_path / name

    return write


Checks = dict[str, tuple[bool | None, dict[str, Any]]]


def proven(run: Path, out: Path, format_: str) -> Checks:
    """The child's checks of a written export, in this process: name -> (passed, numbers)."""
    details = json.loads((out / "proof.json").read_text())["details"]
    found: Checks = {}

    def tell(name: str, passed: bool | None, detail: str, **numbers: Any) -> None:
        assert detail
        found[name] = passed, numbers

    with torch.no_grad():
        verify_child.check(verify.request_of(source.open_source(str(run)), out, format_, details), tell)
    return found


def failed(checks: Checks) -> list[str]:
    """Those that found something; what could not be run here (llama.cpp) is none of them."""
    return [name for name, (passed, _) in checks.items() if passed is False]
