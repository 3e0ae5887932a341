"""What options do, where a change alone does not show it, and what they leave as it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qlora_engine import adapters
from qlora_engine.config import (
    SCHEDULES,
    LoraSettings,
    ModelSettings,
    QuantizationSettings,
    TrainingSettings,
)
from qlora_engine.device import plan_device
from qlora_engine.events import (
    AdaptersAttached,
    Noticed,
    OptimizerBuilt,
    PlanMade,
    SampleAnswered,
)
from qlora_engine.models import four_bit, loading
from qlora_engine.training import optim, recipe, schedule
from qlora_engine.training.steps import HeldOutScore
from tests.engine.training.conftest import MakeConfig
from tests.engine.training.outcome import Outcome, run, trained_tokens
from tests.support import tiny_runs


def test_the_same_settings_give_the_same_run(make_config: MakeConfig) -> None:
    """Without this the table would prove nothing."""
    settings = {"lora.dropout": 0.2, "training.sample_prompts": ("Hello",)}
    one, other = run(make_config, settings), run(make_config, settings)
    assert one.losses == other.losses
    assert one.norms == other.norms
    assert one.samples == other.samples
    weights = [load_file(o.folder.adapter_dir / "adapter_model.safetensors") for o in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(("micro", "checkpointing", "kind"), [(1, True, "chunked"), (4, False, "full")])
def test_what_only_saves_memory_leaves_the_losses_alone(
    make_config: MakeConfig, micro: int, checkpointing: bool, kind: str
) -> None:
    base = run(make_config, {})
    other = run(make_config, {
        "training.micro_batch": micro, "training.gradient_checkpointing": checkpointing, "training.loss": kind,
    })  # fmt: skip
    assert other.losses == pytest.approx(base.losses, rel=1e-5)
    assert other.norms == pytest.approx(base.norms, rel=1e-4)


def test_checkpointing_and_small_micro_batches_save_memory(make_config: MakeConfig, two_layers: Path) -> None:
    longer = {
        "model": two_layers,
        "data.seq_len": 72,
        "training.effective_batch": 8,
        "training.micro_batch": 8,
    }
    plain = run(make_config, {**longer, "training.gradient_checkpointing": False}).peak
    recomputed = run(make_config, longer).peak
    split = run(make_config, {**longer, "training.micro_batch": 1}).peak
    assert split < recomputed < plain


@pytest.mark.parametrize(
    ("name", "class_name", "bits"),
    [
        ("adamw_torch_fused", "AdamW", 64), ("paged_adamw_32bit", "PagedAdamW32bit", 64),
        ("paged_adamw_8bit", "PagedAdamW8bit", 16), ("adamw_8bit", "AdamW8bit", 16), ("lion_8bit", "Lion8bit", 8),
    ],
)  # fmt: skip
def test_what_was_built_is_reported_with_its_class_and_bytes(
    make_config: MakeConfig, name: str, class_name: str, bits: int
) -> None:
    """Rank 64 makes every adapter matrix large enough for 8-bit states (4,096 elements); none is paged on a CPU."""
    outcome = run(
        make_config, {"training.optimizer": name, "lora.rank": 64, "lora.targets": ("up_proj", "down_proj")}
    )
    built, parameters = outcome.one(OptimizerBuilt), outcome.one(AdaptersAttached).trainable_parameters
    assert (built.requested, built.class_name) == (name, class_name)
    assert built.eight_bit_bytes == (parameters * bits // 8 if bits < 64 else 0)
    assert parameters * bits / 8 <= built.state_bytes <= parameters * bits / 8 * 1.2 + 3000
    assert built.paged_bytes == 0
    assert bool(built.why_not_paged) == name.startswith("paged")


def test_small_adapters_keep_their_eight_bit_optimizer_in_32_bit(make_config: MakeConfig) -> None:
    built = run(make_config, {"training.optimizer": "adamw_8bit", "lora.rank": 4}).one(OptimizerBuilt)
    assert (built.class_name, built.eight_bit_bytes) == ("AdamW8bit", 0)


def test_schedules_are_those_of_their_names(make_config: MakeConfig) -> None:
    def of(schedule: str, warmup: float = 0.5) -> list[float]:
        settings = {"training.schedule": schedule, "training.warmup_ratio": warmup, "training.max_steps": 4}
        return [round(rate / 0.01, 6) for rate in run(make_config, settings).rates]

    assert of("constant") == [1, 1, 1, 1]  # warm-up is not part of it, as in transformers
    assert of("constant_with_warmup") == [0, 0.5, 1, 1]
    assert of("linear") == [0, 0.5, 1, 0.5]
    assert of("cosine") == [0, 0.5, 1, 0.5]
    assert of("cosine", warmup=0.0) == [
        1,
        pytest.approx((1 + math.cos(math.pi / 4)) / 2),
        0.5,
        pytest.approx(0.146447),
    ]
    assert of("inverse_sqrt")[:3] == [0, 0.5, 1]


def rates_of(total: int, **settings: Any) -> list[float]:
    """The rate of each step as the optimizer would apply it, without a model."""
    values = TrainingSettings(**{"optimizer": "adamw_torch_fused", "max_steps": total, **settings})
    optimizer = optim.build(values, [torch.nn.Parameter(torch.zeros(2))])
    planned = schedule.plan(values, 100, lambda rows, seed, epoch: list(range(rows)))
    scheduler, found = schedule.learning_rates(values, optimizer, planned), []
    for _ in range(total):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("peak", [1e-2, 2e-4, 1e-7, 1e-9])
def test_schedules_follow_their_formulas_at_every_rate(peak: float) -> None:
    total, warm = 40, 4

    def of(name: str, **settings: Any) -> list[float]:
        return rates_of(total, learning_rate=peak, schedule=name, warmup_ratio=warm / total, **settings)

    done = [(step - warm) / (total - warm) for step in range(warm, total)]
    for cycles in (1, 2, 5):
        wanted = [(1 + math.cos(math.pi * ((p * cycles) % 1))) / 2 for p in done]
        assert of("cosine_with_restarts", schedule_cycles=cycles)[warm:] == pytest.approx(
            [peak * w for w in wanted], abs=peak * 1e-9
        )
    for power in (0.5, 1.0, 2.0, 3.0):
        wanted = [(1 - p) ** power for p in done]
        assert of("polynomial", schedule_power=power)[warm:] == pytest.approx(
            [peak * w for w in wanted], abs=peak * 1e-9
        )
    assert of("polynomial", schedule_power=1.0) == pytest.approx(of("linear"), abs=peak * 1e-9)
    assert of("cosine_with_restarts", schedule_cycles=1) == pytest.approx(of("cosine"), abs=peak * 1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_run_trains_in_its_last_step(name: str, total: int) -> None:
    assert rates_of(total, schedule=name, warmup_ratio=0.5, learning_rate=1e-9)[-1] > 0


def test_a_run_of_one_step_with_warm_up_trains(make_config: MakeConfig) -> None:
    outcome = run(make_config, {"training.max_steps": 1, "training.warmup_ratio": 0.5})
    weights = load_file(outcome.folder.adapter_dir / "adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name)


def test_another_dataset_or_format_gives_other_rows(make_config: MakeConfig, tmp_path: Path) -> None:
    from tests.support.tiny import write_rows

    rows = [{"text": f"Some text {n}", "instruction": f"Say {n}", "output": f"It is {n}"} for n in range(20)]
    other = {"data.path": str(write_rows(tmp_path / "other.jsonl", rows)), "data.max_rows": 12}
    base, changed = run(make_config, {"data.max_rows": 12}), run(make_config, other)
    assert changed.data["sha256"] != base.data["sha256"]
    assert changed.losses != base.losses
    as_text = run(make_config, {**other, "data.format": "text", "data.train_on": "everything"})
    assert as_text.data["format"] == "text"
    assert as_text.data["trained_tokens"] != changed.data["trained_tokens"]


def test_clipping_bounds_the_gradient_and_reports_it_unclipped(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[float] = []
    original = optim.step

    def measuring(optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        applied.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        original(optimizer)

    monkeypatch.setattr(optim, "step", measuring)
    clipped = run(make_config, {"training.max_grad_norm": 0.1})
    assert all(norm is not None and norm > 0.1 for norm in clipped.norms)
    assert applied == pytest.approx([0.1] * 4, rel=1e-3)
    applied.clear()
    free = run(make_config, {"training.max_grad_norm": 0.0})
    assert applied == pytest.approx(free.norms, rel=1e-5)
    assert free.norms[0] == pytest.approx(clipped.norms[0])


def test_rank_alpha_and_rslora_set_the_scaling(model_dir: Path) -> None:
    def scaling(**changes: Any) -> float:
        model, _ = adapters.attach(AutoModelForCausalLM.from_pretrained(model_dir), LoraSettings(**changes))
        found = {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)}
        (value,) = found
        return float(value)

    assert scaling(rank=16, alpha=32.0) == 2.0
    assert scaling(rank=8, alpha=4.0) == 0.5
    assert scaling(rank=16, alpha=32.0, rslora=True) == 8.0


@pytest.mark.parametrize("changes", [{}, {"alpha": 3.0}, {"rslora": True}, {"rank": 64}])
@pytest.mark.parametrize("double_quant", [True, False])
def test_loftq_begins_nearer_to_the_original_weights(
    model_dir: Path, changes: dict[str, Any], double_quant: bool
) -> None:
    """With the scaling the forward pass applies, and as near as the rank allows."""
    plan = plan_device(ModelSettings(device="cpu"))
    loaded = loading.load_quantized(model_dir, QuantizationSettings(double_quant=double_quant), plan)
    original = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    settings = LoraSettings(**{"rank": 8, "init": "loftq", **changes})
    model, _ = adapters.attach(loaded.model, settings, base_path=model_dir)
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        base = module.get_base_layer()
        assert isinstance(base, Linear4bit)
        weight = original.get_submodule(name.removeprefix("base_model.model.")).weight.detach()
        lost = weight - four_bit.dequantized(base.weight.data, base.weight.quant_state)
        delta = module.get_delta_weight("default").detach()
        best = torch.linalg.svdvals(lost)[settings.rank :].square().sum().sqrt()
        assert float((lost - delta).norm()) == pytest.approx(float(best), rel=1e-3, abs=1e-5)
        assert float((lost - delta).norm()) < float(lost.norm())


def test_loftq_without_the_original_weights_is_refused(model_dir: Path) -> None:
    from qlora_engine.errors import EngineError

    with pytest.raises(EngineError, match="16-bit weights"):
        adapters.attach(AutoModelForCausalLM.from_pretrained(model_dir), LoraSettings(init="loftq"))


def test_a_module_that_does_not_exist_is_refused_with_the_closest(make_config: MakeConfig) -> None:
    from qlora_engine.errors import EngineError

    with pytest.raises(EngineError, match="no linear layer named 'q_prj'") as caught:
        run(make_config, {"lora.targets": ("q_prj",)})
    assert caught.value.hint == "did you mean 'q_proj'?"


def scores(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Held-out losses as given, one evaluation after the other."""
    left = iter(values)
    monkeypatch.setattr(recipe, "score", lambda *_: HeldOutScore(next(left), 10, 0.1))


