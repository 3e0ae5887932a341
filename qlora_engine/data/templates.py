"""Chat templates: the model's own, a named one, or a Jinja file. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from qlora_engine import parsing
from qlora_engine.config import DataSettings
from qlora_engine.data import answers, ending, layout, probing, skeleton
from qlora_engine.data.conversation import Conversation, Message, RowProblem, talk
from qlora_engine.data.layout import Layout, Rendered, Source
from qlora_engine.data.markers import markers_of
from qlora_engine.data.policy import Policy
from qlora_engine.data.sandbox import TemplateEndless, TemplateRefused
from qlora_engine.data.skeleton import Filled
from qlora_engine.data.wording import Shape
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


@dataclass(frozen=True, eq=False)
class Template:
    """The chosen template, laid out for the run's policy. `why` is a sentence."""

    name: str
    jinja: str
    why: str
    source: Source
    layout: Layout
    policy: Policy

    @property
    def folds_system(self) -> bool:
        """Whether the system prompt is put into the first question."""
        return self.layout.shape.folds_system

    @property
    def exported(self) -> str:
        """The template for other programs: the switches of the run's policy are set inside it, what a prompt has too much
        or too little against trained answers is mended, and ends that it leaves out are written in."""
        return self._exported.jinja

    @property
    def lacking(self) -> str | None:
        """A sentence on the ends that the exported template leaves out against training; None when there are none."""
        return self._exported.lacking

    @cached_property
    def _exported(self) -> ending.Exported:
        return ending.exported(self.source, self.layout, self.policy)

    @property
    def opens_thoughts(self) -> bool:
        """Whether its prompts begin a thought, while answers without one were trained without that beginning."""
        too_much = probing.prompt_edit(self.source, self.layout.shape, probing.SAY)[0]
        return too_much > self.layout.prompt_cut

    @property
    def end_tokens(self) -> tuple[str, ...]:
        """The texts that may end an answer, and that generation stops on; each is one token."""
        eos = dict(self.source.specials).get("eos_token")
        return tuple(dict.fromkeys([*self.layout.ends.stops, *([eos] if eos else [])]))


_MEMORIES: WeakKeyDictionary[Template, dict[Policy, answers.Memory]] = WeakKeyDictionary()


def choose(tokenizer: Any, wanted: str, policy: Policy | None = None) -> Template:
    """The model's own template, a named one, or a file. A model without one gets a plain one that needs no special
    tokens, and it is said.

    Raises:
        EngineError: no such template, its tokens are not in the vocabulary, or it is not valid Jinja.
    """
    policy = policy or Policy()
    if wanted == "auto":
        own = own_template(tokenizer)
        if own is not None:
            return _checked(tokenizer, "the model's own", own, "it comes with the model", policy)
        why = "the model has none, and this one needs no special tokens"
        return _checked(tokenizer, FALLBACK, NAMED[FALLBACK].jinja, why, policy)
    if wanted in NAMED:
        named = NAMED[wanted]
        _require_tokens(tokenizer, wanted, named.tokens)
        return _checked(tokenizer, wanted, named.jinja, "as chosen", policy, named)
    file = Path(wanted).expanduser()
    if file.suffix in (".jinja", ".j2", ".txt") or file.is_file():
        if not file.is_file():
            raise EngineError(
                "data.template", f"there is no template file {file}", "check data.chat_template"
            )
        return _checked(tokenizer, file.name, _read(file), "from the file", policy)
    raise EngineError(
        "data.template", f"there is no chat template {wanted!r}", did_you_mean(wanted, ["auto", *NAMED])
    )


def chosen(tokenizer: Any, settings: DataSettings) -> Template:
    """The template of a run under its policy: what trains, chats, scores, exports and proves asks here.

    Raises:
        EngineError: as `choose`.
    """
    return choose(tokenizer, settings.chat_template, Policy.of(settings))


