"""What the screens are told of a draft: its settings, problems, model, data and memory. No window."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.presenters.draft import restored, starter_draft
from app.presenters.memory import memory_state
from app.presenters.memory_words import Capacity
from app.presenters.model import model_state
from app.presenters.problems import problems_of
from app.presenters.runcard import planned_steps, run_card
from app.presenters.words import GIB
from app.tabs.data.presenters.doctor import doctor_state
from app.tabs.data.presenters.head import READ_ANEW, report_notice
from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.errors import EngineError
from qlora_engine.memory import explain
from qlora_engine.models import catalog


def test_a_newcomer_finds_the_starter_without_problems() -> None:
    draft = starter_draft(is_cpu=True)
    assert (draft.config.model.name, draft.config.data.path) == ("starter", "starter")
    assert draft.issues == ()
    assert draft.changes == {}
    assert draft.config.training.optimizer == "adamw_torch_fused"


def test_an_edit_is_a_change_and_reset_takes_it_back() -> None:
    draft = starter_draft(is_cpu=True).edited("lora.rank", 32)
    assert draft.changes == {"lora.rank": (8, 32)}
    assert draft.reset("lora.rank").changes == {}


def test_a_wrong_value_is_a_problem_on_the_page_where_it_is_mended() -> None:
    draft = starter_draft(is_cpu=True).edited("lora.rank", 0).edited("data.seq_len", 2)
    problems = problems_of(draft, None, None)
    assert [(p.page, p.path) for p in problems] == [("data", "data.seq_len"), ("settings", "lora.rank")]
    assert problems[1].text == "Rank must be at least 1, not 0"


def test_a_kept_job_comes_back_as_it_was() -> None:
    draft = starter_draft(is_cpu=True).edited("lora.rank", 32)
    back = restored(config_io.to_dict(draft.config), draft.preset, is_cpu=True)
    assert back == draft


def test_a_kept_job_that_no_longer_fits_is_let_go() -> None:
    assert restored({"schema_version": 1, "lora": {"rnak": 3}}, "quick-look", is_cpu=True) is None


@pytest.mark.parametrize("preset", [preset.name for preset in config_io.presets()])
def test_a_preset_keeps_model_data_and_output(preset: str) -> None:
    draft = starter_draft(is_cpu=False).edited("model.name", "org/model").edited("output.name", "mine")
    chosen = draft.with_preset(preset, 7_000_000_000)
    assert (chosen.config.model.name, chosen.config.output.name) == ("org/model", "mine")
    assert chosen.changes == {}


def test_the_optimizer_follows_the_device_only_while_nobody_chose_one() -> None:
    draft = starter_draft(is_cpu=False)
    assert draft.on_device(is_cpu=True).config.training.optimizer == "adamw_torch_fused"
    chosen = draft.edited("training.optimizer", "lion_8bit")
    assert chosen.on_device(is_cpu=True).config.training.optimizer == "lion_8bit"


def comparison(name: str = "llama-7b", **edits: object) -> explain.Comparison:
    draft = starter_draft(is_cpu=False)
    for path, value in edits.items():
        draft = draft.edited(path.replace("__", "."), value)
    return explain.compare(catalog.facts(name, None, True), draft.config, seq_len=512, micro_batch=1)


def test_the_memory_verdict_says_numbers_and_the_cheapest_change() -> None:
    found = comparison("llama-65b")
    small = Capacity("RTX 4090", 24 * GIB, int(23.3 * GIB))
    state = memory_state(found, small, is_double=True, gpu=None)
    assert state.verdict == "On RTX 4090 it does not fit: the weights alone need 32.1 of 23.3\u00a0GiB."
    assert state.verdict_more.startswith("Choose a smaller model. The GPU will show about ")
    assert state.verdict_tone == "bad"
    large = memory_state(found, Capacity("H100", 80 * GIB, 79 * GIB), is_double=True, gpu=None)
    assert large.verdict.startswith("On H100 it fits with ")


def test_the_saving_of_double_quantization_is_computed() -> None:
    state = memory_state(comparison("llama-65b"), None, is_double=True, gpu=None)
    assert "0.373 bits per quantized parameter" in state.saving
    assert "2.8" in state.saving.split("saves ")[1][:4]


def test_both_bars_have_the_same_parts_and_only_constants_and_temporaries_differ() -> None:
    state = memory_state(comparison(), None, is_double=True, gpu=None)
    with_dq, without = state.bars[0].segments, state.bars[1].segments
    differing = {a.name for a, b in zip(with_dq, without, strict=True) if a.bytes_ != b.bytes_}
    assert "quantization_constants" in differing
    assert differing <= {"quantization_constants", "step_temporary", "allocator_rounding", "reserve"}


def test_parts_too_small_for_gib_are_told_in_mib() -> None:
    state = memory_state(
        comparison("starter" if catalog.starter_gguf() else "llama-7b"), None, is_double=True, gpu=None
    )
    constants = next(part for part in state.bars[0].segments if part.name == "quantization_constants")
    assert "iB" in constants.text


def test_the_run_card_counts_steps_as_the_run_will() -> None:
    draft = starter_draft(is_cpu=True).edited("training.max_steps", None).edited("training.epochs", 2.0)
    batch = draft.config.training.effective_batch
    assert planned_steps(draft, {"train_rows": 10 * batch + 1}) == 22
    assert planned_steps(draft, None) is None


def test_the_run_card_blocks_start_while_something_is_wrong() -> None:
    draft = starter_draft(is_cpu=True).edited("lora.rank", 0)
    problems = problems_of(draft, None, EngineError("data.empty", "the file is empty", "choose another file"))
    state = run_card(draft, None, None, "n/a", problems, False)
    assert (state.headline, state.can_start) == ("2 to fix", False)
    assert run_card(starter_draft(is_cpu=True), None, None, "n/a", (), False).can_start


def test_a_model_that_must_be_fetched_says_so() -> None:
    facts = catalog.facts("llama-7b", None, True)
    state = model_state("llama-7b", (), facts, None)
    assert state.prepare_text == "Download now"
    assert "not on this disk" in state.notice


def test_a_tokenizer_that_is_larger_than_the_model_is_told_with_both_numbers_and_the_switch() -> None:
    bare = replace(catalog.facts("llama-7b", None, True), path="/models/l", tokenizer_rows=32_006)
    state = model_state("l", (), bare, None)
    assert state.notice == "The tokenizer has 32,006 entries and the model embeddings for 32,000."
    assert ("one of the 6 others" in state.notice_hint, state.resize_text) == (True, "Enlarge them")
    enlarged = model_state("l", (), replace(bare, vocab_size=32_006, new_rows=6), None)
    assert (enlarged.notice, enlarged.resize_text) == ("", "")
    assert ("Vocabulary", "32,006, of them 6 added and trained") in enlarged.rows
    assert model_state("l", (), replace(bare, tokenizer_rows=None), None).resize_text == ""
    refused = model_state("l", (), None, EngineError("model.resize", "it has a bias", "set it to false"))
    assert refused.resize_text == "Leave them as they are"


def test_a_model_that_cannot_be_read_is_a_sentence_with_a_next_step() -> None:
    state = model_state(
        "/nowhere", (), None, EngineError("model.missing", "there is no folder /nowhere", "choose another")
    )
    assert (state.notice, state.notice_hint, state.notice_tone) == (
        "There is no folder /nowhere",
        "Choose another",
        "bad",
    )


def test_data_that_was_not_looked_at_is_not_called_fine() -> None:
    assert report_notice(is_known=False, is_new=False, is_checking=False)[0] == "Not looked at yet."
    assert report_notice(is_known=True, is_new=False, is_checking=True) == (READ_ANEW, "")
    assert report_notice(is_known=True, is_new=True, is_checking=False) == ("", "")
    assert doctor_state((), TrainingConfig().data, is_checked=False).headline == ""
    assert "Nothing found" in doctor_state((), TrainingConfig().data, is_checked=True).headline
