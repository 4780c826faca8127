"""A small model hub on 127.0.0.1, with the faults that real ones have.

It answers the requests that huggingface_hub makes to fetch files, in the form that
https://huggingface.co has: listings with sizes and checksums, ``resolve`` addresses with ETags and
ranges, error codes in headers. `test_loopback` holds it against huggingface_hub's own downloads.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt")


@dataclass(frozen=True)
class Break:
    """The connection ends after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class Status:
    """An answer with an error."""

    code: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True)
class Endless:
    """A body that never ends, after its right beginning."""

    status: int = 200


@dataclass(frozen=True)
class Silence:
    """No answer, until whoever asked has gone."""


@dataclass(frozen=True)
class Extra:
    """A body that goes on after its end."""

    content: bytes


@dataclass(frozen=True)
class Request:
    """A request that was made."""

    method: str
    path: str
    headers: Message


@dataclass
class LoopbackHub:
    """What the hub holds, and how it misbehaves.

    Attributes:
        repositories: name to path to content.
        gated: repositories whose files are given to `token` only.
        token: the only one that is valid; None takes any.
        faults: path of a file to what goes wrong with its next GET requests; "" is the listing.
        corrupt: paths of files whose first byte comes out wrong.
        whole_only: ranges are ignored.
        bare: listings tell neither sizes nor checksums, as those of some mirrors.
        listing: what listings say instead of the truth.
        warning: what files come with as a warning to be shown to the user.
        cdn: address that files are redirected to.
        requests: all that were made, in order.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str | None = None
    faults: dict[str, list[Break | Status | Silence | Extra | Endless]] = field(
        default_factory=dict
    )
    corrupt: set[str] = field(default_factory=set)
    whole_only: bool = False
    bare: bool = False
    listing: dict[str, object] = field(default_factory=dict)
    warning: str | None = None
    cdn: str | None = None
    requests: list[Request] = field(default_factory=list)
    address: str = ""

    def fetched(self, path: str) -> list[Request]:
        """The GET requests for the file at ``path``."""
        return [
            request
            for request in self.requests
            if request.method == "GET" and request.path.endswith(f"/{path}")
        ]


def commit_of(files: dict[str, bytes]) -> str:
    """A commit's hash that changes with the files."""
    tree = sorted((path, git_hash(content)) for path, content in files.items())
    return hashlib.sha1(repr(tree).encode()).hexdigest()


def is_lfs(path: str) -> bool:
    """Whether the hub keeps a file in its large-file storage."""
    return path.endswith(LFS_SUFFIXES)


def checksum_of(path: str, content: bytes) -> str:
    """What the hub gives as a file's ETag."""
    if is_lfs(path):
        return hashlib.sha256(content).hexdigest()
    return git_hash(content)


def git_hash(content: bytes) -> str:
    """What git calls the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: LoopbackHub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.requests.append(Request(self.command, path, self.headers))
        if path.startswith("/api/models/"):
            self._list(path.removeprefix("/api/models/"), parse_qs(parts.query))
        elif "/resolve/" in path:
            self._resolve(path.removeprefix("/"))
        else:
            self._error(404)

    def _list(self, name: str, query: dict[str, list[str]]) -> None:
        repository, _, revision = name.partition("/revision/")
        files = self._files(repository, revision or "main")
        if files is None:
            return
        siblings = []
        for path, content in files.items():
            sibling: dict[str, object] = {"rfilename": path}
            if "blobs" in query and not self.hub.bare:
                sibling["size"] = len(content)
                sibling["blobId"] = git_hash(content)
                if is_lfs(path):
                    sha256 = hashlib.sha256(content).hexdigest()
                    sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        listing = {"id": repository, "modelId": repository, "sha": commit_of(files)}
        body = json.dumps({**listing, "siblings": siblings, **self.hub.listing}).encode()
        fault = self._fault("")
        if isinstance(fault, Endless):
            self._send_endlessly(fault.status, {}, body[:-1])
        else:
            self._send(200, {"Content-Type": "application/json"}, body)

    def _resolve(self, name: str) -> None:
        repository, _, rest = name.partition("/resolve/")
        revision, _, path = rest.partition("/")
        files = self._files(repository, revision)
        if files is None:
            return
        if repository in self.hub.gated and not self._has_token():
            self._error(403 if self._given_token() else 401, "GatedRepo")
            return
        if path not in files:
            self._error(404, "EntryNotFound")
            return
        content, etag = files[path], checksum_of(path, files[path])
        headers = {"X-Repo-Commit": commit_of(files), "ETag": f'"{etag}"'}
        if self.hub.warning is not None:
            headers["X-HF-Warning"] = self.hub.warning
        if is_lfs(path) or self.hub.cdn is not None:
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{etag}"'}
        if self.hub.cdn is not None:
            self._send(302, headers | {"Location": f"{self.hub.cdn}/{name}"}, b"")
            return
        fault = self._fault(path)
        if isinstance(fault, Status):
            self._send(fault.code, dict(fault.headers), fault.body)
            return
        if isinstance(fault, Endless):
            self._send_endlessly(fault.status, headers, content)
            return
        if isinstance(fault, Silence):
            self.connection.recv(1)
            self.close_connection = True
            return
        if path in self.hub.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        if isinstance(fault, Extra):
            content += fault.content
        status, content = self._range(headers, content)
        self._send(status, headers, content, fault.after if isinstance(fault, Break) else None)

    def _fault(self, path: str) -> Break | Status | Silence | Extra | Endless | None:
        faults = self.hub.faults.get(path) if self.command == "GET" else None
        return faults.pop(0) if faults else None

    def _range(self, headers: dict[str, str], content: bytes) -> tuple[int, bytes]:
        asked = self.headers.get("Range", "")
        if self.hub.whole_only or not asked.startswith("bytes="):
            return 200, content
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206, content[start:]

    def _files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        if self._given_token() and self.hub.token is not None and not self._has_token():
            if repository not in self.hub.gated:
                self._error(401, message="Invalid credentials in Authorization header")
                return None
        files = self.hub.repositories.get(repository)
        if files is None:
            # Without a token the real hub does not tell missing from private.
            self._error(404 if self._given_token() else 401, "RepoNotFound")
        elif revision not in ("main", commit_of(files)):
            self._error(404, "RevisionNotFound")
            return None
        return files

    def _given_token(self) -> bool:
        return "Authorization" in self.headers

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _error(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X-Error-Code": code} if code else {}
        if message:
            headers["X-Error-Message"] = message
        self._send(status, headers, b"")

    def _send_endlessly(self, status: int, headers: dict[str, str], beginning: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):  # whoever listens has gone
            self.wfile.write(beginning)
            while True:
                self.wfile.write(b" " * 100_000)

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, end: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:end])
        if end is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of those who have gone in the midst of an answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """Run a hub on a free port for the duration of the block."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