def template_end_ids(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer by the model's own template; none where it has no usable one."""
    try:
        ends = choose(tokenizer, "auto").end_tokens if own_template(tokenizer) else ()
    except EngineError:
        return ()
    vocabulary = tokenizer.get_vocab()
    return tuple(vocabulary[end] for end in ends if end in vocabulary)


def own_template(tokenizer: Any) -> str | None:
    """The template that came with the model; of several, the one for tools, which knows everything the others do."""
    stored = tokenizer.chat_template
    if isinstance(stored, Mapping):
        stored = stored.get("tool_use") or stored.get("default") or next(iter(stored.values()), None)
    return stored if isinstance(stored, str) and stored.strip() else None


def render(
    tokenizer: Any, template: Template, messages: Sequence[Message | Mapping[str, Any]], *, is_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:  # fmt: skip
    """The text of a conversation as training has it; with `is_prompt`, up to where the model's answer begins.

    Raises:
        RowProblem: the template refuses it, in its own words.
    """
    given = template.policy.kept(tuple(m if isinstance(m, Message) else talk([m])[0] for m in messages))
    with _told():
        text = ending.as_trained(
            template.source, template.layout, template.policy, given, tools, is_prompt=is_prompt
        )
    is_later = is_prompt and any(message.is_answer for message in given)
    return _before_an_answer(text, given, template, tools) if is_later else text


def _before_an_answer(
    prompt: str, given: Sequence[Message], template: Template, tools: Sequence[Mapping[str, Any]]
) -> str:
    """A later turn's prompt as trained rows have it: a template may write earlier turns in another way when an answer
    follows them, without their thoughts or with another end behind a tool's result."""
    is_removed = template.policy.reasoning == "remove"
    policy = replace(template.policy, train_on="answers", reasoning="remove" if is_removed else "train")
    follows = probing.SAY if is_removed else replace(probing.SAY, reasoning="rone")
    try:
        found = laid_out(Conversation(0, (*given, follows), tuple(tools)), template, policy)
    except RowProblem:
        return prompt
    whole = str.__str__(found.text)
    return prompt if whole.startswith(prompt) or not found.spans else whole[: found.spans[-1][0]]


def laid_out(conversation: Conversation, template: Template, policy: Policy) -> answers.Found:
    """The text of a row with the spans that are trained.

    Raises:
        RowProblem: the template refuses it in its own words, or the answers cannot be told from the rest.
    """
    memory = memory_of(template, policy)
    messages = policy.kept(conversation.messages)

    def prompt(number: int) -> Rendered:
        memory.renders += 1
        return _rendered(template, messages[:number], conversation.tools, is_prompt=True)

    def again(others: Sequence[Message], is_prompt: bool) -> Rendered:
        memory.renders += 1
        return _rendered(template, others, conversation.tools, is_prompt=is_prompt)

    memory.rows += 1
    memory.renders += 1
    rendered = _rendered(template, messages, conversation.tools)
    return answers.find(rendered, messages, template.source, template.layout, policy, prompt, again, memory)


def filled(conversation: Conversation, template: Template, policy: Policy) -> Filled:
    """The same as `laid_out` in bytes; most rows without being traced.

    Raises:
        RowProblem: as `laid_out`.
    """
    memory = memory_of(template, policy)
    messages = policy.kept(conversation.messages)
    key = None if conversation.tools else skeleton.shape_of(messages)
    plain = None if key is None else _plain(template, messages, memory, key)
    if key is None or plain is None:
        return Filled.of(laid_out(conversation, template, policy))
    found = memory.shapes[key].filled(messages, plain) if key in memory.shapes else None
    if found is not None:
        memory.rows += 1
        return found
    traced = laid_out(conversation, template, policy)
    skeleton.learn(memory.shapes, key, traced, messages, plain)
    return Filled.of(traced)


def _plain(
    template: Template, messages: Sequence[Message], memory: answers.Memory, key: skeleton.Key
) -> str | None:
    """The text of a row whose shape may be known; None for one that must be traced."""
    variants = memory.shapes.get(key)
    if variants is not None and variants.is_hopeless:
        return None
    if skeleton.quotes(messages, *layout.quoted(template.source)):
        return None
    memory.plain_renders += 1
    try:
        return layout.render_plain(template.source, template.layout.shape, messages)
    except (TemplateRefused, TemplateEndless):
        return None


def memory_of(template: Template, policy: Policy) -> answers.Memory:
    """What was learned of a template under a policy; how many rows were rendered, with how many renders."""
    return _MEMORIES.setdefault(template, {}).setdefault(policy, answers.Memory())


def _rendered(
    template: Template, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, is_prompt: bool = False
) -> Rendered:  # fmt: skip
    with _told():
        return layout.render(template.source, template.layout.shape, messages, tools, is_prompt=is_prompt)


@contextmanager
def _told() -> Iterator[None]:
    """What a template does with a row, as the row's own problem."""
    try:
        yield
    except TemplateRefused as refused:
        raise RowProblem(f"the chat template refuses it: {refused}") from refused
    except TemplateEndless as endless:
        raise RowProblem(str(endless)) from endless


def _checked(
    tokenizer: Any, name: str, jinja: str, why: str, policy: Policy, named: Named | None = None
) -> Template:
    specials = tuple(
        (key, str(value)) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)
    )
    source = Source(jinja, name, specials, markers_of(tokenizer, jinja), _known_ends(tokenizer))
    shape = Shape(folds_system=named is not None and not named.has_system)
    try:
        return Template(name, jinja, why, source, _layout(source, policy.reasoning, shape), policy)
    except (TemplateRefused, TemplateEndless) as error:
        raise EngineError(
            "data.template",
            f"the chat template {name} cannot be used: {error}",
            "choose another with data.chat_template",
        ) from error


_layout = lru_cache(maxsize=64)(probing.find_layout)


def _known_ends(tokenizer: Any) -> tuple[str, ...]:
    """What the tokenizer and the model's generation config name as ends."""
    found = [str(tokenizer.eos_token)] if tokenizer.eos_token else []
    file = Path(str(getattr(tokenizer, "name_or_path", "") or ".")) / "generation_config.json"
    if file.is_file():
        try:
            ids = parsing.object_from_json(file.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError):
            ids = None
        for number in ids if isinstance(ids, list) else [ids]:
            token = tokenizer.convert_ids_to_tokens(number) if isinstance(number, int) else None
            found += [token] if isinstance(token, str) else []
    return tuple(dict.fromkeys(found))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(
            "data.template", f"the template file {file} cannot be read: {error}", "check data.chat_template"
        ) from error


def _require_tokens(tokenizer: Any, name: str, tokens: Sequence[str]) -> None:
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise EngineError(
            "data.template", f"the template {name} writes {missing[0]}, which is no token of this model",
            "choose auto, or alpaca, which needs no special tokens",
        )  # fmt: skip
