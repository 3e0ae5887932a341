"""Random conversations for `template_check`, the same for a seed: turns, systems, thoughts, code, unicode, stops."""

from __future__ import annotations

import random

from qlora_engine.data.conversation import Message
from qlora_engine.data.policy import Policy
from tests.support.template_check import Case, said, user

PIECES = (
    "word", "Zażółć", "日本語", "🙂", "e\u0301", "x = [1, 2]", "\n\n\ndef f():\n\treturn 1", "\n- a\n- b", "12.50", "{{ x }}",
    "{% if %}", "**bold**", "C:\\dir", '"quoted"', "'single'", "user:", "assistant", "system", "  two  ", "&amp;", "%s",
)  # fmt: skip


def random_cases(seed: str, count: int) -> list[Case]:
    """`count` conversations; every text begins and ends with a word of its own."""
    rng = random.Random(seed)
    return [_case(rng, number) for number in range(count)]


def _case(rng: random.Random, number: int) -> Case:
    turns = rng.randint(1, 4)
    asked = [_text(rng, f"userq{chr(97 + n)}x") for n in range(turns)]
    answers = [_text(rng, f"answerw{chr(97 + n)}x") for n in range(turns)]
    thinks = rng.random() < 0.4
    thoughts = [f"thoughtw{chr(97 + n)}x" if thinks and rng.random() < 0.7 else None for n in range(turns)]
    policy = Policy(reasoning=rng.choice(("train", "context", "remove"))) if thinks else Policy()
    talk = [Message("system", _text(rng, "systemwx"))] if rng.random() < 0.4 else []
    for n in range(turns):
        talk += [user(asked[n]), said(answers[n], thoughts[n])]
    unseen = [f"userq{chr(97 + n)}x" for n in range(turns)] + ["systemwx"]
    unseen += [t for t in thoughts if t] if policy.reasoning != "train" else []
    name = f"random {number}{' with reasoning' if thinks else ''}"
    return Case(name, tuple(talk), tuple((text,) for text in answers), tuple(unseen), policy=policy)


def _text(rng: random.Random, word: str) -> str:
    return " ".join([word, *rng.choices(PIECES, k=rng.randint(0, 4)), f"end{word}"])
