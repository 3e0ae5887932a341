"""Whether a chat goes on as training had it: an answer that a model gave just as it was trained is read back, kept as a
message, and the next turn's prompt is compared with the trained text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qlora_engine.config import DataSettings
from qlora_engine.data.answer_reading import as_message
from qlora_engine.data.conversation import Conversation, Message, ToolCall, talk
from qlora_engine.data.templates import Template, chosen, laid_out, render
from qlora_engine.evaluate.turns import as_turn
from tests.support.template_tokenizer import TOOL

ASK, MORE = Message("user", "qone"), Message("user", "qtwo")
LAST = Message("assistant", "atwo")
CALL = ToolCall("weatherfn", {"town": "Ghent", "days": 3}, "call_seven")
OTHER = ToolCall("weatherfn", {"town": 'Li\u00e8ge "B"', "days": 12}, "call_eight")
RESULTS = {"call_seven": '{"rain": 1}', "call_eight": "resword"}
ANSWERS = {
    "a call": Message("assistant", "", calls=(CALL,)),
    "a text and a call": Message("assistant", "aone, then.", calls=(CALL,)),
    "a thought and a call": Message("assistant", "", "rone", (CALL,)),
    "a thought, a text and a call": Message("assistant", "aone, then.", "rone\n\nrtwo", (CALL,)),
    "two calls": Message("assistant", "", calls=(CALL, OTHER)),
    "a text alone": Message("assistant", "aone"),
    "a thought and a text": Message("assistant", "aone", "rone"),
}


def said_by_model(
    tokenizer: Any, template: Template, trained: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> Message | None:
    """What a chat keeps of the first answer of `trained`, given by a model just as it was trained; None where prompts begin
    otherwise than such answers were trained."""
    row = laid_out(Conversation(1, tuple(trained), tuple(tools)), template, template.policy)
    whole, prompt = str.__str__(row.text), render(tokenizer, template, [ASK], is_prompt=True, tools=tools)
    if not whole.startswith(prompt):
        return None
    shown = marked = whole[len(prompt) : row.spans[0][1]]
    for end in template.end_tokens:  # as generation leaves it out
        shown = shown.removesuffix(end)
    ids = tokenizer(shown, add_special_tokens=False)["input_ids"]
    text = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
    return as_message(tokenizer, template, text, marked, tools)


def verdict(tokenizer: Any, answer: Message, settings: DataSettings | None = None) -> str:
    """`right`, `not trained so` (the prompt begins a thought that such answers lack), or what is wrong.

    Raises:
        RowProblem: the template refuses such a conversation.
    """
    template = chosen(tokenizer, settings or DataSettings())
    tools = (TOOL,) if answer.calls else ()
    results = tuple(Message("tool", RESULTS[str(c.id)], call_id=c.id, name=c.name) for c in answer.calls)
    last = replace(LAST, reasoning="rlast" if answer.reasoning else None)
    trained = (ASK, answer, *(results or (MORE,)), last)
    row = laid_out(Conversation(1, trained, tools), template, template.policy)
    kept = str.__getitem__(row.text, slice(*row.spans[0]))
    is_whole = bool(answer.calls) and (not answer.reasoning or answer.reasoning in kept)
    said = said_by_model(tokenizer, template, trained if is_whole else trained[:2], tools)
    if said is None:
        return "not trained so"
    follows = [{"role": "tool", "content": r.text} for r in results] or [{"role": "user", "content": "qtwo"}]
    turns = [{"role": "user", "content": "qone"}, as_turn(said), *follows]
    prompt = render(tokenizer, template, talk(turns), is_prompt=True, tools=tools)
    whole = str.__str__(row.text)
    if not whole.startswith(prompt):
        same = next((i for i, (a, b) in enumerate(zip(whole, prompt, strict=False)) if a != b), len(whole))
        return f"trained {whole[max(0, same - 60) : same + 60]!r}, chat {prompt[max(0, same - 60) : same + 60]!r}"
    is_between = row.spans[0][1] <= len(prompt) <= row.spans[-1][0]
    return "right" if is_between else f"the prompt ends elsewhere: {prompt[-60:]!r}"
