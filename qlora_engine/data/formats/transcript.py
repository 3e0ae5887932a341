"""Conversations written out as one text, each turn behind a mark: `Human:`, `USER:`, ChatML, [INST], Llama 3, Gemma.

The marks are the file's, not the model's: the turns are read out of them and rendered by the template of the model that is trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qlora_engine import parsing
from qlora_engine.data.conversation import Message, RowProblem
from qlora_engine.data.formats import calls, context, turns
from qlora_engine.data.formats.columns import text_of
from qlora_engine.data.formats.kind import Detection, Format, Keys, Row, Said

FIELDS = {"text": ("text", "chat", "conversation", "dialog", "dialogue", "transcript", "prompt", "content")}
BEGINS = ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>")
ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<end_of_turn>", "<eos>", "</s>", "<s>")
"""Tokens of the file's own template around a conversation and its turns. Found without regular expressions, which take
forever over a text of blanks."""
NAMES = "human|user|assistant|ai|gpt|chatgpt|bot|chatbot|system|function response|tool|observation"
SYSTEM_INSIDE = ("<<SYS>>", "<</SYS>>")
CALL, SYSTEM_MARK = "<functioncall>", "SYSTEM:"
"""As Glaive's set writes them, the second in a column of its own."""


@dataclass(frozen=True)
class Style:
    """How turns are marked: `mark` finds where one begins, its group is the role; `roles` where the mark is no name."""

    mark: re.Pattern[str]
    roles: Mapping[str, str] | None = None
    has_preamble: bool = False

    def role(self, written: str) -> str:
        if self.roles is not None:
            return self.roles[written]
        named = written.strip().lower().replace(" ", "_")
        role = turns.ROLES.get(named)
        if role is None:
            raise RowProblem(f"a turn has the unknown role {written.strip()!r}")
        return role


STYLES = (
    Style(re.compile(r"<\|im_start\|>(\w+)\n")),
    Style(re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n*")),
    Style(re.compile(r"<start_of_turn>(\w+)\n")),
    Style(re.compile(r"(\[/?INST\])"), {"[INST]": "user", "[/INST]": "assistant"}),
    Style(re.compile(r"<\|(user|assistant|system)\|>\n?")),
    Style(re.compile(r"^<(human|bot)>:", re.MULTILINE)),
    Style(re.compile(rf"^({NAMES}):(?=\s|\Z)", re.MULTILINE | re.IGNORECASE)),
    Style(re.compile(r"(?:^|(?<=\s)|(?<=</s>))(USER|ASSISTANT):(?=\s|\Z)"), has_preamble=True),
)  # fmt: skip
"""In the order in which they are tried: what can hardly be anything else comes first."""


def style_of(text: str) -> Style | None:
    """How the turns of `text` are marked; None where it is no conversation: it has a question and, after it, an answer."""
    for style in STYLES:
        marks = list(style.mark.finditer(text))
        if not marks or not (style.has_preamble or not _said_before(text, marks[0])):
            continue
        try:
            roles = [style.role(mark[1]) for mark in marks]
        except RowProblem:
            continue
        if "user" in roles and "assistant" in roles[roles.index("user") :]:
            return style
    return None


def read_text(text: str) -> list[Message]:
    """The turns of a conversation written out.

    Raises:
        RowProblem: it is none.
    """
    style = style_of(text)
    if style is None:
        raise RowProblem("it has no marked turns of a question and an answer")
    return read_marked(text, style)


def read_marked(text: str, style: Style) -> list[Message]:
    """The turns of a text that has a mark of this style; what stands before the first is a system prompt."""
    marks = list(style.mark.finditer(text))
    before = _said_before(text, marks[0])
    found = [Message("system", before)] if before else []
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        content = _without_ends(text[mark.end() : after.start() if after else len(text)])
        found += _turn(style.role(mark[1]), content)
    return found


def _said_before(text: str, mark: re.Match[str]) -> str:
    """What stands before the first turn, without a token that begins a text."""
    before = text[: mark.start()].strip()
    begin = next((one for one in BEGINS if before.startswith(one)), "")
    return _without_ends(before[len(begin) :])


def _without_ends(text: str) -> str:
    """Without blanks around it and tokens that end a turn."""
    text = text.strip()
    while end := next((one for one in ENDS if text.endswith(one)), ""):
        text = text[: -len(end)].rstrip()
    return text


def _turn(role: str, content: str) -> Iterator[Message]:
    opening, closing = SYSTEM_INSIDE
    if role == "user" and content.startswith(opening) and closing in content:
        system, content = content[len(opening) :].split(closing, 1)
        yield Message("system", system.strip())
        content = content.strip()
    if role != "assistant":
        yield Message(role, content)
    else:
        yield _call(content) or turns.answer(content)


def _call(content: str) -> Message | None:
    """A call as Glaive's set writes it, its arguments JSON between single quotes; None for what is text."""
    if not content.startswith(CALL):
        return None
    written = content[len(CALL) :].strip()
    start, end = written.find("'{"), written.rfind("}'")
    try:
        if not 0 <= start < end:
            return Message("assistant", "", calls=calls.from_text(written))
        outer = parsing.from_json(f"{written[:start]}null{written[end + 2 :]}")
        return Message(
            "assistant", "", calls=calls.from_text({**outer, "arguments": written[start + 1 : end + 1]})
        )
    except (RowProblem, ValueError, TypeError):
        return None


def read(row: Row, detection: Detection, keys: Keys) -> Said:
    column = detection.columns["text"]
    keys.use(column)
    talk = context.with_system(row, read_text(text_of(row, column, "text")), keys)
    if talk[0].role == "system":
        talk[0] = Message("system", talk[0].text.removeprefix(SYSTEM_MARK).strip())
    return Said(tuple(talk), context.tools_of(row, keys))


def test(rows: Sequence[Row], columns: Sequence[str], chosen: Mapping[str, str]) -> str:
    """Every text is a conversation, and all are marked alike: one play among stories makes no conversations of them."""
    for column in [chosen["text"]] if "text" in chosen else FIELDS["text"]:
        texts = [row.get(column) for row in rows]
        styles = [style_of(text) if isinstance(text, str) else None for text in texts]
        if styles and styles[0] is not None and all(style is styles[0] for style in styles):
            mark = styles[0].mark.search(str(texts[0]))
            return f"the texts in {column!r} are conversations whose turns begin with {mark[0].strip() if mark else ''!r} and the like"
    return ""


FORMAT = Format(
    "transcript", "Conversations written out as one text (Human:, ChatML, [INST])", FIELDS, test, read
)
