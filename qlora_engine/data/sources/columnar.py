"""Reads Parquet and Arrow files batch by batch. Imports pyarrow when used; torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from qlora_engine.data.sources.reading import BadRow, Reading, Row, short
from qlora_engine.errors import EngineError

BATCH_ROWS = 1000


def read(stream: IO[bytes], reading: Reading, kind: str) -> Iterator[Row | BadRow]:
    """Every row; of a damaged file, those of its whole parts.

    Raises:
        EngineError: nothing of it can be read.
    """
    import pyarrow as pa

    try:
        parts = _parquet(stream) if kind == ".parquet" else _arrow(stream)
        first = next(parts, None)
    except (pa.ArrowException, OSError, ValueError, KeyError, EOFError) as error:
        words = "Parquet" if kind == ".parquet" else "Arrow"
        raise EngineError(
            "data.columnar", f"{reading.name} is not a whole {words} file: {short(error)}", "get it again"
        ) from error
    if first is None:
        return
    yield from _rows(first)
    while True:
        reading.check()
        try:
            part = next(parts, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield BadRow(f"the file is damaged from here on: {short(error)}")
            return
        if part is None:
            return
        yield from _rows(part)


def _parquet(stream: IO[bytes]) -> Iterator[Any]:
    from pyarrow import parquet

    yield from parquet.ParquetFile(_seekable(stream)).iter_batches(batch_size=BATCH_ROWS)


def _arrow(stream: IO[bytes]) -> Iterator[Any]:
    """The file format (with a footer), else the stream format, in which `datasets` writes."""
    import pyarrow as pa

    source = _seekable(stream)
    try:
        reader = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


def _seekable(stream: IO[bytes]) -> Any:
    import io

    return stream if stream.seekable() else io.BytesIO(stream.read())


def _rows(batch: Any) -> Iterator[Row | BadRow]:
    """Arrow trusts what a file says of itself: looking at a value that lies outside it would end the process."""
    for start in range(0, batch.num_rows, BATCH_ROWS):
        part = batch.slice(start, BATCH_ROWS)
        try:
            part.validate(full=True)
            rows = part.to_pylist()
        except (ValueError, OverflowError, OSError):  # pyarrow's own errors are among them
            yield from (_row(part, place) for place in range(part.num_rows))
        else:
            yield from rows


def _row(batch: Any, place: int) -> Row | BadRow:
    """One row of a batch in which some row is damaged."""
    row = batch.slice(place, 1)
    try:
        row.validate(full=True)
        found: Row = row.to_pylist()[0]
    except (ValueError, OverflowError, OSError) as error:
        return BadRow(f"it is damaged: {short(error)}")
    return found
