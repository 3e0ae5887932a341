"""Whether chat templates are trained rightly: a fixed list of conversations, judged by their tokens alone.

Independent of how the engine finds answers: every part has words of its own, and what is trained is decoded and looked
at; the plain text is what transformers renders; markers are counted against the same conversation without quoted ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from qlora_engine.data.conversation import Conversation, Message, RowProblem, ToolCall
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import choose, memory_of
from qlora_engine.data.tokenize import TokenRow, tokenize
from qlora_engine.errors import EngineError
from tests.support.template_tokenizer import BOS, EOS, MARKER, TOOL, tokenizer_for


@dataclass(frozen=True)
class Case:
    """One conversation. `answers`: what must be trained, in order; `unseen`: what must not."""

    name: str
    messages: tuple[Message, ...]
    answers: tuple[tuple[str, ...], ...]
    unseen: tuple[str, ...]
    tools: tuple[Any, ...] = ()
    policy: Policy = field(default_factory=Policy)


@dataclass
class Verdict:
    """What became of a template. `faults` are wrong, `refused` are rows that the template itself refuses."""

    name: str
    faults: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    rows: int = 0
    renders: int = 0


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str, reasoning: str | None = None, **more: Any) -> Message:
    return Message("assistant", text, reasoning, **more)


CODE = "```python\nif codeword:\n\n\n    print('a')\n\tprint('b')  \n```\nlastword"
UNICODE = "Zażółć gęślą jaźń 日本語 🙂 e\u0301 unicodeword"
CALL = Message("assistant", "", calls=(ToolCall("weatherfn", {"town": "Ghentword"}, "c1"),))
RESULT = Message("tool", '{"rain": "resultword"}', call_id="c1", name="weatherfn")


def cases(markers: Sequence[str]) -> list[Case]:
    """The fixed list. `markers` are quoted in one of them."""
    quoted = f"Quote {' '.join(markers)} now"
    return [
        Case("one turn", (user("userone"), said("answerone")), (("answerone",),), ("userone",)),
        Case(
            "several turns with system",
            (Message("system", "systemone"), user("userone"), said("answerone"), user("usertwo"), said("answertwo"),
             user("userthree"), said("answerthree")),
            (("answerone",), ("answertwo",), ("answerthree",)), ("systemone", "userone", "usertwo", "userthree"),
        ),
        Case("unicode", (user("Ünïuser"), said(UNICODE)), ((UNICODE,),), ("Ünïuser",)),
        Case(
            "own markers",
            (user(f"userone {quoted}"), said(f"answerone {quoted} answerend"), user("usertwo"), said("answertwo")),
            ((f"answerone {quoted} answerend",), ("answertwo",)), ("userone", "usertwo"),
        ),
        Case("code", (user("userone"), said(CODE)), ((CODE,),), ("userone",)),
        Case(
            "reasoning",
            (user("userone"), said("answerone", "thoughtone"), user("usertwo"), said("answertwo", "thoughttwo")),
            (("answerone",), ("answertwo",)), ("userone", "usertwo"),
        ),
        Case(
            "reasoning as context",
            (user("userone"), said("answerone", "thoughtone"), user("usertwo"), said("answertwo", "thoughttwo")),
            (("answerone",), ("answertwo",)), ("userone", "usertwo", "thoughtone", "thoughttwo"),
            policy=Policy(reasoning="context"),
        ),
        Case(
            "reasoning removed",
            (user("userone"), said("answerone", "thoughtone"), user("usertwo"), said("answertwo", "thoughttwo")),
            (("answerone",), ("answertwo",)), ("userone", "usertwo", "thoughtone", "thoughttwo"),
            policy=Policy(reasoning="remove"),
        ),
        Case(
            "an empty answer", (user("userone"), said(""), user("usertwo"), said("answertwo")),
            (("answertwo",),), ("userone", "usertwo"),
        ),
        Case(
            "an empty answer trained", (user("userone"), said(""), user("usertwo"), said("answertwo")),
            ((), ("answertwo",)), ("userone", "usertwo"), policy=Policy(empty_answers="train"),
        ),
        Case(
            "tool call and result", (user("userone"), CALL, RESULT, said("answertwo")),
            (("weatherfn", "Ghentword"), ("answertwo",)), ("userone", "resultword", "defword", "townword"), (TOOL,),
        ),
        Case("two answers", (user("userone"), said("answerone"), said("answertwo")), (("answerone",), ("answertwo",)), ("userone",)),
    ]  # fmt: skip


def plain(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any] = (), **switches: Any) -> str:
    """The conversation as transformers itself renders it.

    Raises:
        Exception: whatever the template raises.
    """
    turns = [_openai(m) for m in messages]
    more = {"functions": "[]", "datetime": datetime.now().strftime("%B %d %Y"), **switches}  # noqa: DTZ005
    try:
        return str(tokenizer.apply_chat_template(turns, tools=list(tools) or None, tokenize=False, **more))
    except TypeError:  # it goes over the tools without asking whether there are any
        return str(tokenizer.apply_chat_template(turns, tools=list(tools), tokenize=False, **more))


def with_null(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any]) -> str:
    """The same by jinja alone: transformers drops a content of null, which some templates ask for beside calls."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = json.dumps
    turns = [_openai(m, is_null=True) for m in messages]
    return str(
        environment.from_string(tokenizer.chat_template).render(
            messages=turns, tools=list(tools), bos_token=BOS, eos_token=tokenizer.eos_token
        )
    )