def test_early_stopping_ends_the_run_when_nothing_gets_better(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"training.max_steps": 10, "training.eval_every_steps": 1, "training.early_stopping": 2}
    scores(monkeypatch, 9, 5, 4, 4.5, 4.1, 1)
    outcome = run(make_config, settings)
    assert len(outcome.losses) == 4
    codes = [e.code for e in tiny_runs.of(outcome.events, Noticed)]
    assert codes == ["run.start", "training.early_stop", "training.best"]
    assert outcome.folder.record()["best_step"] == 2
    scores(monkeypatch, 9, 5, 4, 4.5, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6, 4.7)
    assert len(run(make_config, {**settings, "training.early_stopping": None}).losses) == 10


def test_the_best_is_kept_and_not_the_last(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def adapter(outcome: Outcome, folder: str, file: str) -> dict[str, torch.Tensor]:
        return load_file(outcome.folder.path / folder / file)

    def is_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        assert set(one) == set(other)
        return all(torch.equal(one[name], other[name]) for name in one)

    settings = {
        "training.max_steps": 6,
        "training.eval_every_steps": 2,
        "training.sample_prompts": ("Hello",),
    }
    for keep_best, step, loss in ((True, 2, 4.0), (False, 6, 6.0)):
        scores(monkeypatch, 9, 4, 5, 6)
        outcome = run(make_config, {**settings, "training.keep_best": keep_best})
        result = adapter(outcome, "adapter", "adapter_model.safetensors")
        assert is_same(result, adapter(outcome, f"checkpoints/step-{step}", "adapter.safetensors"))
        assert outcome.folder.record()["loss_after"] == loss
        told = {e.step: e.answer for e in tiny_runs.of(outcome.events, SampleAnswered)}
        assert outcome.folder.record()["samples"] == [
            {"prompt": "Hello", "before": told[0], "after": told[step]}
        ]


def test_the_start_is_never_the_best_step_and_a_run_that_made_it_worse_says_so(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, 2.0, 2.5, 3.0)
    outcome = run(make_config, {})
    assert outcome.folder.record()["best_step"] == 2
    (notice,) = [e for e in tiny_runs.of(outcome.events, Noticed) if e.code == "training.worse"]
    assert "2.0000 before training, 2.5000 now" in notice.message


def test_held_out_data_of_its_own_is_what_is_scored(make_config: MakeConfig, tmp_path: Path) -> None:
    from tests.support.tiny import write_rows

    rows = [{"instruction": "Say so", "input": "", "output": "so"}] * 3
    held_out = write_rows(tmp_path / "held.jsonl", rows)
    outcome = run(make_config, {"data.held_out_path": str(held_out)})
    assert outcome.one(PlanMade).train_rows == 30
    assert outcome.one(PlanMade).held_out_rows == 3
    assert outcome.evaluations[0].loss != run(make_config, {}).evaluations[0].loss


def test_without_held_out_data_a_run_trains_and_says_nothing_false(make_config: MakeConfig) -> None:
    outcome = run(make_config, {"data.held_out_fraction": 0.0})
    record = outcome.folder.record()
    assert outcome.evaluations == []
    assert len(outcome.losses) == 4
    assert record["loss_before"] is None
    assert record["loss_after"] is None


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 instructions"
)
def test_the_compute_type_is_that_of_the_whole_forward_pass(make_config: MakeConfig) -> None:
    outcome = run(make_config, {"quantization.compute_dtype": "bf16"})
    assert outcome.one(PlanMade).compute_dtype == "bfloat16"
    assert outcome.losses != run(make_config, {}).losses


