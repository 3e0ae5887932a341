"""The ways in which chat templates write calls of tools, each read back out of an answer. Torch-free.

Answers are read with their special tokens, which are what most models mark a call by. `head` is a pattern of what stands
before a call's name, or before a list of calls. Every form finds the calls of a text with the place where each begins.
"""

from __future__ import annotations

import ast
import json  # writing alone
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_engine import parsing
from qlora_engine.data.conversation import RowProblem, ToolCall
from qlora_engine.data.formats.calls import arguments_of

ID = re.compile(r"0*c1")
ATTRIBUTE = re.compile('="[^"]*"')
NAME = r"(?P<name>[\w.:-]{1,128})"
CDATA = re.compile(r"\s*<!\[CDATA\[(.*?)\]\]>\s*", re.DOTALL)
BARE_KEY = re.compile(r"([{,]\s*)([\w.-]+)(\s*:)")
CONSTANTS = {"None": None, "null": None, "True": True, "true": True, "False": False, "false": False}
Placed = tuple[int, ToolCall]
MOST_ENDS = 64
"""So many closing brackets are tried as the end of a list of Python calls."""


@dataclass(frozen=True)
class ObjectForm:
    """A call is one JSON object with these keys for name and arguments; `inside` is the key that both stand under."""

    name_key: str
    arguments_key: str
    inside: str | None = None
    id_key: str = "id"

    def placed(self, text: str) -> Iterator[Placed]:
        for value, place in objects(text):
            inner = value.get(self.inside) if self.inside else value
            if isinstance(inner, Mapping) and isinstance(inner.get(self.name_key), str):
                identity = inner.get(self.id_key, value.get(self.id_key))
                given = inner.get(self.arguments_key, {})
                yield from _call(place, inner[self.name_key], given, identity)


@dataclass(frozen=True)
class KeyedForm:
    """A list of objects, each with the name as its one key and the arguments under it."""

    head: str

    def placed(self, text: str) -> Iterator[Placed]:
        for found in re.finditer(self.head, text):
            for value in _listed(text, found.end() - 1):
                if isinstance(value, dict) and len(value) == 1:
                    yield from _call(found.start(), *next(iter(value.items())))


@dataclass(frozen=True)
class BesideForm:
    """The name, `between`, and the arguments as a JSON object."""

    head: str
    between: str

    def placed(self, text: str) -> Iterator[Placed]:
        behind = 0
        for found in re.finditer(self.head + NAME + self._between() + r"\s*(?=\{)", text):
            if found.start() < behind:
                continue  # quoted in the arguments of the one before
            try:
                value, behind = parsing.row_from_json(text, found.end())
            except ValueError:
                continue
            yield from _call(found.start(), found["name"], value)

    def _between(self) -> str:
        """Ids and counts differ from call to call."""
        return re.sub(r"\d+", r"\\d+", re.escape(ID.sub("\0", self.between))).replace("\0", r"[\w-]+")


@dataclass(frozen=True)
class BareForm:
    """The name and its arguments as an object whose keys stand bare and whose texts stand between two `quote`."""

    head: str
    quote: str

    def placed(self, text: str) -> Iterator[Placed]:
        for found in re.finditer(self.head + NAME + r"(?=\{)", text):
            pieces = text[found.end() :].split(self.quote)
            as_json = (json.dumps(p) if n % 2 else _with_quoted_keys(p) for n, p in enumerate(pieces))
            try:
                value, _ = parsing.row_from_json("".join(as_json))
            except ValueError:
                continue
            yield from _call(found.start(), found["name"], value)


