"""`python -m tests.bench.second_turn_check FOLDER`: whether chats go on as training had it, for every chat template in a folder."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from qlora_engine.data.conversation import RowProblem
from tests.support.second_turns import ANSWERS, verdict
from tests.support.template_tokenizer import tokenizer_for


def main(folder: str) -> int:
    """Print what differs; 1 when something does."""
    files = sorted(Path(folder).glob("*.jinja"))
    counts = {name: Counter[str]() for name in ANSWERS}
    right = 0
    for file in files:
        tokenizer, faults = tokenizer_for(file.read_text(encoding="utf-8")), {}
        for name, answer in ANSWERS.items():
            try:
                found = verdict(tokenizer, answer)
            except RowProblem as problem:
                found = f"refused: {problem}"
            kind = found if found in ("right", "not trained so") else found.partition(":")[0]
            counts[name][kind if kind in ("right", "not trained so", "refused") else "WRONG"] += 1
            if found not in ("right", "not trained so") and not found.startswith("refused"):
                faults[name] = found
        right += not faults
        print(f"{file.stem:55} {'WRONG' if faults else 'right'}")
        for name, found in faults.items():
            print(f"    {name}: {found}")
    for name, count in counts.items():
        print(f"{name:32} {dict(count)}")
    print(f"{right} of {len(files)} go on as trained")
    return 0 if right == len(files) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