def test_the_split_of_a_hub_dataset_is_the_one_that_is_read(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    rows = {"train": tiny_runs.varied_rows(20), "test": tiny_runs.varied_rows(12)}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(rows[split]))
    read = {s: run(make_config, {"data.path": "some/rows", "data.split": s}).data["rows_read"] for s in rows}
    assert read == {"train": 20, "test": 12}


def test_thoughts_are_trained_or_left_out(make_config: MakeConfig, tmp_path: Path) -> None:
    row = {"output": "<think>red or green</think>blue"}
    tokens = [trained_tokens(make_config, tmp_path, row, reasoning=r) for r in ("train", "context", "remove")]
    assert tokens[0] > tokens[1] >= tokens[2]


def test_the_end_of_an_empty_answer_is_trained_where_wanted(make_config: MakeConfig, tmp_path: Path) -> None:
    """data.empty_answers"""
    turns = [("user", "red"), ("assistant", ""), ("user", "blue"), ("assistant", "green")]
    silent = {"messages": [{"role": role, "content": text} for role, text in turns]}
    plain = trained_tokens(make_config, tmp_path, silent, ignore=("instruction",))
    assert (
        trained_tokens(make_config, tmp_path, silent, empty_answers="train", ignore=("instruction",)) > plain
    )


def test_what_rows_mean_is_the_choice_of_whoever_trains(make_config: MakeConfig, tmp_path: Path) -> None:
    """data.preference, data.ignore."""
    from qlora_engine.errors import EngineError

    pair = {"prompt": "Say so", "chosen": "green", "rejected": "red"}
    with pytest.raises(EngineError):
        trained_tokens(make_config, tmp_path, pair, ignore=("instruction",))
    assert trained_tokens(make_config, tmp_path, pair, preference="chosen", ignore=("instruction",)) > 0
    weighted = {"output": "green", "images": ["a.png"]}
    with pytest.raises(EngineError):
        trained_tokens(make_config, tmp_path, weighted)
    assert trained_tokens(make_config, tmp_path, weighted, ignore=("images",)) > 0
