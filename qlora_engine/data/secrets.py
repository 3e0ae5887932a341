"""Finds what looks like a key, a password or an e-mail address in a text. Warned about, never sent anywhere. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable

Pattern = tuple[str, re.Pattern[str]]
SECRETS: tuple[Pattern, ...] = (
    ("sk-", re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")),
    ("ghp_", re.compile(r"\bghp_[A-Za-z0-9]{36}\b")),
    ("github_pat_", re.compile(r"\bgithub_pat_[A-Za-z0-9_]{40,}")),
    ("glpat-", re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}")),
    ("hf_", re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")),
    ("AKIA", re.compile(r"\bAKIA[0-9A-Z]{16}\b")),
    ("AIza", re.compile(r"\bAIza[0-9A-Za-z_-]{35}")),
    ("xox", re.compile(r"\bxox[abposr]-[A-Za-z0-9-]{10,}")),
    ("eyJ", re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}")),
    ("PRIVATE KEY-----", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("assword", re.compile(r"\b[Pp]assword\s*[:=]\s*[\"']?(?=\S*\d)[^\s\"',;]{8,}")),
)
"""(a piece that every match holds, the pattern): looking for the piece first keeps a million rows quick."""
EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")


def has_secret(text: str, patterns: Iterable[Pattern] = SECRETS) -> bool:
    return any(piece in text and pattern.search(text) for piece, pattern in patterns)


def hinted(texts: Iterable[str]) -> list[Pattern]:
    """Those of `SECRETS` that some of the texts may hold, for looking at each text with these alone."""
    whole = "\n".join(texts)
    return [(piece, pattern) for piece, pattern in SECRETS if piece in whole]


def has_email(text: str) -> bool:
    return "@" in text and EMAIL.search(text) is not None
