"""A small Hugging Face hub on this machine: lists, ranges, gates, and breaks off when told to."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """`files` of the one repository `org/tiny`; the rest is how it behaves, and what it was asked."""

    files: dict[str, bytes]
    status: int = 200
    error_code: str = ""
    break_after: int | None = None
    """Close the connection after so many bytes of a weight file, once."""
    spoil: bool = False
    """Send other bytes than promised."""
    ignores_ranges: bool = False
    ranges: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    """What each request said of who asks."""
    url: str = ""


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve `hub` on a free port of the loopback device."""

    class Handler(_Handler):
        fake = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, has_body: bool) -> None:
        self.fake.asked.append(f"{self.command} {self.path}")
        self.fake.agents.append(self.headers.get("User-Agent", ""))
        if self.fake.status != 200:
            self._send(self.fake.status, b"{}", has_body, {"X-Error-Code": self.fake.error_code})
        elif self.path.startswith("/api/models/org/tiny"):
            self._send(
                200, json.dumps(self._listing()).encode(), has_body, {"Content-Type": "application/json"}
            )
        elif "/resolve/" in self.path and self._file() in self.fake.files:
            self._send_file(self._file(), has_body)
        else:
            self._send(404, b"{}", has_body, {"X-Error-Code": "RepoNotFound"})

    def _file(self) -> str:
        return self.path.split("?")[0].split("/resolve/")[1].split("/", 1)[1]

    def _listing(self) -> dict[str, object]:
        siblings = [{"rfilename": name, "size": len(data)} for name, data in self.fake.files.items()]
        return {
            "id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "siblings": siblings, "tags": [],
            "cardData": {"license": "mit"}, "safetensors": {"parameters": {"BF16": 100}, "total": 100},
        }  # fmt: skip

    def _send_file(self, name: str, has_body: bool) -> None:
        data, hub = self.fake.files[name], self.fake
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        asked = self.headers.get("Range")
        if not has_body or not name.endswith(".safetensors"):
            self._send(200, data, has_body, headers)
            return
        start = 0
        if asked:
            hub.ranges.append(asked)
        if asked and not hub.ignores_ranges:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = bytes(len(data)) if hub.spoil else data
        status = 206 if "Content-Range" in headers else 200
        self._send(status, body[start:], True, headers, self._take_break())

    def _take_break(self) -> int | None:
        found, self.fake.break_after = self.fake.break_after, None
        return found

    def _send(
        self, status: int, body: bytes, has_body: bool, headers: dict[str, str], only: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body if only is None else body[:only])
        if only is not None:
            self.close_connection = True
