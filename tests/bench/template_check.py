"""`make check-templates DIR=folder`: every chat template in a folder, on a fixed list of conversations and random ones.

The random ones change with the date; SEED=2026-01-31 repeats a day's, RANDOM=50 takes more of them.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.support.random_talks import random_cases
from tests.support.template_check import judged


def main(folder: str) -> int:
    """Print a line for each template; 1 when one of them has a fault."""
    files = sorted(Path(folder).glob("*.jinja"))
    if not files:
        print(f"no *.jinja files in {folder}")
        return 2
    seed = os.environ.get("SEED") or time.strftime("%Y-%m-%d")
    count = int(os.environ.get("RANDOM", "6"))
    print(f"{count} random conversations of SEED={seed} a template")
    verdicts = [judged(file, random_cases(f"{seed} {file.stem}", count)) for file in files]
    for verdict in verdicts:
        state = "WRONG" if verdict.faults else "refuses some" if verdict.refused else "right"
        print(f"{verdict.name:55} {state:13} {verdict.renders / max(verdict.rows, 1):.2f} renders a row")
        for line in verdict.faults:
            print(f"    fault: {line}")
        for line in verdict.refused if "-v" in sys.argv else ():
            print(f"    left out: {line}")
        for line in sorted(verdict.notes) if "-v" in sys.argv else ():
            print(f"    told: {line}")
    right = sum(not v.faults for v in verdicts)
    refusing = sum(bool(v.refused) and not v.faults for v in verdicts)
    print(
        f"{right} of {len(verdicts)} wholly right, {refusing} of them refuse rows themselves, in their own words"
    )
    return 0 if right == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(os.environ.get("DIR") or next((a for a in sys.argv[1:] if not a.startswith("-")), ".")))
