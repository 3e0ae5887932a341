"""Prompt and completion: two texts, or two lists of turns."""

from __future__ import annotations

from qlora_engine.data.conversation import Message
from qlora_engine.data.formats import context, turns
from qlora_engine.data.formats.columns import by_names, text_of
from qlora_engine.data.formats.kind import Detection, Format, Keys, Row, Said

FIELDS = {
    "prompt": ("prompt", "input", "source", "article", "document", "dialogue"),
    "completion": ("completion", "response", "output", "target", "answer", "summary", "highlights"),
}


def read(row: Row, detection: Detection, keys: Keys) -> Said:
    prompt, completion = detection.columns["prompt"], detection.columns["completion"]
    keys.use(prompt, completion)
    asked, said = row.get(prompt), row.get(completion)
    if isinstance(asked, list | tuple) and isinstance(said, list | tuple):
        talk = turns.read_turns(asked, keys, f"{prompt}[].") + turns.read_turns(
            said, keys, f"{completion}[]."
        )
    else:
        talk = [
            Message("user", text_of(row, prompt, "prompt")),
            turns.answer(text_of(row, completion, "completion")),
        ]
    return Said(tuple(context.with_system(row, talk, keys)), context.tools_of(row, keys))


FORMAT = Format("prompt_completion", "Prompt and completion", FIELDS, by_names(FIELDS), read)
