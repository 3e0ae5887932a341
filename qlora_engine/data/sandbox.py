"""Runs chat templates: transformers' rules for them, with an account of every character and an end to every render.

A template is a program that came with a model. It gets no attribute of a Python object, no more than `SECONDS` and no
text longer than `LONGEST`; a loop without end is ended by name, and in C by `last_resort`. Torch-free.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from qlora_engine.data import last_resort
from qlora_engine.data.traced import Traced, aligned, joined, opaque

SECONDS = 5.0
LONGEST = 64 * 2**20
MOST_ELEMENTS = 2_000_000
WIDEST = 100_000
CHECK_EVERY = 64
TRACED_FILTERS = {
    "trim",
    "string",
    "upper",
    "lower",
    "title",
    "capitalize",
    "default",
    "d",
    "first",
    "last",
    "list",
}
"""Filters that call the text's own methods, or hand it through."""
WIDENING = ("center", "indent", "batch", "slice", "wordwrap", "truncate", "round")
FORMATTING = ("format", "format_map", "ljust", "rjust", "center", "zfill", "expandtabs")
ASKING = frozenset(
    ["startswith", "endswith", "strip", "lstrip", "rstrip", "split", "find", "count", "isspace"]
)
"""Methods of a plain text that make nothing large and keep no account."""
INNER = frozenset(["_loop_vars", "_block_vars"])
"""What jinja itself hands to every call."""
DICT_ATTRIBUTES = frozenset(dir(dict))


class TemplateEndless(Exception):  # noqa: N818 - what the template is
    """The template ran too long or wrote too much; its text says which."""


class TemplateRefused(Exception):  # noqa: N818 - the template's own decision
    """What the template raised, in its own words."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` of transformers: the block is rendered as any other text."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_block"), [], [], body).set_lineno(line)

    def _block(self, caller: Callable[[], str]) -> str:
        return caller()


class _Generator(CodeGenerator):
    """Sends `~` through the account."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for argument in node.nodes:
            self.visit(argument, frame)
            self.write(", ")
        self.write("))")