@dataclass(frozen=True)
class PairsForm:
    """The name before `after`, then every argument as its key and its value between texts of their own; `close` has the
    key once more where `is_key_again`, behind it `close_end`."""

    head: str
    after: str
    open: str
    middle: str
    close: str
    is_key_again: bool = False
    close_end: str = ""

    def placed(self, text: str) -> Iterator[Placed]:
        head = re.compile(self.head + NAME + _any_attribute(self.after))
        again = "(?P=key)" + re.escape(self.close_end) if self.is_key_again else ""
        pair = re.compile(
            f"{re.escape(self.open)}(?P<key>[^<>\n]{{1,128}}?){_any_attribute(self.middle)}(?P<value>.*?)"
            f"{re.escape(self.close)}{again}", re.DOTALL,
        )  # fmt: skip
        heads = list(head.finditer(text))
        for found, behind in zip(heads, [*(h.start() for h in heads[1:]), len(text)], strict=False):
            pairs = pair.finditer(text, found.end(), behind)
            yield found.start(), ToolCall(found["name"], {p["key"]: _value(p["value"]) for p in pairs})


@dataclass(frozen=True)
class PythonForm:
    """A list of calls as Python writes them, every argument by its name. They are read, never run."""

    head: str

    def placed(self, text: str) -> Iterator[Placed]:
        for found in re.finditer(self.head, text):
            for call in _python_calls(text, found.end() - 1):
                arguments = {str(k.arg): _literal(k.value) for k in call.keywords}
                yield found.start(), ToolCall(ast.unparse(call.func), arguments)


Form = ObjectForm | KeyedForm | BesideForm | BareForm | PairsForm | PythonForm


def objects(text: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Every JSON object of a text that stands in no other one, with its place."""
    place = text.find("{")
    while place >= 0:
        try:
            value, end = parsing.row_from_json(text, place)
        except ValueError:
            end = place + 1
        else:
            if isinstance(value, dict):
                yield value, place
        place = text.find("{", end)


def _call(place: int, name: str, arguments: Any, identity: Any = None) -> Iterator[Placed]:
    try:
        yield place, ToolCall(name, arguments_of(arguments), None if identity is None else str(identity))
    except RowProblem:
        return


def _listed(text: str, place: int) -> list[Any]:
    try:
        value, _ = parsing.row_from_json(text, place)
    except ValueError:
        return []
    return value if isinstance(value, list) else []


def _any_attribute(text: str) -> str:
    """A pattern: an attribute (the type of a value, a count) differs from one to the next."""
    return re.escape(ATTRIBUTE.sub('="\0"', text)).replace("\0", '[^"]*')


def _with_quoted_keys(text: str) -> str:
    return re.sub(r"\bNone\b", "null", BARE_KEY.sub(r'\1"\2"\3', text))


def _value(text: str) -> Any:
    """An argument as JSON where it is some, or as Python writes lists and objects, else as the text it is."""
    quoted = CDATA.fullmatch(text)
    if quoted is not None:
        return quoted[1]
    try:
        return parsing.from_json(text.strip())
    except ValueError:
        pass
    if text.strip()[:1] in ("{", "["):
        node = _parsed(text.strip())
        if node is not None and _is_literal(node):
            return _literal(node)
    return text.strip("\n")


def _python_calls(text: str, place: int) -> list[ast.Call]:
    """The calls of the list that begins at `place`; none where it is no such list."""
    end = place
    for _ in range(MOST_ENDS):
        end = text.find("]", end) + 1
        if not end:
            return []
        piece = text[place:end]
        node = _parsed(piece) or _parsed(
            piece.replace("\n", "\\n")
        )  # some templates write a text's lines as they are
        if isinstance(node, ast.List):
            return [call for call in node.elts if isinstance(call, ast.Call) and _is_plain(call)]
    return []


def _is_plain(call: ast.Call) -> bool:
    return not call.args and all(k.arg is not None and _is_literal(k.value) for k in call.keywords)


def _parsed(text: str) -> ast.expr | None:
    """Python's own reading of an expression; it is not evaluated."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _is_literal(node: ast.expr) -> bool:
    try:
        _literal(node)
    except (ValueError, RecursionError):
        return False
    return True


def _literal(node: ast.expr) -> Any:
    """The value of a JSON-like expression.

    Raises:
        ValueError: it is none.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool | None):
        return node.value
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        if isinstance(value, int | float):
            return -value
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(each) for each in node.elts]
    if isinstance(node, ast.Dict) and all(node.keys):
        return {str(_literal(k)): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k}
    raise ValueError("it is no value")
