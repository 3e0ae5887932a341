"""Adapters of several runs on one loaded base: the same as each loaded alone, and the base as without any."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from qlora_engine.config import QuantizationSettings
from qlora_engine.control import Control
from qlora_engine.device import plan_device
from qlora_engine.errors import EngineError
from qlora_engine.evaluate import generate
from qlora_engine.evaluate.origin import find_origin
from qlora_engine.evaluate.session import ChatModel, load_chat_model
from qlora_engine.events import AnswerFinished, Noticed, SessionReady, SidesChanged
from qlora_engine.models import loading
from qlora_engine.runs.record import RunFolder
from tests.engine.evaluate.test_chat import QUESTION, Talk, returned
from tests.support import tiny_runs
from tests.support.run_folders import seal_adapter

KINDS: dict[str, dict[str, Any]] = {
    "v1.5": {"lora__rank": 8, "lora__targets": ("q_proj", "down_proj")},  # a dot in the name, other targets
    "rslora": {"lora__rank": 2, "lora__rslora": True, "lora__targets": "attention"},
    "dora": {"lora__dora": True, "lora__rank": 3},
    "loftq": {"lora__init": "loftq", "lora__rank": 4},
    "halves": {"lora__dtype": "bf16", "lora__rank": 4},
}


@pytest.fixture(scope="module")
def runs(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each kind, on one base."""
    folder = tmp_path_factory.mktemp("kinds")
    data = tiny_runs.data_file(folder)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_HOME", str(folder / "home"))
        for name, changes in KINDS.items():
            config = tiny_runs.tiny_config(
                model_dir, data, folder / "runs", training__max_steps=2, training__learning_rate=0.05,
                output__name=name, **changes,
            )  # fmt: skip
            found[name] = tiny_runs.finished_run(config)
    return found


def open_chat(run: Path) -> ChatModel:
    return returned(load_chat_model(find_origin(str(run), {"device": "cpu"}), Control()))


@pytest.fixture
def chat(trained: Path) -> ChatModel:
    return open_chat(trained)


def logits(chat: ChatModel, side: str) -> torch.Tensor:
    prompt = generate.prompt_ids(chat.tokenizer, QUESTION)
    with torch.no_grad(), chat.speaking(side) as model:
        return model(prompt).logits.clone()


def plain_logits(model_dir: Path, adapter: Path | None) -> torch.Tensor:
    """Of a base loaded for this adapter alone, with PEFT's own loading."""
    from qlora_engine.config import ModelSettings

    plan = plan_device(ModelSettings(device="cpu"), QuantizationSettings().compute_dtype)
    base = loading.load_quantized(model_dir, QuantizationSettings(), plan)
    model = base.model.eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        return model(generate.prompt_ids(base.tokenizer, QUESTION)).logits


def test_every_run_speaks_bit_for_bit_as_when_it_is_loaded_alone(
    chat: ChatModel, runs: dict[str, Path], trained: Path, model_dir: Path
) -> None:
    expected = {"base": plain_logits(model_dir, None), "tuned": plain_logits(model_dir, trained / "adapter")}
    expected |= {name: logits(open_chat(run), "tuned") for name, run in runs.items()}
    assert torch.equal(expected["dora"], plain_logits(model_dir, runs["dora"] / "adapter"))
    for name, run in runs.items():
        assert chat.add_run(RunFolder(run)) == name
    for _ in range(2):
        for side in ("tuned", *runs, "base"):
            assert torch.equal(logits(chat, side), expected[side]), side
    others = [side for side in expected if side != "base"]
    assert all(float((expected[side] - expected["base"]).abs().max()) > 1e-4 for side in others)


def test_taking_adapters_off_leaves_the_others_and_in_the_end_the_bare_base(
    chat: ChatModel, runs: dict[str, Path]
) -> None:
    base, tuned = logits(chat, "base"), logits(chat, "tuned")
    for name in ("rslora", "dora"):
        chat.add_run(RunFolder(runs[name]))
    rslora = logits(chat, "rslora")
    chat.voices.remove("dora")
    assert chat.sides == ("base", "tuned", "rslora")
    assert torch.equal(logits(chat, "tuned"), tuned)
    chat.voices.remove("tuned")
    assert torch.equal(logits(chat, "rslora"), rslora)
    chat.voices.remove("rslora")
    with chat.speaking("base") as model:
        assert not any("lora_" in name for name, _ in model.named_parameters())
    assert torch.equal(logits(chat, "base"), base)
    assert chat.add_run(RunFolder(runs["rslora"])) == "rslora"
    assert torch.equal(logits(chat, "rslora"), rslora)


def test_a_run_that_is_there_already_is_not_put_on_again(chat: ChatModel, trained: Path) -> None:
    assert chat.add_run(RunFolder(trained)) == "tuned"
    assert chat.sides == ("base", "tuned")


