"""Every option that should change something measurable does, and changes nothing that it should not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qlora_engine import adapters
from qlora_engine.config import LoraSettings, ModelSettings, QuantizationSettings, all_knobs
from qlora_engine.device import plan_device
from qlora_engine.events import (
    AdaptersAttached,
    CheckpointSaved,
    DatasetPrepared,
    EvaluationFinished,
    Event,
    ModelLoaded,
    Noticed,
    OptimizerBuilt,
    PlanMade,
    SampleAnswered,
    StepFinished,
)
from qlora_engine.models import loading
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import recipe
from qlora_engine.training.steps import HeldOutScore
from tests.engine.training.conftest import MakeConfig
from tests.support import tiny_runs


@dataclass(frozen=True)
class Outcome:
    """A whole run, and what a reader of it can measure."""

    events: list[Event] = field(repr=False)

    def one(self, kind: type[Any]) -> Any:
        (found,) = tiny_runs.of(self.events, kind)
        return found

    @cached_property
    def folder(self) -> RunFolder:
        return RunFolder(tiny_runs.run_dir(self.events))

    @property
    def losses(self) -> list[float]:
        return tiny_runs.losses(self.events)

    @property
    def rates(self) -> list[float]:
        return [e.learning_rate for e in tiny_runs.of(self.events, StepFinished)]

    @property
    def norms(self) -> list[float | None]:
        return [e.grad_norm for e in tiny_runs.of(self.events, StepFinished)]

    @property
    def plan(self) -> PlanMade:
        return self.one(PlanMade)

    @property
    def attached(self) -> AdaptersAttached:
        return self.one(AdaptersAttached)

    @property
    def loaded(self) -> Any:
        return self.one(ModelLoaded).report

    @property
    def data(self) -> Any:
        return self.one(DatasetPrepared).report

    @property
    def optimizer(self) -> OptimizerBuilt:
        return self.one(OptimizerBuilt)

    @property
    def evaluations(self) -> list[EvaluationFinished]:
        return tiny_runs.of(self.events, EvaluationFinished)

    @property
    def samples(self) -> list[tuple[int, str, int]]:
        return [(e.step, e.prompt, e.tokens) for e in tiny_runs.of(self.events, SampleAnswered)]

    def notices(self, code: str) -> list[Noticed]:
        return [e for e in tiny_runs.of(self.events, Noticed) if e.code == code]

    @property
    def checkpoints(self) -> list[tuple[int, str]]:
        return [(e.step, e.reason) for e in tiny_runs.of(self.events, CheckpointSaved)]

    @property
    def kept(self) -> list[str]:
        return [path.name for path in self.folder.checkpoints()]

    @property
    def peak(self) -> int:
        return int(self.folder.record()["measured_peak_bytes"])


See = Callable[[Outcome], Any]


@dataclass(frozen=True)
class Case:
    """Setting `path` to `value` changes what `see` sees. `among` are other settings of both runs."""

    path: str
    value: Any
    see: See
    among: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.path}={self.value}"


def losses(outcome: Outcome) -> list[float]:
    return outcome.losses


def rates(outcome: Outcome) -> list[float]:
    return outcome.rates


CASES = [
    Case("quantization.quant_type", "fp4", lambda o: (o.loaded["quant_type"], o.evaluations[0].loss)),
    Case("quantization.double_quant", False, lambda o: (o.loaded["constants_bytes"], o.evaluations[0].loss)),
    Case("lora.rank", 8, lambda o: o.attached.trainable_parameters),
    Case("lora.alpha", 4.0, losses),
    Case("lora.dropout", 0.5, losses),
    Case("lora.targets", "attention", lambda o: o.attached.target_modules),
    Case("lora.targets", ("q_proj",), lambda o: o.attached.target_modules),
    Case("lora.dtype", "bf16", lambda o: (o.attached.dtype, o.attached.adapter_bytes)),
    Case("lora.rslora", True, lambda o: (o.attached.variant, o.losses[-1])),
    Case("lora.dora", True, lambda o: (o.attached.variant, o.attached.trainable_parameters)),
    Case("lora.init", "gaussian", losses),
    Case("lora.init", "loftq", lambda o: o.evaluations[0].loss),
    Case("data.held_out_fraction", 0.4, lambda o: o.plan.held_out_rows),
    Case("data.max_rows", 10, lambda o: o.plan.train_rows),
    Case("data.seq_len", 40, lambda o: (o.data["truncated_rows"], o.plan.seq_len)),
    Case("data.train_on", "everything", lambda o: o.data["trained_tokens"]),
    Case("data.chat_template", "alpaca", lambda o: o.data["template"]),
    Case("data.system_prompt", "Be brief.", lambda o: o.plan.tokens_per_epoch),
    Case("data.packing", True, lambda o: (o.data["packed_rows"], o.plan.train_rows), {"data.seq_len": 128}),
    Case("training.epochs", 2.0, lambda o: o.plan.total_steps, {"training.max_steps": None, "training.epochs": 1.0}),
    Case("training.max_steps", 3, lambda o: o.plan.total_steps),
    Case("training.learning_rate", 0.02, rates),
    Case("training.warmup_ratio", 0.5, rates),
    Case("training.effective_batch", 8, lambda o: o.plan.steps_per_epoch),
    Case("training.micro_batch", 4, lambda o: (o.plan.micro_batch, o.peak)),
    Case("training.beta1", 0.5, losses),
    Case("training.beta2", 0.9, losses),
    Case("training.epsilon", 1e-2, losses),
    Case("training.weight_decay", 0.9, losses, {"training.learning_rate": 0.1}),
    Case("training.max_grad_norm", 0.001, losses, {"training.optimizer": "adamw_torch_fused"}),
    Case("training.gradient_checkpointing", False, lambda o: o.peak),
    Case("training.loss", "full", lambda o: o.folder.record()["loss_kind"]),
    Case("training.seed", 7, losses),
    Case("training.eval_every_steps", 1, lambda o: [e.step for e in o.evaluations]),
    Case("training.eval_rows", 2, lambda o: o.evaluations[0].trained_tokens),
    Case("training.sample_prompts", ("Hello",), lambda o: o.samples),
    Case("training.sample_tokens", 2, lambda o: o.samples, {"training.sample_prompts": ("Hello",)}),
    Case("training.count_page_moves", True, lambda o: [e.message for e in o.notices("monitor.page_moves")]),
    Case("checkpoint.every_steps", 1, lambda o: [c for c in o.checkpoints if c[1] == "steps"]),
    Case("checkpoint.every_minutes", 1e-6, lambda o: [c for c in o.checkpoints if c[1] == "time"]),
    Case("checkpoint.keep", 1, lambda o: o.kept, {"checkpoint.every_steps": 1}),
    Case("output.name", "named", lambda o: o.folder.run_id),
    *(Case("training.optimizer", name, lambda o: o.optimizer.class_name)
      for name in ("paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "lion_8bit")),
    *(Case("training.schedule", name, rates, {"training.max_steps": 6})
      for name in ("linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")),
]  # fmt: skip

ELSEWHERE = {
    "model.name": "every other test of this folder trains a model of its own",
    "model.revision": "models/test_hub.py",
    "model.device": "models/test_loading.py: which device is planned",
    "model.offline": "models/test_hub.py",
    "model.trust_remote_code": "models/test_loading.py",
    "quantization.compute_dtype": "below: only where the CPU has bf16",
    "data.path": "data/test_sources_and_formats.py",
    "data.split": "data/test_sources_and_formats.py: splits of hub datasets",
    "data.format": "data/test_sources_and_formats.py",
    "data.columns": "data/test_sources_and_formats.py",
    "data.held_out_path": "below",
    "training.early_stopping": "below",
    "training.keep_best": "below",
    "output.runs_dir": "every test of this folder has its own",
}


@pytest.fixture(scope="module")
def known() -> dict[str, Outcome]:
    """Runs that several cases compare with."""
    return {}


def run(make_config: MakeConfig, settings: dict[str, Any]) -> Outcome:
    return Outcome(
        tiny_runs.train(make_config(**{path.replace(".", "__"): v for path, v in settings.items()}))
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_flipping_the_option_changes_what_it_should(
    make_config: MakeConfig, known: dict[str, Outcome], case: Case
) -> None:
    key = repr(sorted(case.among.items()))
    if key not in known:
        known[key] = run(make_config, case.among)
    changed = run(make_config, {**case.among, case.path: case.value})
    assert case.see(changed) != case.see(known[key])


def test_every_option_is_in_the_table_or_named_elsewhere() -> None:
    tested = {case.path for case in CASES}
    assert set(all_knobs()) == tested | set(ELSEWHERE)
    assert not tested & set(ELSEWHERE)


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
    built, parameters = outcome.optimizer, outcome.attached.trainable_parameters
    assert (built.requested, built.class_name) == (name, class_name)
    assert built.eight_bit_bytes == (parameters * bits // 8 if bits < 64 else 0)
    assert parameters * bits / 8 <= built.state_bytes <= parameters * bits / 8 * 1.2 + 3000
    assert built.paged_bytes == 0
    assert bool(built.why_not_paged) == name.startswith("paged")


def test_small_adapters_keep_their_eight_bit_optimizer_in_32_bit(make_config: MakeConfig) -> None:
    built = run(make_config, {"training.optimizer": "adamw_8bit", "lora.rank": 4}).optimizer
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
    assert of("cosine_with_restarts", warmup=0.0) == of("cosine", warmup=0.0)  # one cycle is the default
    assert of("inverse_sqrt")[:3] == [0, 0.5, 1]


def test_clipping_bounds_the_gradient_and_reports_it_unclipped(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_engine.training import optim

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
        lost = weight - dequantize_4bit(base.weight.data, base.weight.quant_state)
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
    assert [e.code for e in tiny_runs.of(outcome.events, Noticed)] == ["training.early_stop", "training.best"]
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
    assert outcome.plan.train_rows == 30
    assert outcome.plan.held_out_rows == 3
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
    assert outcome.plan.compute_dtype == "bfloat16"
    assert outcome.losses != run(make_config, {}).losses
