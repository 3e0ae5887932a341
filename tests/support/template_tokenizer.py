"""Small byte-level tokenizers that have every marker of a chat template as one token."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.tiny import SENTENCES

MARKER = re.compile(
    r"<\|[^|<>\s'{}]{1,60}\|>|<｜[^｜<>'{}]{1,60}｜>|</?[a-zA-Z_][\w:.-]{0,40}>|\[/?[A-Z_]{2,40}\]|<[\w]+\|>|<\|[\w\"]+>"
    r"|\]~!?b\[|\]~b\]|\[e~\["
)
HARD = re.compile(r"<\||<｜|\[|\]|\|>")
BOS, EOS = "<|begin-of-all|>", "<|end-of-all|>"
TOOL = {
    "type": "function",
    "function": {
        "name": "weatherfn", "description": "defword",
        "parameters": {"type": "object", "properties": {"town": {"type": "string", "description": "townword"}}, "required": ["town"]},
    },
}  # fmt: skip


@cache
def _base_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return str(tokenizer.to_str())


def tokenizer_for(jinja: str) -> PreTrainedTokenizerFast:
    """A small byte-level tokenizer that has every marker the template writes as one token."""
    backend = Tokenizer.from_str(_base_json())
    found = dict.fromkeys([BOS, EOS, *MARKER.findall(jinja)])
    tokenizer = _with_tokens(backend, found, jinja)
    for messages, tools in ((["userone", "answerone"] * 2, None), (["userone", "answerone"], [TOOL])):
        turns = [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, messages, strict=False)]
        try:
            text = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
        except Exception:  # noqa: BLE001 - a template refuses by raising whatever it likes
            continue
        found |= dict.fromkeys(MARKER.findall(str(text)))
    return _with_tokens(Tokenizer.from_str(_base_json()), found, jinja)


def _with_tokens(backend: Any, found: dict[str, None], jinja: str) -> PreTrainedTokenizerFast:
    tokens = [AddedToken(m, special=bool(HARD.match(m)), normalized=False) for m in found]
    backend.add_tokens(tokens)
    backend.add_special_tokens([t for t in tokens if t.special])
    eos = next((m for m in ("<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "<|end_of_text|>") if m in jinja), EOS)  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=eos)
    tokenizer.chat_template = jinja
    return tokenizer
