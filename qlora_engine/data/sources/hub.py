"""Reads a dataset of the hub through the `datasets` library: no loading scripts, no pickles, names checked. Torch-free."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from qlora_engine.data.sources.reading import BadRow, Reading, Row, short
from qlora_engine.errors import EngineError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
BATCH_ROWS = 1000


def is_hub_id(text: str) -> bool:
    return HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def load(name: str, split: str, *, is_offline: bool) -> Any:
    """The dataset, memory-mapped.

    Raises:
        EngineError: it cannot be had.
    """
    import datasets

    try:
        with _without_hub() if is_offline else contextlib.nullcontext():
            return datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub, pyarrow and the builder raise whatever they like
        if is_offline:
            raise EngineError(
                "data.offline", f"the dataset {name} ({split}) is not on this disk, and the program is set to stay offline",
                "choose a file, or allow downloads",
            ) from error  # fmt: skip
        raise EngineError(
            "data.hub", f"the dataset {name} ({split}) could not be read: {short(error)}",
            "check the name, the split and the connection, or choose a file",
        ) from error  # fmt: skip


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
