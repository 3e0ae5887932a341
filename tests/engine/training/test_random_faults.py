"""A real run is disturbed at a random moment: some cases a day here, hundreds with `make test-faults`."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.support import tiny_runs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks engines")
random_faults = pytest.importorskip("tests.support.random_faults") if hasattr(os, "fork") else None
A_DAY, ALL = 3, int(os.environ.get("QLORA_FAULTS_COUNT", "330"))
IS_CAMPAIGN = os.environ.get("QLORA_FAULTS") == "all"


@pytest.mark.timeout(0 if IS_CAMPAIGN else 1500)
def test_a_run_disturbed_anywhere_is_finished_exactly_or_says_why_not(
    model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    assert random_faults is not None
    config = tiny_runs.tiny_config(
        model_dir, rows, tmp_path, training__max_steps=4, training__eval_every_steps=2, checkpoint__every_steps=1,
        checkpoint__keep=9, training__early_stopping=None,
    )  # fmt: skip
    wanted = random_faults.undisturbed(config, tmp_path)
    seed = os.environ.get("QLORA_FAULTS_SEED") or dt.datetime.now(dt.UTC).date().isoformat()
    chosen = random_faults.cases(seed, ALL if IS_CAMPAIGN else A_DAY * len(random_faults.KINDS))
    if not IS_CAMPAIGN:  # another few every day, of another few kinds
        chosen = chosen[
            dt.datetime.now(dt.UTC).timetuple().tm_yday % (len(chosen) // A_DAY) :: len(chosen) // A_DAY
        ]
    ended, findings = Counter[str](), []
    for number, (case, found) in enumerate(random_faults.each(chosen, config, tmp_path, wanted)):
        ended[f"{case.kind}: {found.split()[0]}"] += 1
        if found.startswith("FINDING"):
            findings.append(f"{case}: {found}")
            print(findings[-1], flush=True)
        shutil.rmtree(tmp_path / f"case-{number}", ignore_errors=True)
    print(f"{sum(ended.values())} cases: {dict(sorted(ended.items()))}")
    assert findings == []
    assert sum(ended.values()) == len(chosen) > 0