class TracingEnvironment(ImmutableSandboxedEnvironment):
    """One for each template. Not for two renders at a time in one thread each: the clock is its own."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        self.name = ""
        self.is_traced = True
        self._ends_at = 0.0
        self._ticks = 0
        self.concat = self._concat  # type: ignore[method-assign]
        self.filters = {name: self._filter(name, function) for name, function in self.filters.items()}
        self.filters |= {"tojson": self._tojson, "join": self._join, "replace": self._replace}
        self.globals |= {"raise_exception": _raise, "strftime_now": _strftime}
        for name in ("lipsum", "cycler"):
            self.globals.pop(name, None)

    @contextmanager
    def timed(self, seconds: float, *, is_traced: bool = True) -> Iterator[None]:
        """The clock of one render, and whether it keeps the account."""
        before = self._ends_at, self.is_traced
        self._ends_at, self.is_traced = time.monotonic() + seconds, is_traced
        last_resort.begin()
        try:
            yield
        finally:
            last_resort.over()
            self._ends_at, self.is_traced = before

    def tick(self) -> None:
        """Looked at in every loop and call."""
        self._ticks += 1
        if self._ticks % CHECK_EVERY == 0 and time.monotonic() > self._ends_at:
            raise TemplateEndless(f"the chat template {self.name} runs without an end")

    def watched(self, iterable: Any) -> Any:
        """What a loop goes over, with an eye on the clock."""
        return _Watched(self, iterable) if hasattr(iterable, "__len__") else self._each(iterable)

    def _each(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for element in iterable:
            self.tick()
            yield element

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Call(
                nodes.EnvironmentAttribute("watched"), [loop.iter], [], None, None, lineno=loop.lineno
            )
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As jinja's sandbox has it, sooner for what every template asks: keys of messages, loops, methods of texts."""
        kind = type(obj)
        if kind is dict and attribute not in DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        is_text = kind is Traced or kind is str
        is_plain = (
            kind is LoopContext or kind is Namespace or (is_text and not attribute.startswith("format"))
        )
        if is_plain and not attribute.startswith("_"):
            with suppress(AttributeError):
                return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.tick()
        is_plain = type(getattr(function, "__self__", None)) is str and function.__name__ in ASKING
        if is_plain and INNER.issuperset(kwargs):
            return function(*args)
        method = getattr(function, "__wrapped__", function)  # jinja wraps `format`
        owner = getattr(method, "__self__", None)
        if not isinstance(owner, str):
            return super().call(context, function, *args, **kwargs)
        return self._call_of_text(context, function, method.__name__, owner, args, kwargs)

    def _call_of_text(
        self, context: Any, function: Any, name: str, owner: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:  # fmt: skip
        """A text's own method; what it makes of traced arguments keeps the account."""
        if name in FORMATTING:
            self._limit_width(owner, args)
        self._limit_made(name, owner, args)
        if name == "join":
            return self._join(list(*args), owner)
        if name == "replace" and type(owner) is str and len(args) > 1 and isinstance(args[1], Traced):
            return Traced.of(owner, 0).replace(*args)
        found = super().call(context, function, *args, **kwargs)
        if name in ("format", "format_map"):
            return aligned(str.__str__(found), (*args, *kwargs.values()))
        if type(found) is str:
            return opaque(found, owner) if isinstance(owner, Traced) else found
        return found

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str and len(left) + len(right) < LONGEST:
            return left + right
        self._limit(operator, left, right)
        found = super().call_binop(context, operator, left, right)
        if operator == "%" and type(found) is str:
            return aligned(found, right if isinstance(right, tuple) else (right,))
        return found

    def _concat(self, pieces: Iterable[Any]) -> str:
        found, size = [], 0
        for piece in pieces:
            size += len(piece) if isinstance(piece, str) else 0
            if size > LONGEST:
                raise TemplateEndless(
                    f"the chat template {self.name} writes more than {LONGEST:,} characters"
                )
            found.append(piece)
        self.tick()
        return joined(found) if self.is_traced else "".join(map(str, found))

    def _limit(self, operator: str, left: Any, right: Any) -> None:
        """No sum, product or power that fills the memory."""
        self.tick()
        size = MOST_ELEMENTS
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            size = len(left) + len(right)
            limit = LONGEST if isinstance(left, str) else MOST_ELEMENTS
        elif operator == "*" and hasattr(left, "__len__") != hasattr(right, "__len__"):
            many, often = (left, right) if hasattr(left, "__len__") else (right, left)
            size, limit = len(many) * (often if isinstance(often, int) else 1), MOST_ELEMENTS
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (max(right, 1) if operator == "**" else 1) + right.bit_length()
            size, limit = bits, WIDEST
        elif operator == "%" and isinstance(left, str):
            return self._limit_width(left, ())
        else:
            return None
        if size > limit:
            raise TemplateEndless(f"the chat template {self.name} makes something too large")
        return None

    def _limit_width(self, text: str, args: Sequence[Any]) -> None:
        """No formatting to a width that fills the memory."""
        widths = [int(d) for d in _digits(text) if len(d) < 12] + [a for a in args if isinstance(a, int)]
        if max(widths, default=0) > WIDEST or any(len(d) >= 12 for d in _digits(text)):
            raise TemplateEndless(f"the chat template {self.name} makes something too large")

    def _limit_made(self, name: str, owner: str, args: Sequence[Any]) -> None:
        """No text made of many long pieces that fills the memory."""
        size = 0
        if name == "replace" and len(args) > 1:
            size = len(owner) + (len(owner) + 1) * len(str(args[1]))
            size = len(owner) + owner.count(str(args[0])) * len(str(args[1])) if size > LONGEST else size
        elif name == "translate" and args and isinstance(args[0], Mapping):
            size = len(owner) * max((len(v) for v in args[0].values() if isinstance(v, str)), default=1)
        if size > LONGEST:
            raise TemplateEndless(f"the chat template {self.name} makes something too large")

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter of jinja that keeps the account, ticks and makes nothing too large."""

        def called(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            widths = (*args[1:], *kwargs.values())
            if name in WIDENING and any(type(a) is int and abs(a) > WIDEST for a in widths):
                raise TemplateEndless(f"the chat template {self.name} makes something too large")
            found = function(*args, **kwargs)
            if type(found) is str and name not in TRACED_FILTERS:
                return opaque(found, *args, *kwargs.values())
            return found

        for mark in ("jinja_pass_arg", "jinja_async_variant"):
            if hasattr(function, mark):
                setattr(called, mark, getattr(function, mark))
        return called

    def _tojson(
        self, value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # fmt: skip
        """JSON as transformers writes it: without HTML escapes."""
        self.tick()
        if isinstance(indent, int) and indent > 64:
            raise TemplateEndless(f"the chat template {self.name} makes something too large")
        if isinstance(separators, list):
            separators = tuple(separators)
        text = json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return opaque(text, value)

    def _join(self, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
        self.tick()
        if attribute is not None:
            value = [self.getitem(item, attribute) for item in value]
        pieces = [piece if isinstance(piece, str) else str(piece) for piece in value]
        if sum(map(len, pieces)) + len(d) * len(pieces) > LONGEST:
            raise TemplateEndless(f"the chat template {self.name} makes something too large")
        return joined(pieces, d)

    def _replace(self, s: Any, old: str, new: str, count: int | None = None) -> str:
        self.tick()
        text = s if isinstance(s, str) else str(s)
        self._limit_made("replace", text, (old, new))
        if isinstance(text, Traced) or isinstance(new, Traced):
            whole = text if isinstance(text, Traced) else Traced.of(text, 0)
            return whole.replace(old, new, -1 if count is None else count)
        return text.replace(str(old), str(new), -1 if count is None else count)


class _Watched:
    """A list or text as a loop goes over it; its length is known to the loop."""

    def __init__(self, environment: TracingEnvironment, iterable: Any) -> None:
        self._environment, self._iterable = environment, iterable

    def __len__(self) -> int:
        return len(self._iterable)

    def __iter__(self) -> Iterator[Any]:
        return self._environment._each(self._iterable)


@lru_cache(maxsize=32)
def compiled(source: str, name: str) -> jinja2.Template:
    """The template, compiled once.

    Raises:
        jinja2.TemplateError: it is no valid template.
    """
    environment = TracingEnvironment()
    environment.name = name
    code = environment.compile(source, filename=last_resort.FILE + name)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


@lru_cache(maxsize=32)
def variables_of(source: str) -> frozenset[str]:
    """The names that a template reads and does not set: what it may be given."""
    from jinja2 import meta

    try:
        return frozenset(meta.find_undeclared_variables(TracingEnvironment().parse(source)))
    except jinja2.TemplateError:
        return frozenset()  # running it says why


def run(source: str, name: str, values: Mapping[str, Any], seconds: float = SECONDS) -> Traced:
    """Render a template once.

    Raises:
        TemplateRefused: it raised, with its words.
        TemplateEndless: it was ended.
    """
    found = _run(source, name, values, seconds, is_traced=True)
    return found if isinstance(found, Traced) else Traced.of(found, 0)


def run_plain(source: str, name: str, values: Mapping[str, Any], seconds: float = SECONDS) -> str:
    """Render a template once, without an account of where its characters come from; `values` are plain texts.

    Raises:
        TemplateRefused, TemplateEndless: as `run`.
    """
    return str.__str__(_run(source, name, values, seconds, is_traced=False))


def _run(source: str, name: str, values: Mapping[str, Any], seconds: float, *, is_traced: bool) -> str:
    try:
        template = compiled(source, name)
        environment = template.environment
        assert isinstance(environment, TracingEnvironment)
        with environment.timed(seconds, is_traced=is_traced):
            return template.render(values)
    except TemplateEndless:
        raise
    except RecursionError as error:
        raise TemplateEndless(f"the chat template {name} calls itself without an end") from error
    except MemoryError as error:
        raise TemplateEndless(f"the chat template {name} makes something too large") from error
    except Exception as error:  # a template raises whatever its author chose
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TemplateRefused(lines[0][:200]) from error


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


def _strftime(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - as transformers has it


def _digits(text: str) -> list[str]:
    found, run_ = [], ""
    for character in text:
        if character.isdigit():
            run_ += character
        elif run_:
            found.append(run_)
            run_ = ""
    return [*found, run_] if run_ else found
