"""Two thousand runs of 20,000 steps: what the list and a comparison of eight cost, in processor time of this process: by
themselves, and in the window, where the comparison is dragged.

`python -m tests.bench.many_runs [FOLDER]`; the runs are hard links to a few files. Ends with 1 where a limit is missed.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RUNS, STEPS, COMPARED = 2_000, 20_000, 8
LIST_SECONDS, COMPARE_SECONDS = 0.5, 0.7
LEAST_FRAMES = 30.0


def main(place: Path) -> int:
    os.environ["QLORA_HOME"] = str(place)
    if not (place / "runs").exists():
        make(place)
    from qlora_engine.runs.comparison import compare
    from qlora_engine.runs.curves import CurveReader, made_ready
    from qlora_engine.runs.index import RunIndex
    from qlora_engine.runs.record import RunFolder
    from qlora_engine.runs.selecting import select

    rebuilt = took(lambda: RunIndex().entries())
    listed = min(took(lambda: select(RunIndex().entries(), text="run", sort="loss")) for _ in range(3))
    folders = [RunFolder(entry.path) for entry in RunIndex().entries()[:COMPARED]]
    unkept = took(lambda: [CurveReader(folder.path).update() for folder in folders])
    for folder in folders:
        made_ready(folder.path)  # as each run does at its end
    first = took(lambda: compare(folders))
    again = min(took(lambda: compare(folders)) for _ in range(3))
    smooth = took(lambda: [side.curve.y("loss", 0.9) for side in compare(folders).sides])
    from tests.bench.panning import seen_in_window

    seen = seen_in_window(COMPARED)
    rows = [
        ("list, cache lost", rebuilt, None), ("list", listed, LIST_SECONDS), (f"curves of {COMPARED} from elsewhere", unkept, COMPARE_SECONDS),
        (f"comparison of {COMPARED}, first time", first, COMPARE_SECONDS),
        (f"comparison of {COMPARED}", again, COMPARE_SECONDS), ("the same, smoothed", smooth, COMPARE_SECONDS),
        ("list, in the window", seen.list_seconds, LIST_SECONDS), ("comparison, in the window", seen.compare_seconds, COMPARE_SECONDS),
        ("longest frame while dragged", seen.longest_frame_seconds, None),
    ]  # fmt: skip
    for name, seconds, limit in rows:
        print(f"{name:32} {seconds * 1000:7.0f} ms" + (f"   (limit {limit * 1000:.0f} ms)" if limit else ""))
    is_smooth = seen.frames_per_second >= LEAST_FRAMES
    print(f"{'frames while dragged':32} {seen.frames_per_second:7.0f} /s   (limit {LEAST_FRAMES:.0f} /s)")
    return int(any(limit is not None and seconds > limit for _, seconds, limit in rows) or not is_smooth)


def took(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def make(place: Path) -> None:
    """The runs, with records as long as real ones."""
    from qlora_engine.events import EvaluationFinished, encode
    from qlora_engine.runs import sealed
    from qlora_engine.runs.record import RunFolder
    from tests.support.run_folders import config_of, step_event

    lines = []
    for number in range(1, STEPS + 1):
        lines.append(
            encode(step_event(number, STEPS, 2 * math.exp(-number / 3000) + (number * 7919 % 97) / 500))
        )
        if number % 2000 == 0:
            lines.append(encode(EvaluationFinished(number, 1.0 / number, 1000, 1.0, True, 1e9)))
    text = "".join(f"{sealed.sealed_line(line)}\n" for line in lines)
    filler = json.dumps({"rows": [{"text": "x" * 200, "ids": list(range(40))}] * 30})
    for number in range(RUNS):
        folder = RunFolder.create(config_of(output__name=f"run{number:04}", lora__rank=number % 64 + 1))
        folder.update(state="finished", best_loss=1.0 / (number + 1), last_step=STEPS, plan={"total_steps": STEPS}, model={"name": "tiny"}, data={"path": "starter", "report": filler})  # fmt: skip
        if number < COMPARED:
            folder.metrics_path.write_text(text, encoding="utf-8")
        else:
            os.link(place / "runs" / f"run{number % COMPARED:04}" / "metrics.jsonl", folder.metrics_path)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory(prefix="qlora-many-runs-") as folder:
        sys.exit(main(Path(folder)))