def test_a_run_that_is_not_finished_joins_with_its_checkpoint(
    chat: ChatModel, runs: dict[str, Path], tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(runs["dora"], stopped)
    shutil.rmtree(stopped / "adapter")
    chat.add_run(RunFolder(stopped))
    assert chat.facts["voices"]["stopped"]["adapter_step"] == 2
    assert torch.equal(logits(chat, "stopped"), logits(open_chat(runs["dora"]), "tuned"))


@pytest.fixture
def other(runs: dict[str, Path], tmp_path: Path) -> Iterator[Any]:
    """A copy of a run whose record the test changes."""
    run = tmp_path / "other"
    shutil.copytree(runs["rslora"], run)

    def change(table: str, **values: Any) -> Path:
        record = RunFolder(run).record()
        record[table] |= values
        RunFolder(run).write_record(record)
        return run

    return change


@pytest.mark.parametrize(
    ("table", "values", "words"),
    [
        ("load_report", {"is_double_quant": False}, "NF4 without double quantization, and the loaded base is NF4 with"),
        ("load_report", {"quant_type": "fp4"}, "FP4 with double quantization, and the loaded base is NF4 with"),
        ("model", {"fingerprint": {"model.safetensors": "0" * 64}}, "another base: its weights have hash"),
        ("model", {"fingerprint": {}}, "has not loaded a model yet"),
    ],
)  # fmt: skip
def test_another_base_is_refused_with_both_figures(
    chat: ChatModel, other: Any, table: str, values: dict[str, Any], words: str
) -> None:
    before = logits(chat, "tuned")
    with pytest.raises(EngineError) as refused:
        chat.add_run(RunFolder(other(table, **values)))
    assert refused.value.code == "chat.other_base"
    assert words in refused.value.message
    assert chat.sides == ("base", "tuned")
    assert torch.equal(logits(chat, "tuned"), before)


@pytest.mark.parametrize(
    ("change", "code"),
    [({"init_lora_weights": "pissa"}, "chat.changed_base"), ({"r": 5}, "chat.adapter")],
)
def test_an_adapter_that_cannot_be_put_on_leaves_no_trace(
    chat: ChatModel, other: Any, change: dict[str, Any], code: str
) -> None:
    run = other("model")
    file = run / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    seal_adapter(run)
    before = logits(chat, "tuned")
    with pytest.raises(EngineError) as refused:
        chat.add_run(RunFolder(run))
    assert refused.value.code == code
    assert chat.sides == ("base", "tuned")
    assert torch.equal(logits(chat, "tuned"), before)


def test_the_chat_adds_asks_and_takes_off_by_command(trained: Path, runs: dict[str, Path]) -> None:
    talk = Talk(trained)
    ready = talk.until(SessionReady)
    assert list(ready.facts["voices"]) == ["base", "tuned"]  # type: ignore[attr-defined]
    for command in (
        {"command": "add_adapter", "run_dir": str(runs["v1.5"])},
        {"command": "add_adapter", "run_dir": "nowhere"},
        {"command": "remove_adapter", "side": "base"},
    ):
        talk.engine.send(command)
    changed = talk.until(SidesChanged)
    assert changed.facts["sides"] == ["base", "tuned", "v1.5"]  # type: ignore[attr-defined]
    assert talk.until(Noticed).code == "run.missing"  # type: ignore[attr-defined]
    talk.until(SidesChanged)
    assert talk.until(Noticed).code == "chat.side"  # type: ignore[attr-defined]
    talk.until(SidesChanged)
    tuned = talk.answer()
    talk.ask(3)
    found = [talk.until(AnswerFinished) for _ in range(3)]
    assert [e.side for e in found] == ["base", "tuned", "v1.5"]  # type: ignore[attr-defined]
    assert found[1].text == tuned.text  # type: ignore[attr-defined]
    talk.engine.send({"command": "remove_adapter", "side": "v1.5"})
    assert talk.until(SidesChanged).facts["sides"] == ["base", "tuned"]  # type: ignore[attr-defined]
    talk.ask(4, sides=["v1.5"])
    assert talk.until(Noticed).code == "chat.side"  # type: ignore[attr-defined]
    talk.end()


def test_a_plain_model_takes_runs_of_its_base(model_dir: Path, runs: dict[str, Path]) -> None:
    chat = returned(load_chat_model(find_origin(str(model_dir), {"device": "cpu"}), Control()))
    assert chat.sides == ("base",)
    assert chat.add_run(RunFolder(runs["dora"])) == "dora"
    assert torch.equal(logits(chat, "dora"), logits(open_chat(runs["dora"]), "tuned"))
