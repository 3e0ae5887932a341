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
    all_knobs,
)
from qlora_engine.device import plan_device
from qlora_engine.events import (
    AdaptersAttached,
    CheckpointSaved,
    DatasetPrepared,
    EndingsCounted,
    EvaluationFinished,
    Event,
    ModelLoaded,
    Noticed,
    OptimizerBuilt,
    PlanMade,
    SampleAnswered,
    StepFinished,
)
from qlora_engine.models import four_bit, loading
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import optim, recipe, schedule
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

    @property
    def endings(self) -> list[tuple[int, int]]:
        return [(e.asked, e.limit) for e in tiny_runs.of(self.events, EndingsCounted)]

    def notices(self, code: str) -> list[Noticed]:
        return [e for e in tiny_runs.of(self.events, Noticed) if e.code == code]

    @property
    def checkpoints(self) -> list[tuple[int, str]]:
        return [(e.step, e.reason) for e in tiny_runs.of(self.events, CheckpointSaved)]

    @property
    def kept(self) -> list[str]:
        return [path.name for path in self.folder.checkpoints()]

    @property
    def fast(self) -> dict[str, Any]:
        """What the fast paths were found to be on the loaded model; test_fast_paths.py counts what each does."""
        return dict(self.folder.record()["fast_paths"])

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
    Case("data.leave_out", "2, 4-9", lambda o: (o.plan.train_rows + o.plan.held_out_rows, o.data["rows_dropped"])),
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
    Case("training.join_rows", False, lambda o: o.fast["join_rows"]),
    Case("training.fused_adapters", False, lambda o: o.fast["fused_adapters"]),
    Case("training.fused_elementwise", False, lambda o: o.fast["fused_elementwise"]),
    Case("training.kept_weights_gib", 0.0, lambda o: (o.fast["kept_bytes"], o.peak)),
    Case("training.seed", 7, losses),
    Case("training.eval_every_steps", 1, lambda o: [e.step for e in o.evaluations]),
    Case("training.eval_rows", 2, lambda o: o.evaluations[0].trained_tokens),
    Case("training.sample_prompts", ("Hello",), lambda o: o.samples),
    Case("training.sample_tokens", 2, lambda o: o.samples, {"training.sample_prompts": ("Hello",)}),
    Case("training.end_rows", 2, lambda o: o.endings, {"training.end_tokens": 16}),
    Case("training.end_tokens", 32, lambda o: o.endings, {"training.end_tokens": 16, "training.end_rows": 1}),
    Case("training.count_page_moves", True, lambda o: [e.message for e in o.notices("monitor.page_moves")]),
    Case("checkpoint.every_steps", 1, lambda o: [c for c in o.checkpoints if c[1] == "steps"]),
    Case("checkpoint.every_minutes", 1e-6, lambda o: [c for c in o.checkpoints if c[1] == "time"]),
    Case("checkpoint.keep", 1, lambda o: o.kept, {"checkpoint.every_steps": 1}),
    Case("output.name", "named", lambda o: o.folder.run_id),
    *(Case("training.optimizer", name, lambda o: o.optimizer.class_name)
      for name in ("paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "lion_8bit")),
    *(Case("training.schedule", name, rates, {"training.max_steps": 6})
      for name in ("linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt")),
    Case("training.schedule_cycles", 3, rates, {"training.max_steps": 6, "training.schedule": "cosine_with_restarts"}),
    Case("training.schedule_power", 1.0, rates, {"training.max_steps": 6, "training.schedule": "polynomial"}),
]  # fmt: skip
"""One line for each option, or more: add yours here when you add a knob. What needs more than a tiny run on the CPU is
named in `ELSEWHERE` with the test that shows it."""

NEVER_RUN = {"pissa"}
"""Choices that are refused, with the reason."""

ELSEWHERE = {
    "model.name": "training/test_options.py::test_checkpointing_and_small_micro_batches_save_memory",
    "model.revision": "models/test_hub.py::test_the_job_downloads_and_tells_the_revision",
    "model.device": "cli/test_bad_input.py::test_a_machine_without_the_gpu_that_was_asked_for",
    "model.offline": "cli/test_bad_input.py::test_an_offline_program_asks_no_hub",
    "model.trust_remote_code": "models/test_loading.py::test_code_that_was_agreed_to_is_run",
    "model.resize_embeddings": "training/test_resizing.py::test_new_rows_are_learned_and_every_form_of_them_is_the_same_model",
    "quantization.compute_dtype": "training/test_options.py::test_the_compute_type_is_that_of_the_whole_forward_pass",
    "quantization.experts": "models/test_experts.py::test_what_was_built_is_reported",
    "quantization.expert_placement": "models/test_experts.py::test_what_was_built_is_reported",
    "lora.experts": "models/test_experts.py::test_adapters_on_experts_learn_a_row_that_attention_at_rank_1_cannot",
    "data.path": "training/test_options.py::test_another_dataset_or_format_gives_other_rows",
    "data.format": "training/test_options.py::test_another_dataset_or_format_gives_other_rows",
    "data.split": "training/test_options.py::test_the_split_of_a_hub_dataset_is_the_one_that_is_read",
    "data.columns": "data/test_sources_and_formats.py::test_columns_can_be_mapped",
    "data.reasoning": "training/test_options.py::test_thoughts_are_trained_or_left_out",
    "data.empty_answers": "training/test_options.py::test_the_end_of_an_empty_answer_is_trained_where_wanted",
    "data.preference": "training/test_options.py::test_what_rows_mean_is_the_choice_of_whoever_trains",
    "data.ignore": "training/test_options.py::test_what_rows_mean_is_the_choice_of_whoever_trains",
    "data.more": "data/test_doctor.py::test_sources_are_mixed_by_weight_each_with_its_own_format_and_share",
    "data.encoding": "data/test_malformed.py::test_what_cannot_be_told_is_refused_with_its_name_or_read_as_said",
    "data.bad_rows": "data/test_doctor.py::test_more_bad_rows_than_allowed_block_the_start_and_the_check_alike",
    "data.overlap": "data/test_doctor.py::test_a_long_text_becomes_rows_that_lose_and_double_nothing",
    "data.tree_paths": "data/test_doctor.py::test_a_message_tree_gives_its_best_path_or_all_of_them",
    "data.held_out_path": "training/test_options.py::test_held_out_data_of_its_own_is_what_is_scored",
    "training.checkpoint_every": "training/test_recomputing.py::test_whatever_is_recomputed_and_wherever_it_waits_the_numbers_are_the_same",
    "training.offload_inputs": "training/test_recomputing.py::test_whatever_is_recomputed_and_wherever_it_waits_the_numbers_are_the_same",
    "training.router_loss": "training/test_router_loss.py::test_the_loss_is_the_one_of_the_class_and_moves_the_adapters",
    "training.early_stopping": "training/test_options.py::test_early_stopping_ends_the_run_when_nothing_gets_better",
    "training.keep_best": "training/test_options.py::test_the_best_is_kept_and_not_the_last",
    "output.tracker": "training/test_trackers.py::test_the_chosen_tracker_gets_every_number_of_the_output_tracker",
    "output.tracker_project": "training/test_trackers.py::test_the_chosen_tracker_gets_every_number_of_the_output_tracker",
    "output.keep_awake": "training/test_trackers.py::test_the_computer_is_kept_awake_while_output_keep_awake_says_so",
    "output.runs_dir": "test_runs.py::test_a_runs_folder_that_cannot_be_made_is_a_user_error",
}
"""Option -> the test of another place that shows it at work, as `file::function` under tests/engine."""


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
    """A new knob fails here until a `Case` shows that it changes something, or `ELSEWHERE` names the test that does."""
    tested = {case.path for case in CASES}
    assert set(all_knobs()) == tested | set(ELSEWHERE)
    assert not tested & set(ELSEWHERE)


@pytest.mark.parametrize(("option", "place"), ELSEWHERE.items(), ids=ELSEWHERE)
def test_the_tests_named_elsewhere_exist(option: str, place: str) -> None:
    file, function = place.split("::")
    text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
    assert f"def {function}(" in text
    assert option.split(".")[1] in text


@pytest.mark.parametrize("path", [p for p, k in all_knobs().items() if k.choices])
def test_every_choice_of_an_option_is_tried(path: str) -> None:
    """A choice that does what another does is a dead one, as cosine with one restart was."""
    if path in ELSEWHERE:
        return
    knob = all_knobs()[path]
    base = {"training.optimizer": "adamw_torch_fused"}.get(path, knob.default)
    tried = {case.value for case in CASES if case.path == path} | {base}
    assert tried >= set(knob.choices or ()) - NEVER_RUN


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


def test_the_split_of_a_hub_dataset_is_the_one_that_is_read(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    rows = {"train": tiny_runs.varied_rows(20), "test": tiny_runs.varied_rows(12)}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(rows[split]))
    read = {s: run(make_config, {"data.path": "some/rows", "data.split": s}).data["rows_read"] for s in rows}
    assert read == {"train": 20, "test": 12}


def trained_tokens(make_config: MakeConfig, folder: Path, row: dict[str, Any], **settings: Any) -> int:
    """Trained tokens of a run over rows like `row`."""
    from tests.support.tiny import write_rows

    path = str(write_rows(folder / "rows.jsonl", [{**row, "instruction": f"Say {n}"} for n in range(12)]))
    changes = {f"data.{key}": value for key, value in settings.items()}
    return int(run(make_config, {"data.path": path, **changes}).data["trained_tokens"])


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
