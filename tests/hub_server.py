"""A small HTTP server on this machine that answers huggingface_hub as the Hugging Face Hub does.

It has the endpoints that `HfApi` and `hf_hub_download` use to create repositories, commit files and download them;
files go through Git LFS, not through Xet.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_standin"
"""The token that may write; a user `me` and an organisation `org` own repositories."""
LFS = (".parquet", ".safetensors", ".png")
"""Endings of files that go through LFS; the Hub's .gitattributes lists them."""


@dataclass
class Repository:
    """A repository: its commits, and which one each branch is at."""

    kind: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Commit -> the files in it."""
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit with exactly these files."""
        told = [*self.commits, *sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())]
        number = hashlib.sha1(repr(told).encode()).hexdigest()
        self.commits[number] = files
        self.branches[branch] = number
        return number

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Hub:
    """What the server has, and what it was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    """Path of a repository, such as datasets/org/name -> the repository."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> content of a file that went through LFS."""
    asked: list[str] = field(default_factory=list)
    """The requests: method and path."""
    fails: int | None = None
    """Status that every request is answered with, if there is one."""
    sizes: dict[str, int] = field(default_factory=dict)
    """File -> the size that is claimed for it instead of its own."""

    def repository(self, path: str, *, private: bool = False) -> Repository:
        kind = "dataset" if path.startswith("datasets/") else "model"
        return self.repositories.setdefault(path, Repository(kind, private))

    def put(self, path: str, folder: Path, *names: str, **others: bytes) -> str:
        """Commit the files of a folder to a repository; its commit."""
        found = {file.name: file.read_bytes() for file in folder.iterdir() if not names or file.name in names}
        return self.repository(path).commit(found | others)


