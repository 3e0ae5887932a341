"""Finds what a text claims of GPUs in figures, and what stands behind it. Standard library only.

A figure is computed, published by others, or measured; which of them is written into the text as a mark that no reader
sees: `[figures]: # "computed: by what"`, `"published: by whom"`, `"measured: which view"`, until `[figures]: # "end"`. A figure of a GPU outside
of marks is a claim without anything behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MARK = re.compile(r'^\[figures\]: # "(.+)"$')
KINDS = ("computed: ", "published: ", "measured: ")
END = "end"
CARD = re.compile(
    r"\b(GPUs?|CUDA|NVIDIA|NVML|CUPTI|nvidia-smi|VRAM|RTX|GeForce|[AHBVLT]\d{1,3}0?0?|GH200|GB\d{2,3})\b"
)
NOT_A_CARD = re.compile(
    r"(with no|without an?|without any|no|not a|of no) (NVIDIA )?GPUs?|GPU or none|stand-in GPUs",
    re.IGNORECASE,
)
FIGURE = re.compile(
    r"\d[\d.,]*\s?(GiB|MiB|KiB|GB|MB|kB|TFLOP/s|GFLOP/s|W|ms|s|seconds?|minutes?|hours?|%|×|percent|times|tokens)(?![\w])"
)


@dataclass(frozen=True)
class Claim:
    """A paragraph, list entry or table that has figures of a GPU. `mark`: what stands behind it, None: nothing."""

    line: int
    text: str
    mark: str | None


class MarkError(ValueError):
    """A mark that says nothing, or has no end."""


def claims(text: str) -> Iterator[Claim]:
    """Every claim of a text, in order.

    Raises:
        MarkError: see there.
    """
    for line, block, mark in blocks(text):
        if any(CARD.search(one) and FIGURE.search(one) for one in _sentences(block)):
            yield Claim(line, block, mark)


def _sentences(block: str) -> Iterator[str]:
    """A paragraph whole; a table row by row, each with its head."""
    plain = NOT_A_CARD.sub("", block)
    if not plain.startswith("|"):
        yield plain
        return
    head, *rows = plain.splitlines()
    yield from (f"{head}\n{row}" for row in rows)


def unfounded(text: str) -> list[Claim]:
    """The claims behind which nothing stands."""
    return [claim for claim in claims(text) if claim.mark is None]


def marked(text: str, kind: str) -> list[tuple[str, str]]:
    """(what the mark names, everything inside) of each mark of `kind`: computed, published or measured."""
    found: dict[int, tuple[str, list[str]]] = {}
    number, inside = 0, False
    for line in text.splitlines():
        match = MARK.match(line)
        if match:
            inside = match[1].startswith(f"{kind}: ")
            number += inside
            if inside:
                found[number] = (match[1].partition(": ")[2], [])
        elif inside:
            found[number][1].append(line)
    return [(name, "\n".join(lines).strip()) for name, lines in found.values()]


def blocks(text: str) -> Iterator[tuple[int, str, str | None]]:
    """(first line's number, text, mark) of paragraphs, list entries and tables. Code blocks are no claims.

    Raises:
        MarkError: see there.
    """
    mark: str | None = None
    held: list[str] = []
    began = 1
    for number, line in enumerate([*text.splitlines(), ""], 1):
        match = MARK.match(line)
        starts_entry = line.startswith(("- ", "* ")) or re.match(r"\d+\. ", line) is not None
        if held and (not line.strip() or match or starts_entry):
            yield began, "\n".join(held), mark
            held = []
        if match:
            mark = _next(mark, match[1], number)
        elif line.strip() and not line.startswith("    "):
            began = began if held else number
            held.append(line)
    if mark is not None:
        raise MarkError(f"the mark {mark!r} has no end")


def _next(mark: str | None, word: str, line: int) -> str | None:
    if word == END and mark is not None:
        return None
    if word == END or mark is not None or not any(word.startswith(kind) and word[len(kind) :].strip() for kind in KINDS):  # fmt: skip
        raise MarkError(f"line {line}: the mark {word!r} is none of {', '.join(KINDS)}end, or stands inside another")  # fmt: skip
    return word
