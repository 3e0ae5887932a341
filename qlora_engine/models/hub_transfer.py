"""One large file from the hub into its cache: by ranges, so that a stopped download goes on where it stopped.

huggingface_hub itself deletes what a broken download leaves (2.4, `_download_to_tmp_and_move`), and a stop could not be
heard inside its native transfer. The blob gets the name that it would give it, and it then finds it there.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qlora_engine.errors import EngineError

CHUNK_BYTES = 1 << 20
TRIES = 5
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 20.0
SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch_blob(name: str, file: str, commit: str, blobs: Path, on_bytes: Callable[[int], None]) -> Path:
    """Fetch `file` of repository `name` to `blobs/<etag>`; `on_bytes` gets the file's bytes so far, and may raise
    to stop: what has come is kept in `<etag>.partial`.

    Raises:
        EngineError: the hub's hash and the file's differ.
        huggingface_hub.errors.HTTPError: no connection, after `TRIES` tries without one new byte.
    """
    import huggingface_hub
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = huggingface_hub.hf_hub_url(name, file, revision=commit)
    metadata = huggingface_hub.get_hf_file_metadata(url)
    blob = blobs / str(metadata.etag)
    if blob.is_file():
        on_bytes(blob.stat().st_size)
        return blob
    blobs.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{blob.name}.partial")
    is_elsewhere = urlsplit(metadata.location).netloc != urlsplit(url).netloc
    # A login is shown to the hub alone, never to the storage that it points to.
    headers = {} if is_elsewhere else build_hf_headers()
    _fetch(metadata.location, headers, partial, metadata.size, on_bytes)
    _require_hash(partial, str(metadata.etag), file)
    partial.replace(blob)
    return blob


def connection_errors() -> tuple[type[Exception], ...]:
    """What the hub's HTTP client raises when there is no connection (httpx or httpx2, by version)."""
    from huggingface_hub import errors

    transport: type[Exception] = errors.HfHubHTTPError.__mro__[1]
    return (transport, ConnectionError, TimeoutError)


def silent_bar() -> Any:
    """A progress bar for huggingface_hub that shows nothing."""
    from tqdm.auto import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


def _fetch(
    url: str, headers: dict[str, str], partial: Path, size: int | None, on_bytes: Callable[[int], None]
) -> None:
    failures = 0
    while size is None or not partial.is_file() or partial.stat().st_size < size:
        before = partial.stat().st_size if partial.is_file() else 0
        try:
            _stream(url, headers, partial, before, on_bytes)
            if size is None:
                return
        except connection_errors() as error:
            failures = failures + 1 if partial.stat().st_size <= before else 1
            if failures >= TRIES or _is_refusal(error):
                raise
            time.sleep(PAUSE_SECONDS)
    on_bytes(partial.stat().st_size)


def _is_refusal(error: Exception) -> bool:
    """The server answered, and asking again would not help: 4xx but "too many requests"."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is not None and 400 <= status < 500 and status != 429


def _stream(
    url: str, headers: dict[str, str], partial: Path, start: int, on_bytes: Callable[[int], None]
) -> None:
    """Append to `partial` from byte `start`; from the beginning when the server knows no ranges."""
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    partial.touch()
    with get_session().stream(
        "GET", url, headers=asked, follow_redirects=True, timeout=TIMEOUT_SECONDS
    ) as answer:
        hf_raise_for_status(answer)
        is_continued = answer.status_code == 206
        done = start if is_continued else 0
        with partial.open("ab" if is_continued else "wb") as stream:
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                stream.write(chunk)
                done += len(chunk)
                on_bytes(done)


def _require_hash(partial: Path, etag: str, file: str) -> None:
    """Large files are named by their sha256 on the hub; small ones by a git hash that is not checked here."""
    if not SHA256.fullmatch(etag):
        return
    with partial.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != etag:
        partial.unlink()
        raise EngineError(
            "hub.damaged",
            f"{file} arrived damaged: its hash is not the one that the hub names",
            "try again; the damaged file was removed",
            is_input_error=False,
        )
