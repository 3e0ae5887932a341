"""Chat templates: the model's own, a named one, or a Jinja file. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine.data.conversation import Message
from qlora_engine.errors import EngineError, did_you_mean

FALLBACK = "alpaca"
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_ALPACA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ '### Response:\n' + m['content'] + eos_token + '\n\n' }}"
    "{% else %}{{ '### Instruction:\n' + m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') "
    "+ '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
_PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] + ' ' }}{% else %}{{ 'USER: ' + m['content'] + ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


@dataclass(frozen=True)
class Named:
    """A template by name; `tokens` must be single tokens of the model, `end` is what ends an answer (None: eos)."""

    jinja: str
    tokens: tuple[str, ...]
    end: str | None
    has_system: bool = True


NAMED = {
    "chatml": Named(_CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama3": Named(_LLAMA3, ("<|start_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "alpaca": Named(_ALPACA, (), None),
    "gemma": Named(_GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", has_system=False),
    "mistral": Named(_MISTRAL, (), None, has_system=False),
    "phi3": Named(_PHI3, ("<|assistant|>", "<|end|>"), "<|end|>"),
    "zephyr": Named(_ZEPHYR, (), None),
    "vicuna": Named(_VICUNA, (), None),
}


@dataclass(frozen=True)
class Template:
    """The chosen template. `why` is a sentence; `end_tokens` are the texts that may end an answer."""

    name: str
    jinja: str
    end_tokens: tuple[str, ...]
    why: str
    folds_system: bool


def choose(tokenizer: Any, wanted: str) -> Template:
    """The model's own template, a named one, or a file. A model without one gets a plain one that needs no special
    tokens, and it is said.

    Raises:
        EngineError: no such template, its tokens are not in the vocabulary, or it is not valid Jinja.
    """
    if wanted == "auto":
        if isinstance(tokenizer.chat_template, str):
            return _checked(
                tokenizer, "the model's own", tokenizer.chat_template, "it comes with the model", None
            )
        named = NAMED[FALLBACK]
        return _checked(
            tokenizer,
            FALLBACK,
            named.jinja,
            "the model has none, and this one needs no special tokens",
            named,
        )
    if wanted in NAMED:
        named = NAMED[wanted]
        _require_tokens(tokenizer, wanted, named.tokens)
        return _checked(tokenizer, wanted, named.jinja, "as chosen", named)
    file = Path(wanted).expanduser()
    if file.suffix in (".jinja", ".j2", ".txt") or file.is_file():
        if not file.is_file():
            raise EngineError(
                "data.template", f"there is no template file {file}", "check data.chat_template"
            )
        return _checked(tokenizer, file.name, file.read_text(encoding="utf-8"), "from the file", None)
    raise EngineError(
        "data.template", f"there is no chat template {wanted!r}", did_you_mean(wanted, ["auto", *NAMED])
    )


def render(
    tokenizer: Any,
    template: Template,
    messages: Sequence[Message | dict[str, str]],
    *,
    is_prompt: bool = False,
) -> str:
    """The text of a conversation; with `is_prompt`, up to where the model's answer begins."""
    given = [{"role": m.role, "content": m.text} if isinstance(m, Message) else m for m in messages]
    shown = fold_system(given) if template.folds_system else given
    return str(
        tokenizer.apply_chat_template(
            shown, chat_template=template.jinja, tokenize=False, add_generation_prompt=is_prompt
        )
    )


def fold_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The system prompt put in front of the first question, for templates that know no system role."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    system, rest = messages[0]["content"], list(messages[1:])
    if rest and rest[0]["role"] == "user":
        rest[0] = {"role": "user", "content": f"{system}\n\n{rest[0]['content']}"}
    return rest


def _checked(tokenizer: Any, name: str, jinja: str, why: str, named: Named | None) -> Template:
    folds = named is not None and not named.has_system
    template = Template(name, jinja, _end_tokens(tokenizer, jinja, named), why, folds)
    try:
        render(tokenizer, template, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    except Exception as error:  # jinja's errors and those a template raises itself
        raise EngineError(
            "data.template",
            f"the chat template {name} cannot be used: {_short(error)}",
            "choose another with data.chat_template",
        ) from error
    if not folds and not _takes_system(tokenizer, template):
        return Template(name, jinja, template.end_tokens, why, folds_system=True)
    return template


def _takes_system(tokenizer: Any, template: Template) -> bool:
    messages = [{"role": "system", "content": "SYSTEM-MARK"}, {"role": "user", "content": "a"}]
    try:
        return "SYSTEM-MARK" in render(tokenizer, template, messages)
    except Exception:  # noqa: BLE001 - a template refuses by raising whatever it likes
        return False


def _end_tokens(tokenizer: Any, jinja: str, named: Named | None) -> tuple[str, ...]:
    """Special tokens that the template writes or that the tokenizer ends with."""
    if named is not None and named.end is not None:
        return (named.end,)
    special = {str(t) for t in tokenizer.all_special_tokens}
    added = {str(t) for t in tokenizer.get_added_vocab()}
    usual = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>", "<|endoftext|>", "</s>")
    found = [token for token in usual if token in jinja and token in special | added]
    if tokenizer.eos_token:
        found.append(str(tokenizer.eos_token))
    return tuple(dict.fromkeys(found))


def _require_tokens(tokenizer: Any, name: str, tokens: Sequence[str]) -> None:
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise EngineError(
            "data.template", f"the template {name} writes {missing[0]}, which is no token of this model",
            "choose auto, or alpaca, which needs no special tokens",
        )  # fmt: skip


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
