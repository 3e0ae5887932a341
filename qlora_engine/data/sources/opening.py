"""Opens a file of rows as bytes, unpacking on the way, with a guard against what unpacks without end. Torch-free."""

from __future__ import annotations

import contextlib
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TextIO

from qlora_engine.data.sources.places import Place
from qlora_engine.errors import EngineError

BOMB_BYTES, BOMB_RATIO = 1 << 30, 1000
CUT_SHORT = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What the unpackers raise on a file that ends early or is damaged; bz2 and gzip also raise OSError."""


@contextlib.contextmanager
def opened(place: Place) -> Iterator[IO[bytes]]:
    """The unpacked bytes.

    Raises:
        EngineError: it cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream: Any = _open(place, stack)
        except (OSError, *CUT_SHORT, NotImplementedError, RuntimeError) as error:
            raise unreadable(place.path, error) from error
        if place.compression or place.member:
            guarded = Guarded(stream, place.name, place.path.stat().st_size)
            stream = stack.enter_context(io.BufferedReader(guarded, 1 << 20))
        yield stream


@contextlib.contextmanager
def as_text(stream: IO[bytes], codec: str, errors: str, newline: str | None) -> Iterator[TextIO]:
    """`stream` as text, for as long as it is read; it is not closed."""
    text = io.TextIOWrapper(stream, codec, errors, newline=newline)
    try:
        yield text
    finally:
        with contextlib.suppress(ValueError, OSError):
            text.detach()


def unreadable(path: Path, error: BaseException) -> EngineError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return EngineError("data.unreadable", f"{path} cannot be read: {reason}", "check the file")


def _open(place: Place, stack: contextlib.ExitStack) -> Any:
    if place.member:
        archive = stack.enter_context(zipfile.ZipFile(place.path))
        inner: Any = stack.enter_context(archive.open(place.member))
    else:
        inner = stack.enter_context(place.path.open("rb"))
    match place.compression:
        case ".gz":
            import gzip

            return stack.enter_context(gzip.GzipFile(fileobj=inner))
        case ".bz2":
            import bz2

            return stack.enter_context(bz2.BZ2File(inner))
        case ".xz":
            return stack.enter_context(lzma.LZMAFile(inner))
        case ".zst":
            return stack.enter_context(_zstandard(inner, place))
    return inner


def _zstandard(inner: Any, place: Place) -> Any:
    """Through pyarrow, which carries the decoder."""
    import pyarrow as pa

    if not pa.Codec.is_available("zstd"):
        raise EngineError(
            "data.kind", f"{place.name} is packed with zstd, which this machine cannot unpack", "unpack it"
        )
    return pa.CompressedInputStream(pa.PythonFile(inner, mode="r"), "zstd")


class Guarded(io.RawIOBase):
    """A raw stream that ends quietly where the packed file ends early (`is_cut`), and refuses a bomb."""

    def __init__(self, inner: Any, name: str, packed_bytes: int) -> None:
        self._inner, self._name, self._packed, self._count = inner, name, packed_bytes, 0
        self.is_cut = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.is_cut:
            return 0
        try:
            piece = self._inner.read(len(buffer))
        except (*CUT_SHORT, OSError):
            self.is_cut = True
            return 0
        buffer[: len(piece)] = piece
        self._count += len(piece)
        if self._count > BOMB_BYTES and self._count > BOMB_RATIO * self._packed:
            raise EngineError(
                "data.archive",
                f"{self._name} unpacks to more than {BOMB_RATIO:,} times its size",
                "unpack it yourself if this is right",
            )
        return len(piece)
