"""What the Try page shows in tests: a session's facts, kept predictions, a timeline, and runs that stand on one base."""

from __future__ import annotations

from typing import Any

from qlora_engine import events as ev
from qlora_engine.config import TrainingConfig
from qlora_engine.evaluate import prediction_file
from qlora_engine.evaluate.answers import adapter_sha256
from qlora_engine.evaluate.origin import origin_of_run
from qlora_engine.runs.record import RunFolder
from tests.support.run_folders import seal_adapter

BOOTS = "Remind me to polish the boots at half past eight."
ANSWER = '{"do": "remind", "what": "polish the boots", "when": "08:30"}'


def make_run(name: str, *, base: str = "a", double: bool = True, created: float = 1.0) -> RunFolder:
    """A finished run with an adapter file, on the base `base`."""
    folder = RunFolder.create(TrainingConfig())
    named = folder.path.with_name(name)
    folder.path.rename(named)
    found = RunFolder(named)
    found.adapter_dir.mkdir()
    (found.adapter_dir / "adapter_model.safetensors").write_bytes(name.encode())
    seal_adapter(found.path)
    found.update(
        run_id=name, state="finished", created=created, loss_before=3.168, loss_after=0.449, last_step=50,
        model={"name": "starter", "fingerprint": {"model.safetensors": base * 64}},
        load_report={"quant_type": "nf4", "is_double_quant": double}, plan={"total_steps": 50},
    )  # fmt: skip
    for step, answer in ((0, "Sure, I can help you with that."), (25, '{"do": "remind"}'), (50, ANSWER)):
        found.append(ev.SampleAnswered(step, BOOTS, answer, 12, 0.5))
        found.append(ev.SampleAnswered(step, "Say hi", "hi", 1, 0.1))
        found.append(ev.EvaluationFinished(step, 3.168 / (step + 1), 400, 1.0, True, 1.0))
    return found


def voice(run: RunFolder | None, *, can_scale: bool = True) -> dict[str, Any]:
    return {
        "run_id": run.run_id if run else None, "run_dir": str(run.path) if run else None,
        "variant": "LoRA" if run else None, "adapter_step": None, "can_scale": run is not None and can_scale, "system_prompt": None,
    }  # fmt: skip


def facts(first: RunFolder, *others: RunFolder, dora: bool = False) -> dict[str, Any]:
    """What a session of `first` tells once `others` were put beside it."""
    voices = {"base": voice(None), "tuned": voice(first, can_scale=not dora)}
    voices |= {run.run_id: voice(run) for run in others}
    return {"sides": list(voices), "voices": voices, "has_adapter": True}


def prediction(row: int, loss: float, wrong_at: int | None, got: str) -> dict[str, Any]:
    return {
        "row": row, "loss": loss, "tokens": 21, "answer_tokens": 21, "wrong_at": wrong_at, "likeliest": 3,
        "question": BOOTS, "prompt": f"user\n{BOOTS}", "expected": ANSWER, "got": got, "is_complete": True,
        "wrong_token": "30" if wrong_at is not None else None, "likeliest_token": "00" if wrong_at is not None else None,
    }  # fmt: skip


def predictions(run: RunFolder) -> dict[str, Any]:
    wrong = prediction(12, 1.204, 17, ANSWER.replace("08:30", "08:00 <b>&"))
    right = prediction(31, 0.0021, None, ANSWER)
    return {
        "run_id": run.run_id, "run_dir": str(run.path), "adapter_sha256": adapter_sha256(origin_of_run(run)),
        "scored_rows": 40, "trained_tokens": 840, "loss": 0.449, "faultless_rows": 31, "unix_time": 1.0,
        "worst": [wrong, {**wrong, "row": 7, "loss": 0.4}], "best": [right],
    }  # fmt: skip


def keep_predictions(run: RunFolder) -> None:
    prediction_file.write(run, predictions(run))
