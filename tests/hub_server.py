"""A small Hugging Face Hub on loopback: the documented HTTP API over real sockets, for the real client.

    with serving() as hub:                        # HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET=1
        hub.add_user("hf_alice", "alice")
        hub.plant("alice/model", {"config.json": b"{}"})
        hub.fault(r"GET /files/", "truncate")

`python tests/hub_server.py` serves one until Ctrl-C, for trying `hf` and `cxrlib publish` by hand. Everything is in
memory. Large and binary files travel by LFS through a second port that stands for the storage host, as on the Hub:
another origin, to which no token may be sent.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
LFS_SUFFIXES = (".bin", ".h5", ".npz", ".onnx", ".pickle", ".pkl", ".safetensors", ".tflite", ".zip")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
LFS_SIZE = 10 * 2**20
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def blob_id(self) -> str:
        stored = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id


@dataclass
class Repo:
    """One repository: its commits, and the names that stand for them."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    sdk: str | None = None
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> str | None:
        for names in (self.branches, self.tags, self.pulls):
            if revision in names:
                return names[revision]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            return next((commit for commit in self.commits if commit.startswith(revision)), None)
        return None

    def add(self, files: Mapping[str, File], title: str, parent: str | None) -> str:
        text = json.dumps(
            [self.kind, self.id, len(self.commits), title, {name: file.blob_id for name, file in sorted(files.items())}]
        )
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.titles[commit] = title
        if parent:
            self.parents[commit] = parent
        return commit


@dataclass(frozen=True)
class User:
    name: str
    writes: bool
    admitted: bool  # to gated repositories


@dataclass
class Fault:
    """What goes wrong with the next requests whose `METHOD path` matches."""

    pattern: str
    kind: int | str
    times: int
    skip: int
    headers: dict[str, str]


@dataclass(frozen=True)
class Request:
    """What a client asked; kept for the tests to read."""

    method: str
    path: str
    authorized: bool


class Refusal(Exception):
    """An answer other than 200, with the headers that the client goes by."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})


class HubServer:
    """The Hub and its storage host, each on a port of 127.0.0.1."""

    def __init__(self, *, part_bytes: int = 8 * 2**20) -> None:
        self.part_bytes = part_bytes  # larger LFS files are uploaded in parts of this size
        self.repos: dict[tuple[str, str], Repo] = {}
        self.users: dict[str, User] = {}
        self.objects: dict[str, bytes] = {}  # LFS storage, by SHA-256
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        self.paused = threading.Event()  # set once a `stall` or `pause` has a client waiting
        self.connections: set[socket.socket] = set()
        self.hub = _listen(self, _Hub)
        self.storage = _listen(self, _Storage)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.hub.server_address[1]}"

    @property
    def storage_url(self) -> str:
        return f"http://127.0.0.1:{self.storage.server_address[1]}"

    def start(self) -> None:
        for server in (self.hub, self.storage):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        self.stopping.set()
        for server in (self.hub, self.storage):
            server.shutdown()
            server.server_close()
        for connection in list(self.connections):
            _cut(connection)

    def add_user(self, token: str, name: str, *, writes: bool = True, admitted: bool = False) -> None:
        self.users[token] = User(name, writes, admitted)

    def fault(
        self,
        pattern: str,
        kind: int | str,
        *,
        times: int = 1_000_000,
        skip: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Let requests that match fail: an HTTP status, or disconnect, stall (no answer), hang-up (the upload is cut in
        its middle), truncate (half a body, then the line breaks), pause (half a body, then silence), short (half a body
        that claims to be whole), corrupt (one bit wrong), portal (an HTML page with status 200, as a network that wants
        a login gives)."""
        self.faults.append(Fault(pattern, kind, times, skip, dict(headers or {})))

    def create(
        self, repo_id: str, *, kind: str = "model", private: bool = False, gated: bool = False, sdk: str | None = None
    ) -> Repo:
        repo = Repo(kind, repo_id, private, gated, sdk)
        repo.branches["main"] = repo.add({".gitattributes": File(GITATTRIBUTES, False)}, "initial commit", None)
        self.repos[kind, repo_id] = repo
        return repo

    def plant(self, repo_id: str, files: Mapping[str, bytes], *, kind: str = "model", **options: Any) -> str:
        """Put files into a repository by the back door, and give the commit."""
        with self.lock:
            repo = self.repos.get((kind, repo_id)) or self.create(repo_id, kind=kind, **options)
            head = repo.branches["main"]
            new = {name: File(data, is_lfs(name, len(data), data[:512])) for name, data in files.items()}
            repo.branches["main"] = repo.add({**repo.commits[head], **new}, "plant", head)
            return repo.branches["main"]

    def files(self, repo_id: str, revision: str = "main", *, kind: str = "model") -> dict[str, bytes]:
        repo = self.repos[kind, repo_id]
        return {name: file.data for name, file in repo.commits[str(repo.find(revision))].items()}

    def asked(self, pattern: str) -> list[Request]:
        return [request for request in self.requests if re.search(pattern, f"{request.method} {request.path}")]


