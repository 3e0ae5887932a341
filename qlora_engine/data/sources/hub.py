"""Reads a dataset of the hub through the `datasets` library: no loading scripts, no pickles, names checked. Torch-free."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_engine.counting import agreeing, counted
from qlora_engine.data.sources.reading import BadRow, Reading, Row, short
from qlora_engine.errors import EngineError
from qlora_engine.models import hub_cache

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
BATCH_ROWS = 1000
SHARD = re.compile(r"(.+)-(\d{4,6})-of-(\d{4,6})\..+")
NO_ROWS = ("", ".md", ".py", ".yaml", ".yml", ".lock", ".incomplete")
NETWORK = ("httpx", "httpcore", "requests", "urllib3", "socket")


def is_hub_id(text: str) -> bool:
    return HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def load(name: str, split: str, *, is_offline: bool) -> tuple[Any, str]:
    """(the dataset, memory-mapped, a note on where it was found, if that is to be said). Offline, and where there is no
    connection, what lies in the hub's cache is taken.

    Raises:
        EngineError: it cannot be had.
    """
    import datasets

    is_offline = hub_cache.is_offline(is_offline)
    try:
        with _without_hub() if is_offline else contextlib.nullcontext():
            return datasets.load_dataset(name, split=split), ""
    except Exception as error:  # the hub, pyarrow and the builder raise whatever they like
        kept = hub_cache.cached_dataset(name) if is_offline or _is_unreachable(error) else None
        if kept is not None and _holds_rows(kept):
            return _of_cache(name, split, kept)
        if is_offline:
            raise EngineError(
                "data.offline", f"the dataset {name} ({split}) is not on this disk, and the program is set to stay offline",
                "choose a file, or allow downloads",
            ) from error  # fmt: skip
        raise EngineError(
            "data.hub", f"the dataset {name} ({split}) could not be read: {short(error)}",
            "check the name, the split and the connection, or choose a file",
        ) from error  # fmt: skip


def _of_cache(name: str, split: str, folder: Path) -> tuple[Any, str]:
    """What was downloaded of a dataset, read as the hub's own would be."""
    import datasets

    _require_whole(name, folder)
    try:
        with _without_hub():
            found = datasets.load_dataset(str(folder), split=split)
    except Exception as error:  # as above
        raise EngineError(
            "data.hub", f"the dataset {name} ({split}) lies in the hub's cache and could not be read: {short(error)}",
            f"check the split, or get it anew with `hf download {name} --repo-type dataset`",
        ) from error  # fmt: skip
    return found, f"{name}: read from the hub's cache, commit {folder.name[:12]}"


def _require_whole(name: str, folder: Path) -> None:
    """A file that counts its parts in its name must have all of them.

    Raises:
        EngineError: some are missing.
    """
    found: dict[tuple[str, int], set[int]] = {}
    for file in _files(folder):
        match = SHARD.fullmatch(file.name)
        if match:
            found.setdefault((f"{file.parent}/{match[1]}", int(match[3])), set()).add(int(match[2]))
    for (part, total), numbers in found.items():
        if len(numbers) < total:
            raise EngineError(
                "data.hub",
                f"only {counted(len(numbers), 'part', of=total)} of {Path(part).name} of the dataset {name} "
                f"{agreeing(len(numbers), 'lie')} in the hub's cache",
                f"get the others with `hf download {name} --repo-type dataset`",
            )  # fmt: skip


def _holds_rows(folder: Path) -> bool:
    """More than what is read of a dataset to describe it."""
    return any(
        file.suffix.lower() not in NO_ROWS and not file.name.startswith(".") for file in _files(folder)
    )


def _files(folder: Path) -> Iterator[Path]:
    """Links of the cache whose files are gone are none."""
    return (file for file in folder.rglob("*") if file.is_file())


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether a connection that failed is behind it."""
    while error is not None:
        is_of_network = type(error).__module__.partition(".")[0] in NETWORK
        if is_of_network or isinstance(error, ConnectionError | TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def read(dataset: Any, reading: Reading) -> Iterator[Row | BadRow]:
    """Every row as it is stored; pictures and sounds stay bytes."""
    plain = dataset.with_format("arrow")
    for part in plain.iter(batch_size=BATCH_ROWS):
        reading.check()
        yield from part.to_pylist()


@contextlib.contextmanager
def _without_hub() -> Iterator[None]:
    """What is in the cache only: both libraries read HF_HUB_OFFLINE when they are imported, so their copies are set."""
    import datasets.config
    import huggingface_hub.constants

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
