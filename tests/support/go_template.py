"""A small reader of Go templates, for what a Modelfile holds: range, if, else if, end, eq, and, not, texts and fields."""

from __future__ import annotations

import json
import re
from typing import Any

Node = tuple[Any, ...]


def render(template: str, messages: list[dict[str, str]]) -> str:
    """What Ollama hands to the template: `.Messages`, and `.System`, the texts of all system messages."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    items = [{"Role": m["role"], "Content": m["content"]} for m in messages]
    nodes, rest = _parse(_tokens(template))
    assert rest == []
    root = {"System": system, "Messages": items}
    return _run(nodes, root, root, {})


def _tokens(template: str) -> list[tuple[str, str]]:
    """("text" or "do", content), in order. A quoted text may hold braces."""
    tokens, at = [], 0
    for match in re.finditer(r'\{\{\s*((?:"(?:[^"\\]|\\.)*"|[^"}])*?)\s*\}\}', template):
        tokens += [("text", template[at : match.start()]), ("do", match[1])]
        at = match.end()
    return [*tokens, ("text", template[at:])]


def _parse(tokens: list[tuple[str, str]]) -> tuple[list[Node], list[tuple[str, str]]]:
    nodes: list[Node] = []
    while tokens:
        (kind, content), tokens = tokens[0], tokens[1:]
        if kind == "text":
            nodes.append(("text", content))
        elif content == "end" or content.startswith("else"):
            return nodes, [("do", content), *tokens]
        elif content.startswith("range"):
            inside, tokens = _parse(tokens)
            assert tokens[0][1] == "end"
            tokens = tokens[1:]
            nodes.append(("range", content, inside))
        elif content.startswith("if "):
            branches, condition = [], content.removeprefix("if ")
            while True:
                inside, tokens = _parse(tokens)
                branches.append((condition, inside))
                word, tokens = tokens[0][1], tokens[1:]
                if word == "end":
                    break
                condition = word.removeprefix("else").strip().removeprefix("if ") or "true"
            nodes.append(("if", branches))
        else:
            nodes.append(("value", content))
    return nodes, []


def _run(nodes: list[Node], root: dict[str, Any], dot: Any, names: dict[str, Any]) -> str:
    text = ""
    for node in nodes:
        if node[0] == "text":
            text += node[1]
        elif node[0] == "value":
            text += str(_value(node[1], root, dot, names))
        elif node[0] == "range":
            match = re.fullmatch(r"range \$(\w+), \$_ := (\S+)", node[1])
            assert match
            for index, item in enumerate(_value(match[2], root, dot, names)):
                text += _run(node[2], root, item, {**names, match[1]: index})
        else:
            chosen = next((inside for test, inside in node[1] if _value(test, root, dot, names)), [])
            text += _run(chosen, root, dot, names)
    return text


def _value(text: str, root: dict[str, Any], dot: Any, names: dict[str, Any]) -> Any:
    words = re.findall(r'"(?:[^"\\]|\\.)*"|\([^)]*\)|\S+', text)
    if len(words) == 1:
        return _single(words[0], root, dot, names)
    values = [_value(word.strip("()"), root, dot, names) for word in words[1:]]
    match words[0]:
        case "eq":
            return values[0] == values[1]
        case "not":
            return not values[0]
        case "and":
            return all(values)
    raise AssertionError(text)


def _single(word: str, root: dict[str, Any], dot: Any, names: dict[str, Any]) -> Any:
    if word.startswith('"') or word.isdigit():
        return json.loads(word)
    if word.startswith("$."):
        return root[word[2:]]
    if word.startswith("."):
        return dot[word[1:]]
    if word == "true":
        return True
    return names[word[1:]]
