"""What the screens are told: events and clicks in, ready strings out. No window."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.presenters import memory as memory_presenter
from app.presenters.conversation import Conversation
from app.presenters.draft import restored, starter_draft
from app.presenters.export import ExportFold, default_target
from app.presenters.memory import memory_state
from app.presenters.memory_words import Capacity
from app.presenters.model import model_state
from app.presenters.outcome import Ending, outcome_of
from app.presenters.problems import problems_of
from app.presenters.run_files import TITLES
from app.presenters.run_fold import RunFold
from app.presenters.run_header import kept_header, live_sentence, own_header
from app.presenters.run_numbers import numbers_of
from app.presenters.run_rows import kept_row, shown_rows
from app.presenters.runcard import planned_steps, run_card
from app.presenters.runs import interrupted_run
from app.presenters.strip import strip_state
from app.presenters.tried import settings_text
from app.presenters.words import duration_text
from app.tabs.data.presenters.doctor import doctor_state
from app.tabs.data.presenters.head import READ_ANEW, report_notice
from qlora_engine import config_io
from qlora_engine import events as ev
from qlora_engine.config import TrainingConfig
from qlora_engine.errors import EngineError
from qlora_engine.evaluate import answers, prediction_file
from qlora_engine.memory import explain
from qlora_engine.models import catalog
from qlora_engine.runs import commands, live, notes, plans, stored
from qlora_engine.runs.index import RunEntry
from qlora_engine.runs.record import RunSummary
from tests.app import events_of_a_run as told

GIB = 1024**3


def folded(*events: ev.Event) -> RunFold:
    run = RunFold()
    run.begin()
    for event in events:
        run.fold(event)
    return run


# ---------------------------------------------------------------- a run


def test_a_run_is_folded_into_numbers_a_person_reads() -> None:
    numbers = numbers_of(folded(*told.whole_run(40)))
    assert numbers.step_text == "40 / 40"
    assert numbers.held_out_text == "0.9396"
    assert numbers.held_out_note == "-70 % since the start (3.168)"
    assert numbers.speed_text == "252 tokens/s"
    assert numbers.peak_text == "584 MiB"
    assert numbers.peak_note == "predicted 700 MiB"


def test_before_the_first_step_numbers_are_unknown_not_zero() -> None:
    numbers = numbers_of(folded(told.started(), told.plan(60)))
    assert (numbers.step_text, numbers.loss_text, numbers.speed_text) == ("0 / 60", "n/a", "n/a")


def test_every_curve_holds_every_point() -> None:
    run = folded(*told.whole_run(60))
    assert {name: len(series) for name, series in run.series.items()} == {
        "loss": 60, "smooth": 60, "held_out": 4, "rate": 60, "grad": 60, "speed": 60,
    }  # fmt: skip


def started_then(*steps: int) -> list[ev.Event]:
    return [told.started(), told.plan(60), *(told.step(number) for number in steps)]


def test_the_smoothed_loss_begins_at_the_first_loss_and_lags_later() -> None:
    run = folded(told.step(1, loss=4.0), told.step(2, loss=2.0))
    first, second = run.series["smooth"].y
    assert first == pytest.approx(4.0)
    assert 2.0 < second < 4.0


def test_what_a_crash_threw_away_is_not_drawn_twice() -> None:
    straight = folded(*started_then(*range(1, 9)))
    broken = folded(*started_then(*range(1, 6)))
    broken.begin()
    broken.fold(told.started(is_resumed=True, from_step=4))
    assert numbers_of(broken).step_text == "4 / 60"
    assert broken.share == pytest.approx(4 / 60)
    for number in range(5, 9):
        broken.fold(told.step(number))
    assert list(broken.series["loss"].x) == list(range(1, 9))
    assert list(broken.series["smooth"].y) == pytest.approx(list(straight.series["smooth"].y))


def test_states_follow_the_events() -> None:
    run = RunFold()
    seen = [run.state]
    run.begin()
    for event in (told.started(), ev.Paused(3), ev.Continued(3), told.finished()):
        seen.append(run.state)
        run.fold(event)
    assert [*seen, run.state] == ["idle", "starting", "running", "paused", "running", "finished"]


def test_a_stop_in_progress_is_not_painted_over_by_phases() -> None:
    run = folded(told.started(), told.step(1))
    run.asked_to_stop()
    run.fold(ev.PhaseChanged("saving", "Saving a checkpoint"))
    assert (run.state, run.phase_text) == ("stopping", "Stopping after this micro-batch")


def test_after_the_last_step_no_time_left_is_claimed() -> None:
    """Measuring, answering and saving are still to come, which may take minutes."""
    run = folded(told.started(), told.plan(2), told.step(1, 2))
    assert run.seconds_left is not None
    texts = (live_sentence(run), numbers_of(run).eta_text, strip_state(None, run, None).run_text)
    assert all(duration_text(run.seconds_left) in text for text in texts)
    run.fold(told.step(2, 2))
    run.fold(ev.PhaseChanged("evaluating", "Measuring the held-out loss"))
    texts = (live_sentence(run), numbers_of(run).eta_text, strip_state(None, run, None).run_text)
    assert texts == ("Measuring the held-out loss, step 2 of 2", "n/a", "Step 2 / 2")


def test_each_file_of_a_run_is_called_by_what_it_is() -> None:
    single = (stored.RECORD_FILE, stored.JOB_FILE, stored.LOCK_FILE, stored.METRICS_FILE, stored.MEMORY_FILE)
    others = (commands.COMMANDS_FILE, live.LIVE_FILE, notes.NOTES_FILE, plans.EARLIER_FILE, answers.FILE)
    scored = (prediction_file.FILE, prediction_file.ROWS_FILE)
    assert {*single, *others, *scored, "log.txt", "adapter", "checkpoints", "tensorboard"} == set(TITLES)


def test_the_log_tells_in_words_what_happened() -> None:
    run = folded(
        *told.whole_run(20),
        ev.Noticed("warning", "memory.smaller", "Out of memory: micro-batch 4 -> 2", "went on"),
    )
    texts = [line.text for line in run.log]
    assert "Model loaded: NF4 with double quantization, computing in float32" in texts
    assert "Checkpoint at step 20 saved (26.7 MiB)" in texts
    assert run.log[-1].tone == "warning"


def test_the_log_and_the_samples_are_bounded() -> None:
    run = folded(*(told.evaluation(n, 1.0) for n in range(2000)), *(told.memory(n) for n in range(25_000)))
    assert len(run.log) == 500
    assert len(run.memory) == 4


# ---------------------------------------------------------------- the job being edited


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


# ---------------------------------------------------------------- pages


def comparison(name: str = "llama-7b", **edits: object) -> explain.Comparison:
    draft = starter_draft(is_cpu=False)
    for path, value in edits.items():
        draft = draft.edited(path.replace("__", "."), value)
    return explain.compare(catalog.facts(name, None, True), draft.config, seq_len=512, micro_batch=1)


def test_the_memory_verdict_says_numbers_and_the_cheapest_change() -> None:
    found = comparison("llama-65b")
    small = Capacity("RTX 4090", 24 * GIB, int(23.3 * GIB))
    state = memory_state(found, small, is_double=True, gpu=None)
    assert state.verdict == "On RTX 4090 it does not fit: the weights alone need 32.1 of 23.3 GiB."
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


def test_the_run_card_does_not_call_a_run_ready_that_does_not_fit() -> None:
    state = run_card(starter_draft(is_cpu=True), None, None, "does not fit: 27.40 of 23.3 GiB", (), False)
    assert (state.headline, state.tone, state.can_start) == ("Does not fit", "warning", True)


def test_the_head_of_a_running_run_pauses_and_stops() -> None:
    run = folded(*told.whole_run(10))
    state = own_header(run, is_resumable=False)
    assert (state.action, state.can_pause, state.can_stop, state.share) == ("", True, True, 1.0)
    assert not run_card(starter_draft(is_cpu=True), None, None, "n/a", (), True).can_start, (
        "one run at a time"
    )
    run.fold(ev.Paused(10))
    assert own_header(run, is_resumable=False).pause_text == "Continue"


@pytest.mark.parametrize(
    ("state", "is_resumable", "action"),
    [
        ("finished", False, "try"),
        ("stopped", True, "resume"),
        ("crashed", True, "resume"),
        ("failed", False, ""),
        ("running", False, ""),
    ],
)
def test_the_head_offers_what_can_be_done_with_a_kept_run(
    state: str, is_resumable: bool, action: str
) -> None:
    shown = "elsewhere" if state == "running" else state
    found = kept_header(RunEntry(summary("a", state, is_resumable=is_resumable)), RunFold(), shown)
    assert (found.name, found.action) == ("a", action)


def test_a_run_says_first_how_it_ended() -> None:
    run = folded(
        *told.whole_run(40), ev.Noticed("info", "training.early_stop", "Stopped early at step 40: no gain")
    )
    learned = outcome_of("finished", run, Ending(best_step=20, seconds=840.0), summary("a", "finished"))
    assert learned.text == "Learned: held-out loss 3.168 before, 0.9400 after (-70 %)."
    assert learned.hint == (
        "Step 20 of 40 was kept: its held-out loss was the lowest. Stopped early at step 40: no gain. It trained for 14 min."
    )
    counted = ev.EndingsCounted(20, 8, 8, 8, 128, 2.0)
    ending = outcome_of("finished", run, Ending(ends=counted), summary("a", "finished"))
    assert ending.hint.startswith("8 of 8 answers to held-out questions ended by themselves. ")
    assert ending.tone == "good"
    endless = Ending(ends=ev.EndingsCounted(20, 8, 0, 8, 128, 2.0))
    assert outcome_of("finished", run, endless, summary("a", "finished")).tone == "warning"
    hint = "put it back, or go on all the same: `qlora resume a --accept data --accept lora.alpha`"
    refused = outcome_of(
        "failed",
        run,
        Ending("resume.differs", "the data differ", hint),
        summary("a", "failed", is_resumable=True),
    )
    assert (refused.text, refused.tone, refused.accepts) == (
        "The data differ.",
        "bad",
        ("data", "lora.alpha"),
    )
    broken = outcome_of("crashed", run, Ending(), summary("a", "crashed", is_resumable=True))
    assert broken.is_resumable
    assert outcome_of("running", run, Ending(), None).text == ""


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


def summary(run_id: str, state: str, *, is_resumable: bool = False, created: float = 1.0) -> RunSummary:
    from pathlib import Path

    return RunSummary(
        run_id, Path("/runs") / run_id, state, "starter", "starter", created, created + 90, 40, 60, 3.168, 0.94,
        700 * 1024**2, 584 * 1024**2, is_resumable,
    )  # fmt: skip


def test_what_broke_off_or_was_left_unfinished_is_offered_for_resuming() -> None:
    broken = summary("b", "crashed", is_resumable=True)
    assert interrupted_run([broken, summary("a", "finished")]) is broken
    assert interrupted_run([summary("c", "finished"), broken]) is None
    stopped = summary("d", "stopped", is_resumable=True)
    assert interrupted_run([stopped]) is None
    assert interrupted_run([summary("e", "finished"), stopped], "/runs/d") is stopped
    assert interrupted_run([]) is None


def test_a_row_of_the_list_says_state_loss_and_model_and_can_be_found() -> None:
    rows = [
        kept_row(RunEntry(summary("a", "finished"))), kept_row(RunEntry(replace(summary("b", "failed"), loss_after=None))),
        kept_row(RunEntry(summary("c", "running"))),
    ]  # fmt: skip
    assert [row.detail for row in rows] == [
        "Finished \u00b7 0.9400 \u00b7 starter", "Failed, 67 % \u00b7 starter", "Training elsewhere, 67 % \u00b7 0.9400 \u00b7 starter",
    ]  # fmt: skip
    assert [row.name for row in shown_rows(rows, "", "live")] == ["c"]
    assert [row.name for row in shown_rows(rows, "STARTER failed", "all")] == ["b"]
    assert shown_rows(rows, "starter", "planned") == ()


def test_the_strip_says_once_that_there_is_no_gpu_and_shows_the_host() -> None:
    state = strip_state(told.memory(0).sample, RunFold(), 2 * GIB)
    assert state.device_text == "CPU run: no NVIDIA GPU"
    assert state.device_tip == "no NVIDIA driver is installed"
    assert state.memory_text == "host 4.0 / 24.0 GiB"
    assert state.tick_share == pytest.approx(2 / 24)


def test_the_strip_shows_a_gpu_with_what_is_known_of_it() -> None:
    gpu = {
        "index": 0, "name": "RTX 4090", "total_bytes": 24 * GIB, "used_bytes": 18 * GIB, "own_bytes": 17 * GIB,
        "temperature_celsius": 61, "power_watts": None, "utilisation_ratio": 0.97, "unavailable": {"power_watts": "not supported"},
    }  # fmt: skip
    state = strip_state({**told.memory(0).sample, "gpus": [gpu]}, RunFold(), None)
    assert state.device_text == "GPU 0 RTX 4090"
    assert state.memory_text == "18.0 / 24.0 GiB"
    assert state.sensors_text == "97 % \u00b7 61 \u00b0C"
    assert "power_watts: not supported" in state.device_tip


# ---------------------------------------------------------------- chat and export


def test_each_side_of_a_conversation_remembers_its_own_answers() -> None:
    chat = Conversation()
    chat.begin()
    chat.fold(ev.SessionReady({"sides": ["base", "tuned"]}))
    first = chat.ask("Hello", chat.sides)
    chat.fold(ev.TokenStreamed(first, "base", "Hi"))
    assert chat.state == "answering"
    for side, text in (("base", "Hi."), ("tuned", "Yo.")):
        chat.fold(ev.AnswerFinished(first, side, text, 2, 0.5, True))
    assert chat.state == "ready"
    chat.ask("And now?", chat.sides)
    assert [m["content"] for m in chat.messages("base", "Be short")] == [
        "Be short",
        "Hello",
        "Hi.",
        "And now?",
    ]
    assert [m["content"] for m in chat.messages("tuned")] == ["Hello", "Yo.", "And now?"]


def test_an_answer_that_was_cut_says_so() -> None:
    chat = Conversation()
    chat.begin()
    chat.fold(ev.SessionReady({}))
    request = chat.ask("Hello", ("tuned",))
    chat.fold(ev.AnswerFinished(request, "tuned", "a a a", 128, 4.0, False))
    assert chat.exchanges[0].notes["tuned"] == "128 tokens \u00b7 32.0 tokens/s \u00b7 cut"


def test_how_answers_are_drawn_is_said_in_words() -> None:
    greedy = {"do_sample": False, "max_new_tokens": 128, "repetition_penalty": 1.2}
    assert settings_text(greedy) == "Greedy, at most 128 tokens, repetition penalty 1.2"
    drawn = {
        **greedy,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 50,
        "seed": 3,
        "repetition_penalty": 1.0,
    }
    assert (
        settings_text(drawn)
        == "Sampled with temperature 0.7, top-p 0.95, top-k 50, seed 3, at most 128 tokens"
    )


def test_an_export_with_a_failed_check_is_not_called_proven() -> None:
    fold = ExportFold()
    fold.begin()
    fold.fold(ev.CheckFinished("logits equal base + adapter", False, "largest difference 0.4"))
    fold.fold(ev.RunFinished({"path": "/out", "bytes": 100, "is_proven": False}))
    assert fold.checks[0].mark == "\u2717"
    assert "a check failed" in fold.outcome_text
    assert fold.outcome_tone == "warning"


def test_every_format_says_how_it_can_be_stored_in_words() -> None:
    from app.presenters.export import dtypes_of, formats, merges_of

    assert set(formats()) == {"adapter", "merged", "bnb4", "gguf", "ollama", "gguf-lora"}
    assert all(detail for _, detail in formats().values())
    assert dtypes_of("adapter") == merges_of("adapter") == merges_of("gguf-lora") == ()
    for kind in ("merged", "bnb4", "gguf", "ollama"):
        assert all(title != value for value, title in dtypes_of(kind))
        assert [value for value, _ in merges_of(kind)] == ["", "original", "dequantized", "measured"]


def test_measured_merges_are_told_with_their_numbers() -> None:
    fold = ExportFold()
    fold.begin()
    score = {"loss": 0.4491, "kl": 0.0123, "agreement": 0.97}
    scores = {"live": score, "original": score, "dequantized": score}
    merges = {"scores": scores, "recommended": "original", "why": "the losses do not differ"}
    fold.fold(ev.RunFinished({"path": "/out", "bytes": 1, "is_proven": True, "merges": merges}))
    assert fold.merges_text.splitlines()[1] == (
        "Into the original: held-out loss 0.4491, KL divergence 0.01230, same first choice 97 %"
    )
    assert fold.merges_text.endswith("The losses do not differ")


def test_a_stopped_export_says_what_is_kept() -> None:
    fold = ExportFold()
    fold.begin()
    fold.fold(ev.RunStopped("stopped", is_resumable=True, result={"kept_bytes": 3 * 2**30}))
    assert fold.stopped_text == "Stopped. 3.00 GiB are whole and kept: Export goes on from there."
    fold.begin()
    fold.fold(ev.RunStopped("stopped", is_resumable=False, result={}))
    assert fold.stopped_text == "Stopped. Nothing was left behind."


def test_what_an_earlier_export_left_is_told_where_it_lies(tmp_path: Path) -> None:
    from app.presenters.export import kept_text
    from qlora_engine.export.journal import FILE, aside_of

    out = tmp_path / "out"
    assert kept_text(str(out), "/runs/demo", "merged") == ""
    aside_of(out).mkdir()
    stored = {
        "key": {"run": "demo", "format": "merged"},
        "owner": None,
        "files": {"a": {"nbytes": 2**30, "sha256": "x"}},
    }
    (aside_of(out) / FILE).write_text(json.dumps(stored))
    assert "1.00 GiB of it are whole: with the same options, Export goes on" in kept_text(
        str(out), "/runs/demo", "merged"
    )
    assert "another run or form" in kept_text(str(out), "/runs/demo", "gguf")


def test_an_upload_keeps_the_proof_in_sight_however_it_ends() -> None:
    fold = ExportFold()
    fold.begin()
    fold.fold(ev.CheckFinished("logits equal base + adapter", True, "0.0"))
    fold.fold(ev.RunFinished({"path": "/out", "bytes": 100, "is_proven": True}))
    assert fold.can_push
    fold.begin_push()
    assert not fold.can_push
    fold.fold(ev.RunFailed("hub.denied", "the hub said no", "log in"))
    assert (fold.state, fold.push_text, len(fold.checks)) == ("done", "The hub said no. Log in", 1)
    fold.begin_push()
    fold.fold(ev.RunFinished({"repository": "me/tuned", "url": "https://hub/me/tuned"}))
    assert fold.push_text == "Uploaded to https://hub/me/tuned"
    assert fold.can_push
    assert fold.result["path"] == "/out"


def test_an_unproven_export_is_not_offered_for_upload() -> None:
    fold = ExportFold()
    fold.begin()
    fold.fold(ev.RunFinished({"path": "/out", "bytes": 100, "is_proven": False}))
    assert not fold.can_push


def test_an_export_never_offers_a_folder_that_exists() -> None:
    first = default_target("demo", "merged")
    first.mkdir(parents=True)
    assert default_target("demo", "merged").name == "demo-merged-2"


def test_the_captions_cover_every_side() -> None:
    assert set(memory_presenter.CAPTIONS) == set(explain.SIDE_TITLES)
