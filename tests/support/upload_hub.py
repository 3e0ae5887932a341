"""The side of a Hugging Face hub that takes uploads, on this machine: repositories, LFS, commits, and faults."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class UploadHub:
    """What it holds and how it behaves. `files`: path -> content of the last commit; `objects`: LFS content by hash."""

    url: str = ""
    is_private: bool | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    status: int = 200
    break_at_put: int | None = None
    """Close the connection in the middle of this upload (counted from 0), again and again."""


@contextmanager
def receiving(hub: UploadHub) -> Iterator[UploadHub]:
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
    fake: UploadHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""

    def do_GET(self) -> None:
        hub = self.fake
        if self.path.startswith("/api/models/") and hub.is_private is not None:
            siblings = [{"rfilename": name} for name in hub.files]
            found = {
                "id": "me/tuned",
                "sha": COMMIT,
                "private": hub.is_private,
                "siblings": siblings,
                "tags": [],
            }
            self._send(200, found)
        else:
            self._send(404, {}, {"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self) -> None:
        self._send(404, {}, {"X-Error-Code": "EntryNotFound"})

    def do_PUT(self) -> None:
        hub, oid = self.fake, self.path.rsplit("/", 1)[1]
        number = len(hub.puts)
        if hub.break_at_put is not None and number >= hub.break_at_put:
            self.close_connection = True
            self.connection.close()
            return
        hub.puts.append(oid)
        hub.objects[oid] = self._body()
        self._send(200, {})

    def do_POST(self) -> None:
        hub, body = self.fake, self._body()
        hub.tokens.add(self.headers.get("Authorization", ""))
        if hub.status != 200:
            self._send(hub.status, {"error": "no"})
        elif self.path.startswith("/api/repos/create"):
            asked = json.loads(body)
            if hub.is_private is None:
                hub.is_private = bool(asked.get("private") or asked.get("visibility") == "private")
            self._send(200, {"url": f"{hub.url}/me/tuned", "id": "me/tuned", "name": "me/tuned"})
        elif "/preupload/" in self.path:
            self._send(200, {"files": [_mode(file) for file in json.loads(body)["files"]]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._send(
                200, {"transfer": "basic", "objects": [self._lfs(o) for o in json.loads(body)["objects"]]}
            )
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._send(200, {"errors": [], "warnings": []})

    def _lfs(self, asked: dict[str, Any]) -> dict[str, Any]:
        oid = asked["oid"]
        if oid in self.fake.objects:
            return {"oid": oid, "size": asked["size"]}
        return {
            "oid": oid, "size": asked["size"],
            "actions": {"upload": {"href": f"{self.fake.url}/objects/{oid}", "header": {}}},
        }  # fmt: skip

    def _commit(self, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.fake.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.fake.files[value["path"]] = self.fake.objects[value["oid"]]
        self._send(200, {"commitUrl": f"{self.fake.url}/me/tuned/commit/{COMMIT}", "commitOid": COMMIT})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, found: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        for key, value in {
            **(headers or {}),
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    is_large = file["path"].endswith((".safetensors", ".gguf"))
    return {
        "path": file["path"],
        "uploadMode": "lfs" if is_large else "regular",
        "shouldIgnore": False,
        "oid": None,
    }
