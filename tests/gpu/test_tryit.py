"""What only an NVIDIA GPU can confirm of trying a result: adapters switched on one base in 16 bits, and its losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlora_engine.control import Control
from qlora_engine.evaluate import generate
from qlora_engine.evaluate.origin import find_origin
from qlora_engine.evaluate.predictions import predictions_job
from qlora_engine.evaluate.session import ChatModel, load_chat_model
from qlora_engine.events import RunFinished
from qlora_engine.jobs import PredictionsJob
from qlora_engine.runs.record import RunFolder
from tests.support import tiny_runs
from tests.support.tiny import make_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("gpu-try")
    base = make_tiny("llama", folder / "base")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_HOME", str(folder / "home"))
        for name, changes in (
            ("one", {"lora__rank": 4}),
            ("two", {"lora__dora": True}),
            ("three", {"lora__dtype": "bf16"}),
        ):
            config = tiny_runs.tiny_config(
                base,
                tiny_runs.data_file(folder),
                folder / "runs",
                model__device="cuda",
                output__name=name,
                **changes,
            )
            found.append(tiny_runs.finished_run(config))
    return found


def opened(run: Path) -> ChatModel:
    loading = load_chat_model(find_origin(str(run), {}), Control())
    while True:
        try:
            next(loading)
        except StopIteration as end:
            return end.value


def logits(chat: ChatModel, side: str) -> torch.Tensor:
    prompt = generate.prompt_ids(chat.tokenizer, [{"role": "user", "content": "Say water 3"}]).to("cuda")
    with torch.no_grad(), chat.speaking(side) as model:
        return model(prompt).logits.float().cpu()


def test_adapters_switch_on_one_base_as_if_each_was_loaded_alone(runs: list[Path]) -> None:
    chat = opened(runs[0])
    base = logits(chat, "base")
    for run in runs[1:]:
        chat.add_run(RunFolder(run))
        assert torch.equal(logits(chat, run.name), logits(opened(run), "tuned"))
    assert torch.equal(logits(chat, "base"), base)
    for run in runs[1:]:
        chat.voices.remove(run.name)
    assert torch.equal(logits(chat, "tuned"), logits(opened(runs[0]), "tuned"))


def test_held_out_rows_have_the_loss_that_the_training_measured(runs: list[Path]) -> None:
    """Rows one at a time and rows padded to a batch differ by the rounding of 16 bits."""
    end = list(predictions_job(PredictionsJob(str(runs[0]), 2), Control()))[-1]
    assert isinstance(end, RunFinished)
    assert end.result["loss"] == pytest.approx(RunFolder(runs[0]).record()["loss_after"], rel=2e-2)
