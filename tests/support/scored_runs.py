"""Finished runs whose held-out rows were scored, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_engine.evaluate import prediction_file
from qlora_engine.evaluate.answers import adapter_sha256
from qlora_engine.evaluate.origin import origin_of_run
from qlora_engine.runs.record import RunFolder
from tests.support.run_folders import seal_adapter, write_run


def finished(name: str, *, data: str = "a", **changes: Any) -> RunFolder:
    """A run with an adapter, whose rows were not scored yet."""
    run = write_run(name, [1.0], **changes)
    run.adapter_dir.mkdir(exist_ok=True)
    (run.adapter_dir / "adapter_model.safetensors").write_bytes(name.encode())
    seal_adapter(run.path)
    run.update(
        data={"sha256": data * 64}, model={"name": "tiny", "fingerprint": {"model.safetensors": "b" * 64}}
    )
    return run


def score(
    run: RunFolder, losses: Mapping[int, float], answers: Mapping[int, str], *, place: str = "same"
) -> dict[str, Any]:
    """Keep scores of 10 tokens a row, and answers to some of them; the document."""
    rows = {number: {"row": number, "loss": loss, "tokens": 10} for number, loss in losses.items()}
    told = [
        {**rows[number], "question": f"What is {number}?", "expected": f"It is {number}.", "got": got,
         "is_complete": True, "answer_tokens": 10, "wrong_at": None}
        for number, got in answers.items()
    ]  # fmt: skip
    document = {
        "run_id": run.run_id, "adapter_sha256": adapter_sha256(origin_of_run(run)), "data_sha256": run.record()["data"]["sha256"],
        "scored_rows": len(losses), "worst": [], "best": [], "same": [],
    }  # fmt: skip
    document[place] = told
    prediction_file.write(run, document, list(rows.values()))
    return document
