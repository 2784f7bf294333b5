"""A Hub of one process on loopback, as far as huggingface_hub's client needs one to push and to load a model.

Repositories live in memory. Large files go through LFS as on the real Hub. It stops by itself, whatever its user does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from warm_python import WarmPython

LIFETIME = 900  # seconds
MAX_BODY = 32 * 2**20  # bytes


class Hub(ThreadingHTTPServer):
    """``repos`` maps "owner/name" to its files; ``log`` lists requests; ``lfs`` maps an object's sha256 to its bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.lfs: dict[str, bytes] = {}
        self.log: list[str] = []

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, repo: str) -> str:
        """The commit that a repository stands at."""
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.repos[repo].items())
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub until the block ends, or LIFETIME seconds have passed."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    alarm = threading.Timer(LIFETIME, hub.shutdown)
    alarm.daemon = True
    thread.start()
    alarm.start()
    try:
        yield hub
    finally:
        alarm.cancel()
        hub.shutdown()
        hub.server_close()
        thread.join(5)


@contextmanager
def client_of(hub: Hub, home: Path) -> Iterator[Callable[[str, Path], subprocess.CompletedProcess]]:
    """Runs code, in a folder, in processes whose client had read where the Hub is when it was imported."""
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home / "cache"),
        "HF_TOKEN": "hf_test",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("HF_") or "proxy" in name.lower():
                patch.delenv(name)
        python = WarmPython(**settings)

    def run(code: str, folder: Path) -> subprocess.CompletedProcess:
        ran = python.run("-c", code, folder=folder)
        assert ran.returncode == 0, ran.stderr[-3000:] + "\n".join(hub.log[-20:])
        return ran

    yield run
    python.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def _serve(self) -> None:
        self.server.log.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY:
            return self._answer({"error": "too large"}, status=413)
        self.body = self.rfile.read(length)
        path = self.path.partition("?")[0]
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                return answer(self, **match.groupdict())
        return self._answer({"error": f"no route {self.command} {path}"}, status=404)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _answer(self, content: object, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _known(self, repo: str) -> bool:
        if repo not in self.server.repos:
            self._answer({"error": "Repository not found"}, status=404, X_Error_Code="RepoNotFound")
        return repo in self.server.repos

    def whoami(self) -> None:
        self._answer({"type": "user", "name": "someone", "auth": {"accessToken": {"role": "write"}}})

    def create(self) -> None:
        wanted = json.loads(self.body)
        repo = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        status = 409 if repo in self.server.repos else 200
        self.server.repos.setdefault(repo, {})
        self._answer({"url": f"{self.server.endpoint}/{repo}", "id": repo}, status=status)

    def validate_yaml(self) -> None:
        self._answer({"errors": [], "warnings": []})

    def info(self, repo: str) -> None:
        if self._known(repo):
            siblings = [{"rfilename": path} for path in self.server.repos[repo]]
            self._answer({"id": repo, "sha": self.server.sha(repo), "siblings": siblings, "tags": []})

    def tree(self, repo: str) -> None:
        if self._known(repo):
            files = self.server.repos[repo].items()
            listed = [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for p, d in files
            ]
            self._answer(listed)

    def preupload(self, repo: str) -> None:
        def plan(path: str) -> dict:
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            return {"path": path, "uploadMode": mode, "shouldIgnore": False}

        if self._known(repo):
            self._answer({"files": [plan(file["path"]) for file in json.loads(self.body)["files"]]})

    def lfs_batch(self, repo: str) -> None:
        wanted = json.loads(self.body)["objects"]
        for item in wanted:
            item["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{item['oid']}"}}
        self._answer({"transfer": "basic", "objects": wanted})

    def lfs_put(self, oid: str) -> None:
        right = hashlib.sha256(self.body).hexdigest() == oid
        if right:
            self.server.lfs[oid] = self.body
        self._answer({}, status=200 if right else 400)

    def commit(self, repo: str) -> None:
        if not self._known(repo):
            return
        files = self.server.repos[repo]
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
        sha = self.server.sha(repo)
        self._answer({"commitUrl": f"{self.server.endpoint}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

    def resolve(self, repo: str, path: str) -> None:
        if not self._known(repo):
            return
        data = self.server.repos[repo].get(path)
        commit = {"X_Repo_Commit": self.server.sha(repo)}
        if data is None:
            return self._answer({"error": "Entry not found"}, status=404, X_Error_Code="EntryNotFound", **commit)
        self._answer(data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', **commit)


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", rf"/api/models/{_REPO}(?:/revision/[\w.-]+)?", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/tree/[\w.-]+", _Handler.tree),
    ("POST", rf"/api/models/{_REPO}/preupload/main", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/main", _Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    ("GET HEAD", rf"/{_REPO}/resolve/[\w.-]+/(?P<path>.+)", _Handler.resolve),
]