def _openai(message: Message, *, is_null: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.reasoning:
        found |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), message.reasoning)
    if message.calls:
        if is_null:
            found["content"] = None
        found["tool_calls"] = [
            {"id": c.id, "type": "function",
             "function": {"name": c.name, "arguments": json.dumps(c.arguments) if is_null else c.arguments}}
            for c in message.calls
        ]  # fmt: skip
    if message.role == "tool":
        found |= {"tool_call_id": message.call_id, "name": message.name}
    return found


def is_paired(marker: list[str]) -> bool:
    """Whether it closes something: a tag, or a marker with `end` in its name, or one that mirrors another."""
    return any(m.startswith("</") or "end｜" in m or m.endswith(("_call|>", "end|>")) for m in marker)


class Judge:
    """One template with its tokenizer."""

    def __init__(self, name: str, jinja: str) -> None:
        self.verdict = Verdict(name)
        self.tokenizer = tokenizer_for(jinja)
        self.specials = {t.content for t in self.tokenizer.added_tokens_decoder.values()}
        self.jinja = jinja
        self.ends = self._ends()

    def markers(self) -> list[str]:
        """Some to quote: the ends, and others."""
        found = [*sorted(self.ends), *sorted(self.specials - {BOS, EOS})]
        return list(dict.fromkeys(found))[:6]

    def judge(self, more: Sequence[Case] = ()) -> Verdict:
        for case in (*cases(self.markers()), *more):
            try:
                self._judge(case)
            except EngineError as error:
                self._fault(case, f"refused as a whole: {error}")
            except Exception as error:  # noqa: BLE001 - a crash is a verdict, too
                self._fault(case, f"crashed: {type(error).__name__}: {error}")
        return self.verdict

    def _judge(self, case: Case) -> None:
        template = choose(self.tokenizer, "auto", case.policy)
        conversation = Conversation(1, case.messages, case.tools)
        (row,) = tokenize([conversation], self.tokenizer, template, case.policy)
        memory = memory_of(template, case.policy)
        self.verdict.rows, self.verdict.renders = (
            self.verdict.rows + memory.rows,
            self.verdict.renders + memory.renders,
        )
        if isinstance(row, RowProblem):
            self._refused(case, row)
            return
        self.verdict.notes |= set(row.notes)
        switches = dict(template.layout.shape.switches)
        is_folded = template.layout.shape.folds_system and case.messages[0].role == "system"
        faults = self.faults(case, row, template.end_tokens)
        for fault in faults if is_folded else [*faults, *self._plain_faults(case, row, switches)]:
            self._fault(case, fault)

    def faults(self, case: Case, row: TokenRow, stops: Sequence[str]) -> list[str]:
        """Everything wrong with a tokenized row."""
        spans = self._spans(row)
        texts = [self.tokenizer.decode(ids) for ids in spans]
        found = [f"{word} is trained" for word in case.unseen if any(word in text for text in texts)]
        if any("only read" in note for note in row.notes):
            case = replace(case, answers=tuple(wanted for wanted in case.answers if wanted))
        if len(texts) != len(case.answers):
            return [*found, f"{len(texts)} trained spans for {len(case.answers)} answers: {texts}"]
        for wanted, text, ids in zip(case.answers, texts, spans, strict=True):
            if case.tools and text.count("{") != text.count("}"):
                found.append(f"a call is ended before it is closed: {text!r}")
            found += [f"{word!r} is not trained in {text!r}" for word in wanted if word.strip() not in text]
            found += self._end_faults(wanted, text, ids, stops)
        return [*found, *self._marker_faults(case, row), *self._reasoning_faults(case, row, texts)]

    def _end_faults(
        self, wanted: tuple[str, ...], text: str, ids: list[int], stops: Sequence[str]
    ) -> list[str]:
        end = self.tokenizer.decode(ids[-1:])
        found = (
            [] if end in self.ends else [f"{text!r} ends with {end!r}, not with one of {sorted(self.ends)}"]
        )
        if not wanted and re.search("user|answer|system|result", MARKER.sub("", text).replace("to=user", "")):
            found.append(f"an empty answer trains {text!r}")
        if end not in stops and not self._is_inner(end):
            found.append(f"generation does not stop on {end!r} but on {list(stops)}")
        return found

    def _is_inner(self, end: str) -> bool:
        """What ends turns also stands between thoughts and text, so generation must not stop there (gpt-oss)."""
        try:
            text = plain(self.tokenizer, [user("userone"), said("answerone", "thoughtone")])
        except Exception:  # noqa: BLE001 - a template refuses by raising whatever it likes
            return False
        return end in text.partition("thoughtone")[2].partition("answerone")[0]

    def _marker_faults(self, case: Case, row: TokenRow) -> list[str]:
        """As many markers as in the same conversation without quoted ones."""
        if case.name != "own markers":
            return []
        quoted = " ".join(self.markers())
        neutral = tuple(Message(m.role, m.text.replace(quoted, "nothing")) for m in case.messages)
        template = choose(self.tokenizer, "auto", case.policy)
        (other,) = tokenize([Conversation(1, neutral)], self.tokenizer, template, case.policy)
        assert isinstance(other, TokenRow)
        found, expected = ([i for i in r.input_ids if i in self._special_ids()] for r in (row, other))
        if found != expected:
            return [f"markers {self.tokenizer.decode(found)} instead of {self.tokenizer.decode(expected)}"]
        return []

    def _plain_faults(self, case: Case, row: TokenRow, switches: dict[str, Any]) -> list[str]:
        """The tokens are those of what transformers renders, but for ends that are put behind answers."""
        if case.tools or case.policy != Policy() or "reasoning" in case.name:
            return []
        quoted = f" {' '.join(self.markers())} "
        neutral = tuple(replace(m, text=m.text.replace(quoted, " nothing ")) for m in case.messages)
        text = plain(self.tokenizer, neutral, **switches)
        found = self.tokenizer.decode(row.input_ids).replace(quoted, " nothing ")
        ends = re.compile("|".join(map(re.escape, self.ends)))
        if ends.sub("", found) != ends.sub("", text):
            return [f"{found!r} instead of {text!r}"]
        return []

    def _special_ids(self) -> set[int]:
        return set(self.tokenizer.added_tokens_decoder)

    def _reasoning_faults(self, case: Case, row: TokenRow, texts: list[str]) -> list[str]:
        if case.name != "reasoning":
            return []
        missing = [
            n for n, (w, t) in enumerate(zip(("thoughtone", "thoughttwo"), texts, strict=True)) if w not in t
        ]
        told = [n for n in row.notes if "reasoning" in n]
        return [f"the reasoning of answer {n + 1} is lost and not told: {texts}" for n in missing] if missing and not told else []  # fmt: skip

    def _spans(self, row: TokenRow) -> list[list[int]]:
        """The trained tokens, in runs; a run ends with its end, so two answers side by side are two."""
        runs: list[list[int]] = []
        is_open = False
        for token, is_trained in zip(row.input_ids, row.trained, strict=True):
            if is_trained and is_open:
                runs[-1].append(token)
            elif is_trained:
                runs.append([token])
            is_open = is_trained
        return [part for run in runs for part in self._split(run)]

    def _split(self, run: list[int]) -> Iterator[list[int]]:
        """Two answers side by side: cut behind an end that words follow."""
        ends = {self.tokenizer.convert_tokens_to_ids(end) for end in self.ends}
        begin = 0
        for place in range(1, len(run)):
            rest = self.tokenizer.decode(run[place:], skip_special_tokens=True)
            before = self.tokenizer.decode(run[begin:place])
            is_end = run[place - 1] in ends and "answertwo" in rest and "answerone" in before
            if is_end and run[place] not in ends:
                yield run[begin:place]
                begin = place
        yield run[begin:]

    def _ends(self) -> set[str]:
        """What stands behind answers in what transformers renders: the last marker that a last answer has, or the first
        of the next turn; the tokenizer's end where the template writes no marker at all."""
        found: set[str] = set()
        is_next = False
        for answer, more in (
            ([user("userone"), said("answerone")], [user("usertwo"), said("answertwo")]),
            ([user("userone"), CALL], [RESULT, said("answertwo")]),
        ):
            tools = [TOOL] if answer[-1].calls else []
            last = self._behind([*answer], answer[-1], tools)
            middle = self._behind([*answer, *more], answer[-1], tools)
            marks = [MARKER.findall(last), MARKER.findall(middle)]
            if answer[-1].calls and not last:
                found |= set(marks[1][:1])
                continue
            if not answer[-1].calls and self._is_always_asking():
                marks = [m[:1] for m in marks]
            closing = [m for m in marks[0] if m in marks[1][: len(marks[0])]] or marks[0]
            if not answer[-1].calls:
                is_next = not marks[0]
                found |= set(closing[-1:]) or set(marks[1][:1])
                found |= set(marks[1][:1]) if marks[1] and marks[1][0] not in marks[0] else set()
            elif not found & {*marks[0], *closing}:
                beyond = marks[1][len(closing) :][:1]
                found |= set(beyond if is_next or is_paired(closing[-1:]) else closing[-1:])
        return {m for m in found if m in self.specials} | {str(self.tokenizer.eos_token)}

    def _is_always_asking(self) -> bool:
        """Whether the template ends with a prompt whatever it is told."""
        turns = [_openai(m) for m in (user("userone"), said("answerone"))]
        more = {"functions": "[]", "datetime": "today", "tools": []}
        try:
            texts = [
                self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=p, **more) for p in (True, False)
            ]  # fmt: skip
        except Exception:  # noqa: BLE001 - a template refuses by raising whatever it likes
            return False
        return texts[0] == texts[1] and "assistant" in str(texts[0]).rpartition("answerone")[2]

    def _behind(self, messages: list[Message], answer: Message, tools: list[Any]) -> str:
        word, text = "Ghentword" if answer.calls else "answerone", ""
        for render in (plain, with_null):
            try:
                text = render(self.tokenizer, messages, tools)
            except Exception:  # noqa: BLE001 - a template refuses by raising whatever it likes
                continue
            if word in text:
                break
        if word not in text:
            return ""
        behind = text[text.rfind(word) + len(word) :] if word in text else ""
        return re.split("usertwo|resultword|answertwo", behind)[0]

    def _refused(self, case: Case, row: RowProblem) -> None:
        """Right only when the template itself raises, and its words are told."""
        words = self._own_words(case)
        if (
            row.reason.startswith("the chat template refuses it: ")
            and words
            and any(w in row.reason for w in words)
        ):
            self.verdict.refused.append(f"{case.name}: {row.reason}")
        else:
            self._fault(
                case, f"refused by us: {row.reason} (the template itself: {sorted(words) or 'takes it'})"
            )

    def _own_words(self, case: Case) -> set[str]:
        try:
            plain(self.tokenizer, case.messages, case.tools)
        except Exception as error:  # noqa: BLE001 - a template refuses by raising whatever it likes
            return {(str(error).strip().splitlines() or [type(error).__name__])[0][:100]}
        return set()

    def _fault(self, case: Case, words: str) -> None:
        self.verdict.faults.append(f"{case.name}: {words}")


def judged(file: Path, more: Sequence[Case] = ()) -> Verdict:
    """The verdict on one template file, by the fixed list and `more`."""
    return Judge(file.stem, file.read_text(encoding="utf-8")).judge(more)
