"""Every option that should change something measurable does: the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.config import (
    all_knobs,
)
from qlora_engine.events import (
    AdaptersAttached,
    OptimizerBuilt,
    PlanMade,
)
from tests.engine.training.conftest import MakeConfig
from tests.engine.training.outcome import Outcome, run

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
    Case("lora.rank", 8, lambda o: o.one(AdaptersAttached).trainable_parameters),
    Case("lora.alpha", 4.0, losses),
    Case("lora.dropout", 0.5, losses),
    Case("lora.targets", "attention", lambda o: o.one(AdaptersAttached).target_modules),
    Case("lora.targets", ("q_proj",), lambda o: o.one(AdaptersAttached).target_modules),
    Case("lora.dtype", "bf16", lambda o: (o.one(AdaptersAttached).dtype, o.one(AdaptersAttached).adapter_bytes)),
    Case("lora.rslora", True, lambda o: (o.one(AdaptersAttached).variant, o.losses[-1])),
    Case("lora.dora", True, lambda o: (o.one(AdaptersAttached).variant, o.one(AdaptersAttached).trainable_parameters)),
    Case("lora.init", "gaussian", losses),
    Case("lora.init", "loftq", lambda o: o.evaluations[0].loss),
    Case("data.held_out_fraction", 0.4, lambda o: o.one(PlanMade).held_out_rows),
    Case("data.leave_out", "2, 4-9", lambda o: (o.one(PlanMade).train_rows + o.one(PlanMade).held_out_rows, o.data["rows_dropped"])),
    Case("data.max_rows", 10, lambda o: o.one(PlanMade).train_rows),
    Case("data.seq_len", 40, lambda o: (o.data["truncated_rows"], o.one(PlanMade).seq_len)),
    Case("data.train_on", "everything", lambda o: o.data["trained_tokens"]),
    Case("data.chat_template", "alpaca", lambda o: o.data["template"]),
    Case("data.system_prompt", "Be brief.", lambda o: o.one(PlanMade).tokens_per_epoch),
    Case("data.packing", True, lambda o: (o.data["packed_rows"], o.one(PlanMade).train_rows), {"data.seq_len": 128}),
    Case("training.epochs", 2.0, lambda o: o.one(PlanMade).total_steps, {"training.max_steps": None, "training.epochs": 1.0}),
    Case("training.max_steps", 3, lambda o: o.one(PlanMade).total_steps),
    Case("training.learning_rate", 0.02, rates),
    Case("training.warmup_ratio", 0.5, rates),
    Case("training.effective_batch", 8, lambda o: o.one(PlanMade).steps_per_epoch),
    Case("training.micro_batch", 4, lambda o: (o.one(PlanMade).micro_batch, o.peak)),
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
    *(Case("training.optimizer", name, lambda o: o.one(OptimizerBuilt).class_name)
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
    "model.name": "training/test_option_effects.py::test_checkpointing_and_small_micro_batches_save_memory",
    "model.revision": "models/test_hub.py::test_the_job_downloads_and_tells_the_revision",
    "model.device": "cli/test_bad_input.py::test_a_machine_without_the_gpu_that_was_asked_for",
    "model.offline": "cli/test_bad_input.py::test_an_offline_program_asks_no_hub",
    "model.trust_remote_code": "models/test_loading.py::test_code_that_was_agreed_to_is_run",
    "model.resize_embeddings": "training/test_resizing.py::test_new_rows_are_learned_and_every_form_of_them_is_the_same_model",
    "quantization.compute_dtype": "training/test_option_effects.py::test_the_compute_type_is_that_of_the_whole_forward_pass",
    "quantization.experts": "models/test_experts.py::test_what_was_built_is_reported",
    "quantization.expert_placement": "models/test_experts.py::test_what_was_built_is_reported",
    "lora.experts": "models/test_experts.py::test_adapters_on_experts_learn_a_row_that_attention_at_rank_1_cannot",
    "data.path": "training/test_option_effects.py::test_another_dataset_or_format_gives_other_rows",
    "data.format": "training/test_option_effects.py::test_another_dataset_or_format_gives_other_rows",
    "data.split": "training/test_option_effects.py::test_the_split_of_a_hub_dataset_is_the_one_that_is_read",
    "data.columns": "data/test_sources_and_formats.py::test_columns_can_be_mapped",
    "data.reasoning": "training/test_option_effects.py::test_thoughts_are_trained_or_left_out",
    "data.empty_answers": "training/test_option_effects.py::test_the_end_of_an_empty_answer_is_trained_where_wanted",
    "data.preference": "training/test_option_effects.py::test_what_rows_mean_is_the_choice_of_whoever_trains",
    "data.ignore": "training/test_option_effects.py::test_what_rows_mean_is_the_choice_of_whoever_trains",
    "data.more": "data/test_doctor.py::test_sources_are_mixed_by_weight_each_with_its_own_format_and_share",
    "data.encoding": "data/test_malformed.py::test_what_cannot_be_told_is_refused_with_its_name_or_read_as_said",
    "data.bad_rows": "data/test_doctor.py::test_more_bad_rows_than_allowed_block_the_start_and_the_check_alike",
    "data.overlap": "data/test_doctor.py::test_a_long_text_becomes_rows_that_lose_and_double_nothing",
    "data.tree_paths": "data/test_doctor.py::test_a_message_tree_gives_its_best_path_or_all_of_them",
    "data.held_out_path": "training/test_option_effects.py::test_held_out_data_of_its_own_is_what_is_scored",
    "training.checkpoint_every": "training/test_recomputing.py::test_whatever_is_recomputed_and_wherever_it_waits_the_numbers_are_the_same",
    "training.offload_inputs": "training/test_recomputing.py::test_whatever_is_recomputed_and_wherever_it_waits_the_numbers_are_the_same",
    "training.router_loss": "training/test_router_loss.py::test_the_loss_is_the_one_of_the_class_and_moves_the_adapters",
    "training.group_experts": "training/test_grouped_experts.py::test_a_run_takes_no_more_than_the_estimate_says_and_gives_it_up_first",
    "training.compile_blocks": "training/test_compiling.py::test_only_a_gain_beyond_the_clocks_own_keeps_them",
    "training.early_stopping": "training/test_option_effects.py::test_early_stopping_ends_the_run_when_nothing_gets_better",
    "training.keep_best": "training/test_option_effects.py::test_the_best_is_kept_and_not_the_last",
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
