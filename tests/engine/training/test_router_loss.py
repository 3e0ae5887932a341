"""The routers' auxiliary loss: off, or exactly as the class computes it; said either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_engine.data import batches
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.events import Event, Noticed
from qlora_engine.training import loss, router_loss
from tests.support import tiny_runs
from tests.support.tiny import make_tiny, tiny_config
from tests.support.tiny_experts import MIXTURES

ROWS = [TokenRow(list(range(5, 5 + n)), [False] * 3 + [True] * (n - 3), 0, lengths=(n,)) for n in (14, 9)]


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("way", ["chunked", "full"])
def test_it_is_what_the_class_adds_to_its_own_loss(kind: str, way: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        tiny_config(kind, **MIXTURES[kind], router_aux_loss_coef=0.5)
    ).eval()
    batch = batches.collate(ROWS, 0)
    found = router_loss.of_class(model)
    assert found is not None
    summed, extra = loss.loss_with_router(model, batch, found, kind=way)
    with torch.no_grad():
        theirs = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels, output_router_logits=True
        )  # fmt: skip
    trained = batch.trained
    assert float(((summed + extra) / trained).detach()) == pytest.approx(float(theirs.loss), rel=1e-5)
    alone = loss.summed_loss(model, batch, kind=way)
    assert float(summed.detach()) == pytest.approx(float(alone.detach()), rel=1e-6)


def test_the_loss_is_the_one_of_the_class_and_moves_the_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With recomputed activations too; the loss that is shown stays the one of the text."""
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    model = make_tiny("qwen3_moe", tmp_path / "moe", **MIXTURES["qwen3_moe"], router_aux_loss_coef=2.0)

    def run(**changes: Any) -> list[Event]:
        config = tiny_runs.tiny_config(
            model, tiny_runs.data_file(tmp_path), tmp_path / "runs", training__max_steps=4, **changes
        )
        return tiny_runs.train(config)

    off, on = run(), run(training__router_loss="class")
    assert tiny_runs.losses(off)[0] == pytest.approx(tiny_runs.losses(on)[0], rel=1e-6)
    assert tiny_runs.losses(off)[-1] != pytest.approx(tiny_runs.losses(on)[-1], rel=1e-6)
    words = [
        next(e.message for e in one if isinstance(e, Noticed) and e.code == "router.loss")
        for one in (off, on)
    ]
    assert "weighs with 2, is off" in words[0]
    assert "is added with 2" in words[1]


def test_a_class_without_one_is_said() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    found, said = router_loss.chosen(model, "class", has_experts=False)
    assert found is None
    assert [e.code for e in said if isinstance(e, Noticed)] == ["router.none"]
