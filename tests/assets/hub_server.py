"""A small Hugging Face Hub on loopback: one data set repository, and faults on request.

Serves what the client of `tsx data download` asks for: the revision's commit, the tree (in pages),
and files by Range, large ones by way of a redirect to another host as the real Hub does. Tests
load it through a fixture; by hand:

    python tests/assets/hub_server.py FOLDER [MIB_PER_S]    # prints the HF_ENDPOINT to export
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

REPO = "Maple728/Time-300B"
PIECE_BYTES = 1 << 18


@dataclass
class Fault:
    """What goes wrong for the next `times` requests whose method and path contain `where`."""

    where: str
    times: int = 1
    status: int = 0  # answered instead; 0: the body is tampered with
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0  # body bytes before the connection is cut or held
    reset: bool = False  # cut by a TCP reset instead of an early end
    held: threading.Event | None = None  # go on when it is set
    flip: bool = False  # the last byte of the body is wrong


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    method: str
    path: str
    range: str
    token: str
    host: str


@dataclass(frozen=True)
class Served:
    """A file of a commit."""

    path: Path
    size: int
    sha256: str
    oid: str  # of git: SHA-1 over a header and the content


class Hub:
    """The server; `publish` gives it a commit, `fail` a fault, `seen` is what it was asked."""

    def __init__(self, *, repo: str = REPO, page: int = 1000, large: int = 512) -> None:
        self.repo, self.page, self.large = repo, page, large
        self.bytes_per_s = 0.0  # of all connections together; 0: as fast as it goes
        self._free_at = 0.0
        self.token = ""  # where set, requests without it are refused
        self.commits: dict[str, dict[str, Served]] = {}
        self.head = ""
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            if fault.held is not None:
                fault.held.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def publish(self, folder: Path) -> str:
        """Make the files below `folder` the newest commit and return its hash."""
        files = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                sha256 = hashlib.sha256(content).hexdigest()
                name = path.relative_to(folder).as_posix()
                files[name] = Served(path, len(content), sha256, git)
        listing = "".join(f"{name} {one.oid}\n" for name, one in files.items())
        self.head = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[self.head] = files
        return self.head

    def fail(self, where: str, **fault: object) -> Fault:
        """Plant a fault."""
        planted = Fault(where, **fault)  # type: ignore[arg-type]
        self.faults.append(planted)
        return planted

    def pace(self, count: int) -> None:
        """Wait until so many bytes more fit into the rate."""
        with self.lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self.bytes_per_s
            wait_s = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait_s))

    def count(self, where: str) -> int:
        """Return how many requests contained `where` in their method and path."""
        return sum(where in f"{seen.method} {seen.path}" for seen in self.seen)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Serve a connection; one that the other side leaves is no error."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def do_HEAD(self) -> None:
        """Answer like GET, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer one request."""
        url = urlsplit(self.path)
        path = unquote(url.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        host = self.headers.get("Host", "").partition(":")[0]
        seen = Seen(self.command, path, self.headers.get("Range", ""), token, host)
        with self.hub.lock:
            self.hub.seen.append(seen)
            fault = self._take_fault(f"{self.command} {path}")
        if fault and fault.status:
            return self._refuse(fault.status, fault.headers)
        if path.startswith("/cdn/"):
            return self._send_blob(path.removeprefix("/cdn/"), fault)
        if self.hub.token and token != self.hub.token:
            return self._refuse(401, {})
        return self._route(path, parse_qs(url.query), fault)

    def _route(self, path: str, query: dict[str, list[str]], fault: Fault | None) -> None:
        repo = re.escape(self.hub.repo)
        if match := re.fullmatch(rf"/api/datasets/{repo}(?:/revision/(.+))?", path):
            commit = self._find_commit(match[1] or "main")
            return self._send_json({"id": self.hub.repo, "sha": commit}) if commit else None
        if match := re.fullmatch(rf"/api/datasets/{repo}/tree/([^/]+)/?", path):
            commit = self._find_commit(match[1])
            return self._send_tree(commit, path, query) if commit else None
        if match := re.fullmatch(rf"/datasets/{repo}/resolve/([^/]+)/(.+)", path):
            commit = self._find_commit(match[1])
            return self._send_file(commit, match[2], fault) if commit else None
        return self._refuse(404, {"X-Error-Code": "RepoNotFound"})

    def _take_fault(self, request: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.where in request and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def _find_commit(self, revision: str) -> str:
        commit = self.hub.head if revision == "main" else revision
        if commit in self.hub.commits:
            return commit
        self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        return ""

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_json(self, document: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_tree(self, commit: str, path: str, query: dict[str, list[str]]) -> None:
        entries = []
        for name, one in self.hub.commits[commit].items():
            entry: dict[str, object] = {"type": "file", "oid": one.oid, "size": one.size}
            if one.size >= self.hub.large:
                entry["lfs"] = {"oid": one.sha256, "size": one.size, "pointerSize": 134}
            entries.append({**entry, "path": name})
        folders = {str(parent) for name in self.hub.commits[commit] for parent in _parents(name)}
        entries += [{"type": "directory", "oid": commit, "size": 0, "path": f} for f in folders]
        start = int(query.get("cursor", ["0"])[0])
        stop = start + self.hub.page
        more = {}
        if stop < len(entries):
            url = f"{self.hub.endpoint}{path}?recursive=True&cursor={stop}"
            more = {"Link": f'<{url}>; rel="next"'}
        self._send_json(entries[start:stop], more)

    def _send_file(self, commit: str, name: str, fault: Fault | None) -> None:
        one = self.hub.commits[commit].get(name)
        if one is None:
            return self._refuse(404, {"X-Error-Code": "EntryNotFound"})
        if one.size < self.hub.large:
            return self._send_body(one, fault, {"X-Repo-Commit": commit, "ETag": f'"{one.oid}"'})
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.hub.port}/cdn/{commit}/{name}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Etag", f'"{one.sha256}"')
        self.send_header("X-Linked-Size", str(one.size))
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _send_blob(self, path: str, fault: Fault | None) -> None:
        commit, _, name = path.partition("/")
        self._send_body(self.hub.commits[commit][name], fault, {})

    def _send_body(self, one: Served, fault: Fault | None, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{one.size - 1}/{one.size}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(one.size - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None:
            self._send_faulty(one, start, fault)
            return
        with one.path.open("rb") as file:
            if not self.hub.bytes_per_s:
                self.connection.sendfile(file, start)
                return
            file.seek(start)
            while piece := file.read(PIECE_BYTES):
                self.hub.pace(len(piece))
                self.wfile.write(piece)

    def _send_faulty(self, one: Served, start: int, fault: Fault) -> None:
        content = one.path.read_bytes()[start:]
        if fault.flip:
            self.wfile.write(content[:-1] + bytes([content[-1] ^ 1]))
            return
        self.wfile.write(content[: fault.after])
        if fault.held is not None:
            fault.held.wait(60)
            self.wfile.write(content[fault.after :])
            return
        if fault.reset:
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_WR)


def _parents(name: str) -> list[Path]:
    return list(Path(name).parents)[:-1]


def main() -> None:
    """Serve a folder until the process is interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Hub() as hub:
        hub.publish(Path(sys.argv[1]))
        hub.bytes_per_s = float(sys.argv[2]) * 2**20 if len(sys.argv) > 2 else 0.0
        print(f"export HF_ENDPOINT={hub.endpoint}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