def is_lfs(name: str, size: int, sample: bytes) -> bool:
    return size > LFS_SIZE or name.endswith(LFS_SUFFIXES) or b"\0" in sample


def _listen(owner: HubServer, handler: type[_Handler]) -> ThreadingHTTPServer:
    bound = type(handler.__name__, (handler,), {"owner": owner})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    server.daemon_threads, server.block_on_close = True, False
    return server


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Bodies in and out, and the faults."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: HubServer
    fault: Fault | None

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        self.owner.connections.add(self.connection)
        try:
            with contextlib.suppress(ConnectionError):
                super().handle()
        finally:
            self.owner.connections.discard(self.connection)

    def serve(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), {key: values[-1] for key, values in parse_qs(parts.query).items()}
        with self.owner.lock:
            self.owner.requests.append(Request(self.command, self.route, "authorization" in self.headers))
            self.fault = self._draw_fault()
        if self.fault and self.fault.kind in ("disconnect", "stall", "hang-up"):
            if self.fault.kind == "stall":
                self.owner.paused.set()
                self.owner.stopping.wait(60)
            if self.fault.kind == "hang-up":
                self.rfile.read(min(1000, int(self.headers.get("Content-Length", 0))))
            self.close_connection = True
            _cut(self.connection)
            return
        body = self._read_body()
        try:
            if self.fault and isinstance(self.fault.kind, int):
                raise Refusal(self.fault.kind, "a fault planted by the test", headers=self.fault.headers)
            if self.fault and self.fault.kind == "portal":
                return self.send(b"<html>Please log in</html>", headers={"Content-Type": "text/html"})
            self.answer(body)
        except Refusal as refusal:
            headers = {
                "X-Error-Message": str(refusal),
                **({"X-Error-Code": refusal.code} if refusal.code else {}),
                **refusal.headers,
            }
            self.send_json({"error": str(refusal)}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def answer(self, body: bytes) -> None:
        raise NotImplementedError

    def _draw_fault(self) -> Fault | None:
        for fault in self.owner.faults:
            if re.search(fault.pattern, f"{self.command} {self.route}"):
                if fault.skip > 0:
                    fault.skip -= 1
                elif fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, data: bytes = b"", status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        claimed = len(data)
        kind = self.fault.kind if self.fault else None
        if kind == "corrupt" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        elif kind == "short":
            data = data[: len(data) // 2]
            claimed = len(data)
        elif kind in ("truncate", "pause"):
            data = data[: len(data) // 2]
        self.send_response(status)
        for name, value in {"X-Request-Id": "local", "Content-Length": str(claimed), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            if len(data) < claimed:
                if kind == "pause":
                    self.owner.paused.set()
                    self.owner.stopping.wait(60)
                self.close_connection = True
                _cut(self.connection)

    def send_json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def send_file(self, file: File, headers: Mapping[str, str] | None = None) -> None:
        headers = {
            "ETag": f'"{file.etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            **(headers or {}),
        }
        if self.headers.get("If-None-Match") == headers["ETag"]:
            return self.send(b"", 304, headers)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match:
            return self.send(file.data, 200, headers)
        start, end = int(match[1]), min(int(match[2] or len(file.data)), len(file.data) - 1)
        if start > end:
            raise Refusal(416, "range not satisfiable", headers={"Content-Range": f"bytes */{len(file.data)}"})
        return self.send(
            file.data[start : end + 1], 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(file.data)}"}
        )


class _Storage(_Handler):
    """The storage host: objects by hash, behind signed addresses."""

    def answer(self, body: bytes) -> None:
        _, place, oid = self.route.split("/")
        if self.query.get("signature") != _signature(oid):
            raise Refusal(403, "the signature does not match")
        if place == "files":
            return self.send_file(File(self.owner.objects[oid], True))
        if "part" in self.query:
            self.owner.parts[oid, int(self.query["part"])] = body
            return self.send(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "the content does not have the announced hash")
        self.owner.objects[oid] = body
        return self.send()


def _signature(oid: str) -> str:
    return hashlib.sha256(b"signed " + oid.encode()).hexdigest()[:16]


_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = []


def _route(method: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(function: Callable[..., None]) -> Callable[..., None]:
        _ROUTES.append(
            (
                method,
                re.compile(pattern.replace("{repo}", "(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)")),
                function,
            )
        )
        return function

    return register


class _Hub(_Handler):
    """The API. Each route gives what https://huggingface.co/docs/hub/api and the client's own source say it gives."""

    def answer(self, body: bytes) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, function in _ROUTES:
            if verb == method and (match := pattern.fullmatch(self.route)):
                with self.owner.lock:
                    return function(self, body, **match.groupdict())
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")

    # Who may do what

    def user(self) -> User | None:
        header = self.headers.get("authorization", "")
        if not header:
            return None
        user = self.owner.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def writer(self, repo_id: str) -> User:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if not user.writes or repo_id.split("/")[0] != user.name:
            raise Refusal(403, f"You don't have the rights to write to {repo_id}")
        return user

    def repo(self, kind: str, repo_id: str, *, content: bool = False) -> Repo:
        user, repo = self.user(), self.owner.repos.get((KINDS[kind], repo_id))
        if repo is None or (repo.private and (user is None or user.name != repo_id.split("/")[0])):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if content and repo.gated and not (user and user.admitted):
            raise Refusal(403 if user else 401, f"Access to model {repo_id} is restricted.", "GatedRepo")
        return repo

    def commit(self, repo: Repo, revision: str) -> str:
        commit = repo.find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def page(self, repo: Repo) -> str:
        return f"{self.owner.url}/{'' if repo.kind == 'model' else repo.kind + 's/'}{repo.id}"

    # Accounts and repositories

    @_route("GET", "/api/whoami-v2")
    def whoami(self, body: bytes) -> None:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        role = "write" if user.writes else "read"
        self.send_json(
            {
                "type": "user",
                "id": "1",
                "name": user.name,
                "fullname": user.name,
                "orgs": [],
                "auth": {"accessToken": {"role": role}},
            }
        )

    @_route("POST", "/api/repos/create")
    def create_repo(self, body: bytes) -> None:
        asked = json.loads(body)
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        repo_id, kind = f"{asked.get('organization') or user.name}/{asked['name']}", asked.get("type") or "model"
        if (known := self.owner.repos.get((kind, repo_id))) and repo_id.split("/")[0] == user.name:
            return self.send_json({"error": f"You already created this {kind} repo", "url": self.page(known)}, 409)
        self.writer(repo_id)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repo = self.owner.create(repo_id, kind=kind, private=private, sdk=asked.get("sdk"))
        self.send_json({"url": self.page(repo), "name": repo_id, "id": repo_id})

    @_route("DELETE", "/api/repos/delete")
    def delete_repo(self, body: bytes) -> None:
        asked = json.loads(body)
        user = self.user()
        repo_id, kind = (
            f"{asked.get('organization') or (user.name if user else '')}/{asked['name']}",
            asked.get("type") or "model",
        )
        self.writer(repo_id)
        if self.owner.repos.pop((kind, repo_id), None) is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        self.send_json({})

    @_route("POST", "/api/validate-yaml")
    def validate_yaml(self, body: bytes) -> None:
        import yaml

        match = re.match(r"---\n(.*?\n)---\n", json.loads(body)["content"], re.DOTALL)
        if not match:
            return self.send_json(
                {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
            )
        try:
            yaml.safe_load(match[1])
        except yaml.YAMLError as error:
            return self.send_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return self.send_json({"errors": [], "warnings": []})

    @_route("GET", "/api/{repo}/auth-check")
    def auth_check(self, body: bytes, kind: str, repo_id: str) -> None:
        self.repo(kind, repo_id, content=True)
        self.send_json({})

    # What a repository holds

    @_route("GET", "/api/{repo}(?:/revision/(?P<revision>.+))?")
    def info(self, body: bytes, kind: str, repo_id: str, revision: str | None) -> None:
        repo = self.repo(kind, repo_id)
        commit = self.commit(repo, revision or "main")
        siblings: list[dict[str, Any]] = []
        for name, file in repo.commits[commit].items():
            siblings.append({"rfilename": name})
            if self.query.get("blobs", "").lower() == "true":
                siblings[-1] |= {"size": len(file.data), "blobId": file.blob_id}
                if file.lfs:
                    siblings[-1]["lfs"] = {
                        "sha256": file.sha256,
                        "size": len(file.data),
                        "pointerSize": len(file.pointer),
                    }
        answer = {
            "_id": "1",
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit,
            "lastModified": DATE,
            "createdAt": DATE,
        }
        answer |= {
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        self.send_json({**answer, "siblings": siblings, **({"sdk": repo.sdk} if repo.sdk else {})})

    def _entry(self, name: str, file: File) -> dict[str, Any]:
        entry = {"type": "file", "path": name, "size": len(file.data), "oid": file.blob_id}
        if file.lfs:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": len(file.pointer)}
        return entry

    @_route("GET", "/api/{repo}/tree/(?P<revision>refs/pr/[0-9]+|[^/]+)(?:/(?P<folder>.+))?")
    def tree(self, body: bytes, kind: str, repo_id: str, revision: str, folder: str | None) -> None:
        repo = self.repo(kind, repo_id)
        files = repo.commits[self.commit(repo, revision)]
        prefix = f"{folder}/" if folder else ""
        inside = {name: file for name, file in files.items() if name.startswith(prefix)}
        if folder and not inside:
            raise Refusal(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        deep = self.query.get("recursive", "").lower() == "true"
        folders = {prefix + name[len(prefix) :].split("/")[0] for name in inside if "/" in name[len(prefix) :]}
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
            for name in sorted(folders)
        ]
        entries += [
            self._entry(name, file) for name, file in sorted(inside.items()) if deep or "/" not in name[len(prefix) :]
        ]
        start, size = int(self.query.get("cursor", 0)), int(self.query.get("limit", 1000))
        headers = {}
        if start + size < len(entries):
            again = "&".join(
                f"{key}={quote(value)}" for key, value in {**self.query, "cursor": str(start + size)}.items()
            )
            headers["Link"] = f'<{self.owner.url}{quote(self.route)}?{again}>; rel="next"'
        self.send_json(entries[start : start + size], headers=headers)

    @_route("POST", "/api/{repo}/paths-info/(?P<revision>.+)")
    def paths_info(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id)
        files = repo.commits[self.commit(repo, revision)]
        self.send_json(
            [self._entry(name, files[name]) for name in parse_qs(body.decode()).get("paths", []) if name in files]
        )

    @_route("GET", "/api/{repo}/refs")
    def refs(self, body: bytes, kind: str, repo_id: str) -> None:
        repo = self.repo(kind, repo_id)

        def listing(names: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": prefix + name, "targetCommit": commit} for name, commit in names.items()]

        answer = {
            "branches": listing(repo.branches, "refs/heads/"),
            "tags": listing(repo.tags, "refs/tags/"),
            "converts": [],
        }
        self.send_json({**answer, "pullRequests": listing(repo.pulls, "")})

    @_route("GET", "/api/{repo}/commits/(?P<revision>.+)")
    def commits(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id)
        commit: str | None = self.commit(repo, revision)
        answer = []
        while commit:
            answer.append(
                {
                    "id": commit,
                    "title": repo.titles[commit],
                    "message": "",
                    "authors": [{"user": repo_id.split("/")[0]}],
                    "date": DATE,
                }
            )
            commit = repo.parents.get(commit)
        self.send_json(answer)

    @_route(
        "GET",
        "/(?:(?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>refs/pr/[0-9]+|[^/]+)/(?P<name>.+)",
    )
    def resolve(self, body: bytes, kind: str | None, repo_id: str, revision: str, name: str) -> None:
        repo = self.repo(kind or "models", repo_id, content=True)
        commit = self.commit(repo, revision)
        known = {"X-Repo-Commit": commit}
        file = repo.commits[commit].get(name)
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", known)
        known |= {"X-Linked-Size": str(len(file.data)), "X-Linked-ETag": f'"{file.etag}"'}
        if file.lfs:
            self.owner.objects[file.sha256] = file.data
            location = f"{self.owner.storage_url}/files/{file.sha256}?signature={_signature(file.sha256)}"
            return self.send(f"Found. Redirecting to {location}".encode(), 302, {**known, "Location": location})
        location = f"/api/resolve-cache/{kind or 'models'}/{repo_id}/{commit}/{quote(name)}"
        return self.send(
            f"Temporary Redirect. Redirecting to {location}".encode(), 307, {**known, "Location": location}
        )

    @_route("GET", "/api/resolve-cache/{repo}/(?P<commit>[0-9a-f]{40})/(?P<name>.+)")
    def resolve_cache(self, body: bytes, kind: str, repo_id: str, commit: str, name: str) -> None:
        repo = self.repo(kind, repo_id, content=True)
        self.send_file(repo.commits[commit][name], {"X-Repo-Commit": commit})

    # Uploads

    @_route("POST", "/api/{repo}/preupload/(?P<revision>.+)")
    def preupload(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id)
        present = repo.commits[self.commit(repo, revision)]
        answer = []
        for file in json.loads(body)["files"]:
            lfs = is_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
            known = present.get(file["path"])
            answer.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": known.etag if known else None,
                }
            )
        self.send_json({"files": answer})

    @_route("POST", "/(?:(?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+)\\.git/info/lfs/objects/batch")
    def lfs_batch(self, body: bytes, kind: str | None, repo_id: str) -> None:
        self.repo(kind or "models", repo_id)
        asked = json.loads(body)
        if "ref" in asked or self.user() is None:  # without a branch it is for a pull request, which any user may open
            self.writer(repo_id)
        answer = []
        for item in asked["objects"]:
            oid, size = item["oid"], item["size"]
            answer.append({"oid": oid, "size": size})
            if oid in self.owner.objects:
                continue
            upload: dict[str, Any] = {"href": f"{self.owner.storage_url}/upload/{oid}?signature={_signature(oid)}"}
            if size > self.owner.part_bytes:
                parts = range(1, -(-size // self.owner.part_bytes) + 1)
                header = {
                    "chunk_size": str(self.owner.part_bytes),
                    **{str(n): f"{upload['href']}&part={n}" for n in parts},
                }
                upload = {"href": f"{self.owner.url}/api/complete_multipart?oid={oid}", "header": header}
            verify = {"href": f"{self.owner.url}/api/lfs-verify", "header": {}}
            answer[-1] |= {"authenticated": True, "actions": {"upload": upload, "verify": verify}}
        self.send_json({"transfer": "basic", "objects": answer})

    @_route("POST", "/api/complete_multipart")
    def complete_multipart(self, body: bytes) -> None:
        oid = self.query["oid"]
        data = b"".join(self.owner.parts.pop((oid, part["partNumber"])) for part in json.loads(body)["parts"])
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "the parts do not have the announced hash")
        self.owner.objects[oid] = data
        self.send_json({})

    @_route("POST", "/api/lfs-verify")
    def lfs_verify(self, body: bytes) -> None:
        asked = json.loads(body)
        if len(self.owner.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, "object not found")
        self.send_json({})

    @_route("POST", "/api/{repo}/commit/(?P<revision>.+)")
    def create_commit(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id)
        pull = self.query.get("create_pr") == "1"
        if not pull:
            self.writer(repo_id)
        elif self.user() is None:
            raise Refusal(401, "Invalid username or password.")
        branch = repo.pulls if revision in repo.pulls else repo.branches
        if revision not in branch:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = branch[revision]
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit", head)
        if not head.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.owner.objects:
                    raise Refusal(
                        400,
                        f"Your push was rejected: an LFS pointer pointed to a file that does not exist: {value['oid']}",
                    )
                files[value["path"]] = File(self.owner.objects[value["oid"]], True)
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            elif line["key"] == "deletedFolder":
                files = {name: file for name, file in files.items() if not name.startswith(value["path"])}
        commit = repo.add(files, lines[0]["value"]["summary"], head)
        answer = {
            "success": True,
            "commitOid": commit,
            "commitUrl": f"{self.page(repo)}/commit/{commit}",
            "hookOutput": "",
        }
        if pull:
            number = len(repo.pulls) + 1
            repo.pulls[f"refs/pr/{number}"] = commit
            answer["pullRequestUrl"] = f"{self.page(repo)}/discussions/{number}"
        else:
            branch[revision] = commit
        self.send_json(answer)

    # Names for commits, and what a Space is told

    @_route("POST", "/api/{repo}/tag/(?P<revision>.+)")
    def create_tag(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id)
        self.writer(repo_id)
        tag = json.loads(body)["tag"]
        if tag in repo.tags:
            raise Refusal(409, f"Tag reference exists already: {tag}")
        repo.tags[tag] = self.commit(repo, revision)
        self.send_json({})

    @_route("DELETE", "/api/{repo}/tag/(?P<tag>.+)")
    def delete_tag(self, body: bytes, kind: str, repo_id: str, tag: str) -> None:
        repo = self.repo(kind, repo_id)
        self.writer(repo_id)
        if repo.tags.pop(tag, None) is None:
            raise Refusal(404, f"Invalid rev id: {tag}", "RevisionNotFound")
        self.send_json({})

    @_route("POST", "/api/{repo}/branch/(?P<branch>.+)")
    def create_branch(self, body: bytes, kind: str, repo_id: str, branch: str) -> None:
        repo = self.repo(kind, repo_id)
        self.writer(repo_id)
        if branch in repo.branches:
            raise Refusal(409, f"Reference already exists: {branch}")
        repo.branches[branch] = self.commit(repo, json.loads(body or b"{}").get("startingPoint", "main"))
        self.send_json({})

    @_route("POST", "/api/{repo}/variables")
    def add_variable(self, body: bytes, kind: str, repo_id: str) -> None:
        repo = self.repo(kind, repo_id)
        self.writer(repo_id)
        asked = json.loads(body)
        repo.variables[asked["key"]] = asked["value"]
        self.send_json({key: {"value": value} for key, value in repo.variables.items()})


def environment(hub: HubServer, home: Path) -> dict[str, str]:
    """What a fresh process needs in its environment to use this Hub, with everything it stores below `home`."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }


@contextlib.contextmanager
def client_of(hub: HubServer, home: Path) -> Iterator[None]:
    """Let this process use this Hub and no other, without waiting between its retries."""
    import time

    import pytest
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(hub, home).items():
            patch.setenv(name, value)
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        patch.setattr(time, "sleep", lambda seconds: None)
        yield
    close_session()


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[HubServer]:
    hub = HubServer(**options)
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


if __name__ == "__main__":
    with serving() as local, contextlib.suppress(KeyboardInterrupt):
        local.add_user("hf_local", "local")
        sys.stdout.write(f"export HF_ENDPOINT={local.url} HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_local  # user: local\n")
        sys.stdout.flush()
        threading.Event().wait()
