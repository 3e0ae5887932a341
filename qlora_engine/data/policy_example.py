"""What each policy on reasoning does with this model's template, shown on a conversation and said in words. Torch-free."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from qlora_engine.config import DataSettings
from qlora_engine.data.conversation import Conversation, Message, RowProblem
from qlora_engine.data.formats import read_row
from qlora_engine.data.inspection import Inspector
from qlora_engine.data.policy import Policy
from qlora_engine.data.sources import UnreadableRow
from qlora_engine.data.templates import choose
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.data.working import as_processed
from qlora_engine.errors import EngineError
from qlora_engine.knobs import knobs_of

EARLIER, LAST = "Seventeen and twenty-five make forty-two.", "Forty-two and three make forty-five."
OURS = Conversation(
    0,
    (
        Message("user", "What is 17 + 25?"),
        Message("assistant", "42", reasoning=EARLIER),
        Message("user", "And 3 more?"),
        Message("assistant", "45", reasoning=LAST),
    ),
)
PLAIN = Conversation(0, (Message("user", "What is 17 + 25?"), Message("assistant", "It is forty-two.")))
"""An answer without thoughts, before which some templates put an empty block."""
EMPTY_BLOCK = re.compile(r"<([\w|]+)>\s*</\1>")
LOOKED_AT = 200


def examples(inspector: Inspector, chat_template: str) -> dict[str, Any]:
    """`chat_template` as the job has it. {"policies": {name: {"tokens", "words", "problem"}}, "is_own": whether the data have reasoning, "row": number}.

    `tokens` are [text, state]: t trained, s special, m seen only.
    """
    conversation = _of_data(inspector) or OURS
    policies = {
        name: _example(inspector, chat_template, name, conversation)
        for name in knobs_of(DataSettings)["reasoning"].choices or {}
    }
    return {"policies": policies, "is_own": conversation is not OURS, "row": conversation.number or None}


def _of_data(inspector: Inspector) -> Conversation | None:
    """The first row with reasoning among the first few hundred."""
    store, plan = inspector.prepared.store, inspector.prepared.plan
    if not inspector.prepared.report.reasoning_rows:
        return None
    for number in range(1, min(len(store), LOOKED_AT) + 1):
        try:
            found = read_row(store.row(number), number, plan.detections[store.source_of(number)])
        except (UnreadableRow, RowProblem):
            continue
        if any(message.reasoning for message in found.messages):
            return found.with_system(plan.system_prompt)
    return None


def _example(
    inspector: Inspector, chat_template: str, reasoning: str, conversation: Conversation
) -> dict[str, Any]:
    plan = inspector.prepared.plan
    policy = Policy(plan.policy.train_on, reasoning, plan.policy.empty_answers)
    try:
        template = choose(inspector.tokenizer, chat_template, policy)
        plan = replace(plan, template=template, policy=policy)
        (row,) = as_processed(plan, conversation)
        (plain,) = as_processed(plan, PLAIN)
    except (EngineError, RowProblem) as problem:
        return {"tokens": [], "words": "", "problem": getattr(problem, "message", None) or str(problem)}
    special = set(inspector.tokenizer.all_special_ids)
    tokens = [
        [
            inspector.tokenizer.decode([token]),
            "t" if is_trained and place else "s" if token in special else "m",
        ]
        for place, (token, is_trained) in enumerate(zip(row.input_ids, row.trained, strict=True))
    ]
    words = [_words(row, conversation, inspector.tokenizer), _empty_block(plain, inspector.tokenizer)]
    return {"tokens": tokens[:1500], "words": " ".join(filter(None, words)), "problem": None}


def _words(row: TokenRow, conversation: Conversation, tokenizer: Any) -> str:
    """What became of the thoughts, as found in the rendered row."""
    thoughts = [
        message.reasoning for message in conversation.messages if message.is_answer and message.reasoning
    ]
    if not thoughts:
        return "This conversation has no thoughts."
    trained = tokenizer.decode([i for i, t in zip(row.input_ids, row.trained, strict=True) if t])
    said = [_fate("Thoughts before the last answer", thoughts[-1], row.text, trained)]
    if len(thoughts) > 1:
        said.append(_fate("Thoughts of earlier turns", thoughts[0], row.text, trained))
    return " ".join(said)


def _empty_block(plain: TokenRow, tokenizer: Any) -> str:
    """What of an answer without thoughts a template makes one that thought nothing."""
    if EMPTY_BLOCK.search(plain.text) is None:
        return ""
    trained = tokenizer.decode([i for i, t in zip(plain.input_ids, plain.trained, strict=True) if t])
    fate = "trained" if EMPTY_BLOCK.search(trained) else "seen, not trained"
    return f"Before an answer without thoughts the template puts an empty block, which is {fate}."


def _fate(what: str, thought: str, text: str, trained: str) -> str:
    short = thought.strip()
    if short in trained:
        return f"{what} are trained."
    return f"{what} are seen, not trained." if short in text else f"{what} are left out."