class Refused(Exception):
    """An answer with an error: its status, and the code and message in its headers."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def _lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *_: Any) -> None:
        """Print nothing."""

    def do_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.hub.asked.append(f"{self.command} {unquote(parts.path)}")
        try:
            if self.hub.fails is not None:
                raise Refused(self.hub.fails)
            for method, pattern, answer in ROUTES:
                if method == self.command and (match := re.fullmatch(pattern, parts.path)):
                    return answer(self, **{name: unquote(text) for name, text in match.groupdict().items()})
            raise Refused(404, message=f"no such endpoint {self.path}")
        except Refused as error:
            self.answer({"error": error.message or "refused"}, error.status, code=error.code, message=error.message)

    do_GET = do_HEAD = do_POST = do_PUT = do_any

    def answer(self, value: Any, status: int = 200, *, code: str = "", message: str = "") -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
        self.send(json.dumps(value).encode(), status, {name: text for name, text in named.items() if text})

    def send(self, content: bytes, status: int, headers: dict[str, str], size: int | None = None) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def is_me(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def writable(self) -> None:
        if not self.is_me:
            raise Refused(401, message="Invalid username or password.")

    def found(self, path: str) -> Repository:
        """A repository that this user may read; the Hub hides private ones."""
        found = self.hub.repositories.get(path)
        if found is None or (found.private and not self.is_me):
            raise Refused(404 if self.is_me else 401, "RepoNotFound", "Repository not found")
        return found

    def files(self, path: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """A commit and its files."""
        found = self.found(path)
        commit = found.at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, found.commits[commit]

    # What follows answers one endpoint each.

    def create(self) -> None:
        self.writable()
        asked = json.loads(self.body)
        owner = asked.get("organization") or "me"
        if owner not in ("me", "org"):
            raise Refused(403, message=f"You don't have the rights to create a {asked['type']} under {owner}")
        prefix = "datasets/" if asked.get("type") == "dataset" else ""
        path = f"{prefix}{owner}/{asked['name']}"
        url = f"{self.hub.url}/{path}"
        if path in self.hub.repositories:
            return self.answer({"error": "You already created this repo", "url": url}, 409)
        found = self.hub.repository(path, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        found.commit({".gitattributes": b"*.parquet filter=lfs\n"})
        return self.answer({"url": url, "name": f"{owner}/{asked['name']}", "id": f"{owner}/{asked['name']}"})

    def validate(self) -> None:
        front = json.loads(self.body)["content"]
        wrong = [] if front.startswith("---\n") else [{"message": "no front matter"}]
        if "license: nonsense" in front:
            wrong.append({"message": '"license" must be one of [apache-2.0, mit, cc-by-4.0, other, ...]'})
        self.answer({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def preupload(self, path: str, revision: str) -> None:
        self.writable()
        _, files = self.files(_of_api(path), revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS) else "regular"
            data = files.get(file["path"])
            digest = None if data is None else _oid(data, mode)
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": digest})
        self.answer({"files": answers})

    def batch(self, path: str) -> None:
        self.writable()
        self.found(path)
        asked = json.loads(self.body)["objects"]
        href = f"{self.hub.url}/lfs/"
        objects = [
            one
            | (
                {}
                if one["oid"] in self.hub.objects
                else {"actions": {"upload": {"href": href + one["oid"], "header": {}}}}
            )
            for one in asked
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self.answer({})

    def commit(self, path: str, revision: str) -> None:
        self.writable()
        path = _of_api(path)
        found, (_, files) = self.found(path), self.files(path, revision)
        files = dict(files)
        for line in _lines(self.body):
            value = line["value"]
            if line["key"] == "header":
                found.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                files.pop(value["path"])
        number = found.commit(files, revision)
        url = f"{self.hub.url}/{path}/commit/{number}"
        self.answer({"success": True, "commitOid": number, "commitUrl": url, "pullRequestUrl": None})

    def branch(self, path: str, revision: str) -> None:
        self.writable()
        found = self.found(_of_api(path))
        if revision in found.branches:
            return self.answer({"error": "Reference already exists"}, 409)
        found.branches[revision] = found.branches["main"]
        return self.answer({})

    def info(self, path: str, revision: str = "main") -> None:
        path = _of_api(path)
        commit, files = self.files(path, revision)
        found = self.found(path)
        named = path.removeprefix("datasets/")
        siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
        self.answer({"id": named, "sha": commit, "private": found.private, "siblings": siblings, "tags": []})

    def tree(self, path: str, revision: str) -> None:
        _, files = self.files(_of_api(path), revision)
        self.answer([_entry(name, data) for name, data in files.items()])

    def paths_info(self, path: str, revision: str) -> None:
        _, files = self.files(_of_api(path), revision)
        named = json.loads(self.body)["paths"] if self.body.startswith(b"{") else parse_qs(self.body.decode())["paths"]
        self.answer([_entry(name, files[name]) for name in named if name in files])

    def resolve(self, path: str, revision: str, file: str) -> None:
        if self.found(path).gated and not self.is_me:
            raise Refused(401, "GatedRepo", "Access to this repository is restricted")
        commit, files = self.files(path, revision)
        named = {"X-Repo-Commit": commit}
        if file not in files:
            return self.send(b"", 404, {**named, "X-Error-Code": "EntryNotFound"})
        data = files[file]
        size = self.hub.sizes.get(file, len(data))
        mode = "lfs" if file.endswith(LFS) else "regular"
        named |= {"ETag": f'"{_oid(data, mode)}"', "Accept-Ranges": "bytes"}
        return self.send(data, 200, named, size if self.command == "HEAD" else None)


def _of_api(path: str) -> str:
    """The path of a repository from that in the API, where models have a prefix too."""
    return path.removeprefix("models/")


def _entry(name: str, data: bytes) -> dict[str, Any]:
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {
        "type": "file",
        "oid": _oid(data, "regular"),
        "size": len(data),
        "path": name,
        **({"lfs": lfs} if name.endswith(LFS) else {}),
    }


def _oid(data: bytes, mode: str) -> str:
    """The SHA-256 of a file that goes through LFS, the Git hash of another."""
    if mode == "lfs":
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


PATH, API = r"(?P<path>(?:datasets/)?[\w.-]+/[\w.-]+)", r"/api/(?P<path>(?:datasets|models)/[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", rf"{API}/preupload/{REVISION}", Handler.preupload),
    ("POST", rf"/{PATH}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)", Handler.upload),
    ("POST", rf"{API}/commit/{REVISION}", Handler.commit),
    ("POST", rf"{API}/branch/{REVISION}", Handler.branch),
    ("GET", API, Handler.info),
    ("GET", rf"{API}/revision/{REVISION}", Handler.info),
    ("GET", rf"{API}/tree/{REVISION}", Handler.tree),
    ("POST", rf"{API}/paths-info/{REVISION}", Handler.paths_info),
    ("HEAD", rf"/{PATH}/resolve/{REVISION}/(?P<file>.+)", Handler.resolve),
    ("GET", rf"/{PATH}/resolve/{REVISION}/(?P<file>.+)", Handler.resolve),
]
"""Method, path and answer of each endpoint."""


@contextmanager
def serving() -> Iterator[Hub]:
    """Start a Hub on this machine with nothing in it."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
