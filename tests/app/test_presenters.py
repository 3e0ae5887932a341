"""What the screens are told of runs and of the machine: events in, ready strings out. No window."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.presenters.draft import starter_draft
from app.presenters.outcome import Ending, outcome_of
from app.presenters.run_files import TITLES
from app.presenters.run_fold import RunFold
from app.presenters.run_header import draft_header, kept_header, live_sentence, own_header
from app.presenters.run_numbers import numbers_of
from app.presenters.run_rows import kept_row, shown_rows
from app.presenters.runcard import run_card
from app.presenters.runs import interrupted_run
from app.presenters.strip import strip_state
from app.presenters.words import GIB, duration_text
from qlora_engine import events as ev
from qlora_engine.evaluate import answers, prediction_file
from qlora_engine.runs import commands, live, notes, plans, stored
from qlora_engine.runs.index import RunEntry
from qlora_engine.runs.summary import RunSummary
from tests.app import events_of_a_run as told


def folded(*events: ev.Event) -> RunFold:
    run = RunFold()
    run.begin()
    for event in events:
        run.fold(event)
    return run


def test_a_run_is_folded_into_numbers_a_person_reads() -> None:
    numbers = numbers_of(folded(*told.whole_run(40)))
    assert numbers.step_text == "40 / 40"
    assert numbers.held_out_text == "0.9396"
    assert numbers.held_out_note == "-70\u00a0% since the start (3.168)"
    assert numbers.speed_text == "252\u00a0tokens/s"
    assert numbers.peak_text == "584\u00a0MiB"
    assert numbers.peak_note == "predicted 700\u00a0MiB"


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
    assert "Checkpoint at step 20 saved (26.7\u00a0MiB)" in texts
    assert run.log[-1].tone == "warning"


def test_the_log_and_the_samples_are_bounded() -> None:
    run = folded(*(told.evaluation(n, 1.0) for n in range(2000)), *(told.memory(n) for n in range(25_000)))
    assert len(run.log) == 500
    assert len(run.memory) == 4


def test_the_run_card_does_not_call_a_run_ready_that_does_not_fit() -> None:
    state = run_card(
        starter_draft(is_cpu=True), None, None, "does not fit: 27.40 of 23.3\u00a0GiB", (), False
    )
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
    assert learned.text == "Learned: held-out loss 3.168 before, 0.9400 after (-70\u00a0%)."
    assert learned.hint == (
        "Step 20 of 40 was kept: its held-out loss was the lowest. Stopped early at step 40: no gain. It trained for 14\u00a0min."
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


def test_a_run_that_was_taken_from_the_queue_has_no_place_in_it() -> None:
    """Until it tells of itself: importing takes seconds."""
    entry = RunEntry(summary("a", "planned"), queue_place=0)
    assert kept_row(entry).state_text == "Queued, starts now"
    assert kept_row(replace(entry, queue_place=2), "18:00").state_text == "Queued, place 2, ends 18:00"
    card = run_card(starter_draft(is_cpu=True), None, None, "n/a", (), False)
    assert draft_header("a", card, 0).sentence.startswith("It is its turn: it starts now. ")
    assert draft_header("a", card, 2).sentence.startswith("Queued, place 2: it starts by itself. ")


def test_a_row_of_the_list_says_state_loss_and_model_and_can_be_found() -> None:
    rows = [
        kept_row(RunEntry(summary("a", "finished"))), kept_row(RunEntry(replace(summary("b", "failed"), loss_after=None))),
        kept_row(RunEntry(summary("c", "running"))),
    ]  # fmt: skip
    assert [row.detail for row in rows] == [
        "Finished \u00b7 0.9400 \u00b7 starter", "Failed, 67\u00a0% \u00b7 starter", "Training elsewhere, 67\u00a0% \u00b7 0.9400 \u00b7 starter",
    ]  # fmt: skip
    assert [row.name for row in shown_rows(rows, "", "live")] == ["c"]
    assert [row.name for row in shown_rows(rows, "STARTER failed", "all")] == ["b"]
    assert shown_rows(rows, "starter", "planned") == ()


def test_the_strip_says_once_that_there_is_no_gpu_and_shows_the_host() -> None:
    state = strip_state(told.memory(0).sample, RunFold(), 2 * GIB)
    assert state.device_text == "CPU run: no NVIDIA GPU"
    assert state.device_tip == "no NVIDIA driver is installed"
    assert state.memory_text == "host 4.0 / 24.0\u00a0GiB"
    assert state.tick_share == pytest.approx(2 / 24)


def test_the_strip_shows_a_gpu_with_what_is_known_of_it() -> None:
    gpu = {
        "index": 0, "name": "RTX 4090", "total_bytes": 24 * GIB, "used_bytes": 18 * GIB, "own_bytes": 17 * GIB,
        "temperature_celsius": 61, "power_watts": None, "utilisation_ratio": 0.97, "unavailable": {"power_watts": "not supported"},
    }  # fmt: skip
    state = strip_state({**told.memory(0).sample, "gpus": [gpu]}, RunFold(), None)
    assert state.device_text == "GPU 0 RTX 4090"
    assert state.memory_text == "18.0 / 24.0\u00a0GiB"
    assert state.sensors_text == "97\u00a0% \u00b7 61\u00a0\u00b0C"
    assert "power_watts: not supported" in state.device_tip
