"""All experts of a block in one product: the numbers of one expert after the other, in few operations, and given up first."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from qlora_engine.config import LoraSettings, TrainingConfig, TrainingSettings, with_value
from qlora_engine.memory import estimate, experts
from qlora_engine.memory.tracker import LiveBytes
from qlora_engine.models import known, spec
from qlora_engine.models.experts import grouped
from qlora_engine.models.experts.host import keep_on_host
from qlora_engine.models.experts.stack import Stacked4bit, quantize, stacks_of
from qlora_engine.training import loss, recovery
from qlora_engine.training.checkpoint import TrainState
from qlora_engine.training.fast import install, segments
from tests.support.fast_models import LENGTHS, furthest, load, rows, step
from tests.support.step_counts import Counts, StepCounts
from tests.support.tiny import make_tiny
from tests.support.tiny_experts import MIXTURES

OFF = TrainingSettings(
    join_rows=False, fused_adapters=False, fused_elementwise=False, kept_weights_gib=0.0, group_experts="off"
)
ON = replace(OFF, group_experts="on")
EVERYWHERE = LoraSettings(rank=4, alpha=8.0, experts=True)
GROUPED = [kind for kind in MIXTURES if kind != "llama4_text"]
MANY = {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 64}


def installed(model: Any, settings: TrainingSettings, *, spare: int = 1 << 40) -> install.FastPaths:
    return install.install(model, settings, rows(), device="cpu", spare_bytes=spare)


@pytest.mark.parametrize("lora", [EVERYWHERE, LoraSettings(rank=4)], ids=["adapted", "frozen"])
@pytest.mark.parametrize("kind", GROUPED)
def test_losses_and_gradients_are_those_of_one_expert_after_the_other(
    tmp_path: Path, kind: str, lora: LoraSettings
) -> None:
    """With every faster way beside it, and without."""
    folder = make_tiny(kind, tmp_path / "model", **MIXTURES[kind])
    wanted_loss, wanted = step(load(folder, lora), install.FastPaths())
    for settings in (ON, TrainingSettings(group_experts="on")):
        model = load(folder, lora, is_checkpointed=settings is not ON)
        fast = installed(model, settings)
        assert "group_experts" not in fast.why_not
        assert fast.grouped_bytes
        found_loss, found = step(model, fast)
        assert found_loss == pytest.approx(wanted_loss, rel=1e-4)
        assert furthest(found, wanted) < 1e-4


def test_what_transformers_does_not_group_goes_one_by_one_and_says_so(tmp_path: Path) -> None:
    folder = make_tiny("llama4_text", tmp_path / "llama4", **MIXTURES["llama4_text"])
    assert "transformers" in installed(load(folder), ON).why_not["group_experts"]
    dense = load(make_tiny("llama", tmp_path / "llama"))
    assert "no experts" in installed(dense, ON).why_not["group_experts"]
    assert installed(dense, replace(ON, group_experts="auto")).why_not == {}, "nobody asked"


@pytest.mark.parametrize("is_double", [True, False])
@pytest.mark.parametrize("shape", [(3, 64, 192), (5, 96, 320), (2, 9, 11)])
def test_all_experts_dequantized_together_have_the_bits_of_each(
    shape: tuple[int, int, int], is_double: bool
) -> None:
    sizes = torch.arange(1, shape[0] + 1).view(-1, 1, 1)
    weights = sizes * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    stack = quantize(weights, torch.float32, "nf4", is_double)
    assert torch.equal(stack.dequantized(), torch.stack([stack.expert(n) for n in range(shape[0])]))


def test_experts_that_wait_on_the_host_are_fetched_for_it(tmp_path: Path) -> None:
    folder = make_tiny("qwen3_moe", tmp_path / "model", **MIXTURES["qwen3_moe"])
    results = []
    for is_away in (False, True):
        model = load(folder, EVERYWHERE)
        place = keep_on_host(model, torch.device("cpu")) if is_away else None
        fast = installed(model, ON)
        results.append(step(model, fast)[0])
        assert fast.grouped_bytes
        assert place is None or place.fetched
    assert results[0] == results[1]


def counted(model: Any, fast: install.FastPaths) -> Counts:
    batch = fast.batch(rows(), 0)
    with StepCounts() as counter, segments.running(batch):
        loss.summed_loss(model, batch).backward()
    return counter.counts()


def test_a_step_takes_few_operations_and_reads_nothing_from_the_device(tmp_path: Path) -> None:
    """What a GPU feels of it, with 32 experts a block."""
    folder = make_tiny("qwen3_moe", tmp_path / "model", **MANY)
    found = []
    for settings in (OFF, ON):
        model = load(folder, EVERYWHERE)
        found.append(counted(model, installed(model, settings)))
    one_by_one, in_groups = found
    assert in_groups.operators < one_by_one.operators / 4
    assert in_groups.host_reads < one_by_one.host_reads
    assert not [line for line in in_groups.read_by if "experts" in line or "moe" in line]


def test_a_model_that_answers_dequantizes_only_the_experts_it_reaches(tmp_path: Path) -> None:
    model = load(make_tiny("qwen3_moe", tmp_path / "model", **MANY))
    assert installed(model, ON).grouped_bytes
    reached: set[tuple[int, int]] = set()
    for stack in stacks_of(model).values():
        stack.on_dequantize = lambda found, index: reached.add((id(found), index))
    with torch.no_grad():
        model(input_ids=torch.tensor([[7]]))
    assert len(reached) == 2 * 2 * MANY["num_experts_per_tok"], "a token, two stacks in each of two blocks"
    model(input_ids=torch.tensor([[7]]))
    assert len(reached) == 2 * 2 * MANY["num_experts"], (
        "with gradients all of them, as a trial of a few tokens must show it"
    )


def test_a_run_takes_no_more_than_the_estimate_says_and_gives_it_up_first(tmp_path: Path) -> None:
    folder = make_tiny("qwen3_moe", tmp_path / "model", **MANY)
    peaks = []
    for settings in (OFF, ON):
        model = load(folder, is_checkpointed=True)
        fast = installed(model, settings)
        batch = fast.batch(rows(), 0)
        with LiveBytes(model.parameters()) as live, segments.running(batch):
            loss.summed_loss(model, batch).backward()
        peaks.append(live.peak_bytes)
    allowed = estimate.grouped_experts_bytes(
        spec.facts_of_folder(folder), TrainingConfig(training=ON), "cpu", len(LENGTHS) * max(LENGTHS)
    )
    largest = max(4 * stack.weights for stack in stacks_of(model).values())
    assert fast.grouped_bytes == largest
    assert largest / 2 < peaks[1] - peaks[0] <= allowed
    state = TrainState(micro_batch=2)
    parts = SimpleNamespace(fast=fast, model=model)
    assert "one by one" in str(recovery._step_down(parts, state))
    assert state.reliefs == [recovery.GROUPED]
    assert not any(isinstance(vars(m).get("forward"), grouped.Grouped) for m in grouped.modules_of(model))
    assert recovery._step_down(parts, state) == "micro-batch 2 -> 1, the effective batch stays the same"


def test_the_estimate_promises_nothing_for_types_that_transformers_does_not_group() -> None:
    """Read in its own source: classes of experts with parameters, and without its switch."""
    written = re.compile(r"((?:@[^\n]*\n)*)class \w*Experts\(nn\.Module\):(.*?)\n(?:class|def|@)", re.DOTALL)
    models = Path(transformers.__file__).parent / "models"
    found = {
        file.parent.name
        for file in models.glob("*/modeling_*.py")
        for switches, body in written.findall(file.read_text(encoding="utf-8"))
        if "use_experts_implementation" not in switches and "nn.Parameter" in body
    }
    assert "llama4" in found <= experts.ONE_BY_ONE
    scout = known.find("llama-4-scout")
    assert scout is not None
    assert experts.grouped_bytes(scout.facts(), 100, 2) == 0
    assert experts.grouped_bytes(replace(scout.facts(), model_type="qwen3_moe"), 100, 2) > 0


def test_it_is_left_out_where_there_is_no_room(tmp_path: Path) -> None:
    model = load(make_tiny("qwen3_moe", tmp_path / "model", **MANY))
    size = grouped.needed_bytes(model)
    assert installed(model, ON, spare=size).grouped_bytes == size
    assert "memory" in installed(load(tmp_path / "model"), ON, spare=size - 1).why_not["group_experts"]


def test_the_estimate_counts_it_where_a_run_would_do_it(tmp_path: Path) -> None:
    folder = make_tiny("qwen3_moe", tmp_path / "model", **MANY)
    facts = spec.facts_of_folder(folder)

    def counted_for(device: str, **changes: Any) -> int:
        """As `TrainingConfig` has it but for these options, by their names in a job file with `__` for the dot."""
        config = TrainingConfig()
        for name, value in changes.items():
            config = with_value(config, name.replace("__", "."), value)
        found = estimate.estimate(facts, config, seq_len=64, micro_batch=2, device=device, wants_advice=False)
        return int(found.to_json()["grouped_experts_bytes"])

    assert counted_for("cuda") > 0
    assert counted_for("cpu") == 0
    assert counted_for("cpu", training__group_experts="on") == 2 * counted_for("cuda"), "fp32"
    assert counted_for("cuda", training__group_experts="off") == 0
    assert counted_for("cuda", quantization__compute_dtype="fp16") == 0
    assert counted_for("cuda", quantization__experts="16bit") == 0


def test_a_wrong_product_is_found_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(make_tiny("qwen3_moe", tmp_path / "model", **MANY))
    whole = Stacked4bit.dequantized
    monkeypatch.setattr(Stacked4bit, "dequantized", lambda stack: whole(stack).roll(1, 0))
    fast = installed(model, ON)
    assert "differ" in fast.why_not["group_experts"]
    assert not fast.grouped_bytes
