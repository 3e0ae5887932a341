"""Finds out in which encoding a text file is written, or refuses it by name; nothing is ever replaced. Torch-free."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from qlora_engine.errors import EngineError

SAMPLE_BYTES = 1 << 20
WESTERN = "Windows-1252 (Latin-1)"
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
VALID_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
HIGH_BYTE = re.compile(rb"[\x80-\xff]")
LONG_HIGH_RUN = re.compile(rb"[\xc0-\xff]{4}")
WESTERN_BYTES = frozenset(
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüœŒšŠžŽ€£§©®°±²³·´¿¡ªº«»‘’“”„–—…½¼¾\xa0".encode(
        "cp1252"
    )
)
BROKEN_LINES_SHARE = 0.1
"""Up to so many lines that are no UTF-8 are bad rows of an UTF-8 file; more mean that the file is something else."""


@dataclass(frozen=True)
class Encoding:
    """`codec` decodes; `words` name it to a person; `errors` lets a row's bad bytes through as lone surrogates, by
    which that row alone is recognised and left out."""

    codec: str
    words: str

    @property
    def errors(self) -> str:
        return "surrogatepass" if self.codec.startswith(("utf-16", "utf-32")) else "surrogateescape"

    @property
    def is_utf8(self) -> bool:
        return self.codec in ("utf-8", "utf-8-sig")


def find(head: bytes, name: str, wanted: str = "auto") -> Encoding:
    """The encoding of a file that begins with `head`; `name` is the file's, for the sentence.

    Raises:
        EngineError: it cannot be told, or is not known.
    """
    if wanted != "auto":
        return _named(wanted)
    for bom, codec, words in BOMS:
        if head.startswith(bom):
            return Encoding(codec, words)
    if b"\0" in head and (wide := _without_bom(head)):
        return wide
    return _narrow(head, name)


def _named(wanted: str) -> Encoding:
    try:
        found = codecs.lookup(wanted)
    except (LookupError, ValueError, UnicodeError):
        found = None
    if found is None or not getattr(found, "_is_text_encoding", True):
        raise EngineError(
            "data.encoding",
            f"there is no encoding {wanted!r}",
            "set data.encoding to auto, utf-8, utf-16, cp1252 or another of Python's names",
        )
    codec = "utf-8-sig" if found.name == "utf-8" else found.name
    return Encoding(codec, f"{wanted} (as set)")


def _without_bom(head: bytes) -> Encoding | None:
    """UTF-16 without its mark: mostly Latin letters have a zero at every second place."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if odd > len(head) // 6 and even * 10 < odd:
        return Encoding("utf-16-le", "UTF-16 (little-endian, without its mark)")
    if even > len(head) // 6 and odd * 10 < even:
        return Encoding("utf-16-be", "UTF-16 (big-endian, without its mark)")
    return None


def _narrow(head: bytes, name: str) -> Encoding:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)
    except UnicodeDecodeError as error:
        rest = VALID_UTF8.sub(b"", head)
        valid = (len(head) - len(rest)) // 2
        foreign = HIGH_BYTE.findall(rest)
        if valid < len(foreign) and _is_western(rest):
            return Encoding("cp1252", WESTERN)
        if valid >= len(foreign) or _broken_share(head) <= BROKEN_LINES_SHARE:
            return Encoding("utf-8", "UTF-8, with broken rows")
        line = head[: error.start].count(b"\n") + 1
        raise EngineError(
            "data.encoding",
            f"{name}, line {line}: not UTF-8 text; it looks like {_guess(head)}",
            "set data.encoding to the encoding it was saved in, or save the file as UTF-8",
        ) from error
    return Encoding("utf-8", "UTF-8")


def _is_western(text: bytes) -> bool:
    """Accented letters stand alone among plain ones; other alphabets fill whole words with high bytes."""
    high = [byte for byte in text if byte >= 0x80]
    letters = sum(1 for byte in text if chr(byte).isascii() and chr(byte).isalpha())
    return (
        bool(high)
        and all(byte in WESTERN_BYTES for byte in high)
        and len(high) * 3 <= letters
        and not LONG_HIGH_RUN.search(text)
    )


def _broken_share(head: bytes) -> float:
    lines = head.splitlines()[:-1] or [head]
    return sum(1 for line in lines if not _is_utf8(line)) / len(lines)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _guess(head: bytes) -> str:
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return "an older encoding"
    best = from_bytes(head[: 64 * 1024]).best()
    return best.encoding if best is not None else "no text at all"
