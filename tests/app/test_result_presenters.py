"""What the screens are told of conversations and exports. No window."""

from __future__ import annotations

import json
from pathlib import Path

from app.presenters import memory as memory_presenter
from app.presenters.conversation import Conversation, messages_of
from app.presenters.export import ExportFold, default_target
from app.presenters.predicted import PredictionsFold
from app.presenters.tried import settings_text
from qlora_engine import events as ev
from qlora_engine.memory import explain


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
    assert [m["content"] for m in messages_of(chat.exchanges, "base", "Be short")] == [
        "Be short",
        "Hello",
        "Hi.",
        "And now?",
    ]
    assert [m["content"] for m in messages_of(chat.exchanges, "tuned")] == ["Hello", "Yo.", "And now?"]


def test_an_answer_that_was_cut_says_so() -> None:
    chat = Conversation()
    chat.begin()
    chat.fold(ev.SessionReady({}))
    request = chat.ask("Hello", ("tuned",))
    chat.fold(ev.AnswerFinished(request, "tuned", "a a a", 128, 4.0, False))
    assert chat.exchanges[0].notes["tuned"] == "128 tokens \u00b7 32.0\u00a0tokens/s \u00b7 cut"


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
        "Into the original: held-out loss 0.4491, KL divergence 0.01230, same first choice 97\u00a0%"
    )
    assert fold.merges_text.endswith("The losses do not differ")


def test_a_stopped_export_says_what_is_kept() -> None:
    fold = ExportFold()
    fold.begin()
    fold.fold(ev.RunStopped("stopped", is_resumable=True, result={"kept_bytes": 3 * 2**30}))
    assert fold.stopped_text == "Stopped. 3.00\u00a0GiB are whole and kept: Export goes on from there."
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
    assert "1.00\u00a0GiB of it are whole: with the same options, Export goes on" in kept_text(
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


def test_scoring_names_the_run_whose_rows_it_scores() -> None:
    fold = PredictionsFold()
    assert fold.working_text == ""
    fold.begin("first-look")
    fold.fold(ev.PhaseChanged("loading", "Loading the model"))
    assert fold.working_text == "Scoring first-look: Loading the model"
    fold.fold(ev.RunFinished({}))
    assert fold.working_text == ""
