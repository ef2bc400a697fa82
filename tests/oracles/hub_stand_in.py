"""A local stand-in of the Hugging Face Hub: what pushing and loading a model calls, and no more.

create repository, validate-yaml, preupload, LFS batch and upload, commit, model info, resolve.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_stand_in"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
RELATIONS = ("adapter", "merge", "quantized", "finetune")


class Refused(Exception):
    """An answer that is an error: status, message and the Hub's error code."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class HubStandIn:
    """What the Hub holds, and how it answers. `failing` maps "METHOD kind" to a status."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failing: dict[str, int] = {}

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> Any:
        """JSON values, or (commit, bytes) of a file. Raises Refused."""
        routes = ((kind, re.fullmatch(pattern, path)) for kind, pattern in ROUTES.items())
        kind, name = next(((kind, match) for kind, match in routes if match), (None, None))
        if kind is None:
            raise Refused(404, f"the stand-in has no {path}")
        self.asked.append(f"{method} {kind}")
        if status := self.failing.get(f"{method} {kind}"):
            raise Refused(status, "no space left on storage" if status == 507 else "broken")
        if kind in ("create", "preupload", "batch", "commit") and token != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid username or password.")
        return getattr(self, f"_{kind}")(body, **name.groupdict())

    def _create(self, body: bytes) -> dict[str, Any]:
        wanted = json.loads(body)
        repo = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        url = {"url": f"{self.endpoint}/{repo}"}
        if repo in self.repositories:
            return {**url, "status": 409, "error": "You already created this model repo"}
        self.repositories[repo] = {}
        return url

    def _validate(self, body: bytes) -> dict[str, Any]:
        content = json.loads(body)["content"]
        match = re.match(r"---\n([\S\s]*?)\n---\n", content)
        if match is None:
            return {"warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        data = yaml.safe_load(match.group(1))
        wrong = [
            f'"{field}" is {data.get(field)!r}'
            for field, fits in {
                "license": data.get("license") in ("mit", "apache-2.0", "other"),
                "library_name": isinstance(data.get("library_name"), str),
                "tags": all(isinstance(tag, str) for tag in data.get("tags") or [None]),
                "base_model": HUB_ID.fullmatch(data.get("base_model", "a/b")),
                "base_model_relation": data.get("base_model_relation", "merge") in RELATIONS,
            }.items()
            if not fits
        ]
        errors = [{"message": message} for message in wrong]
        return {"errors": errors, "warnings": [], "status": 400 if wrong else 200}

    def _info(self, body: bytes, repo: str) -> dict[str, Any]:
        self._files(repo)
        return {"id": repo, "sha": self.commits.get(repo)}

    def _preupload(self, body: bytes, repo: str) -> dict[str, Any]:
        self._files(repo)
        modes = {True: "lfs", False: "regular"}
        files = [file["path"] for file in json.loads(body)["files"]]
        return {
            "files": [
                {
                    "path": path,
                    "uploadMode": modes[path.endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for path in files
            ]
        }

    def _batch(self, body: bytes, repo: str) -> dict[str, Any]:
        self._files(repo)
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.endpoint}/store/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _store(self, body: bytes, oid: str) -> dict[str, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the content does not hash to its name")
        self.blobs[oid] = body
        return {}

    def _commit(self, body: bytes, repo: str) -> dict[str, Any]:
        files = dict(self._files(repo))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.blobs:
                    raise Refused(400, "no such LFS object")
                files[value["path"]] = self.blobs[value["oid"]]
        self.repositories[repo] = files
        content = b"".join(files[path] for path in sorted(files))
        self.commits[repo] = hashlib.sha1(content).hexdigest()
        url = f"{self.endpoint}/{repo}/commit/{self.commits[repo]}"
        return {"success": True, "commitUrl": url, "commitOid": self.commits[repo]}

    def _resolve(self, body: bytes, repo: str, path: str) -> tuple[str, bytes]:
        files = self._files(repo)
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        return self.commits[repo], files[path]

    def _files(self, repo: str) -> dict[str, bytes]:
        if repo not in self.repositories:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return self.repositories[repo]


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = {
    "create": r"/api/repos/create",
    "validate": r"/api/validate-yaml",
    "preupload": rf"/api/models/{REPO}/preupload/main",
    "commit": rf"/api/models/{REPO}/commit/main",
    "info": rf"/api/models/{REPO}",
    "batch": rf"/{REPO}\.git/info/lfs/objects/batch",
    "store": r"/store/(?P<oid>[0-9a-f]{64})",
    "resolve": rf"/{REPO}/resolve/[^/]+/(?P<path>.+)",
}


class Handler(BaseHTTPRequestHandler):
    """Carries HTTP to and from the HubStandIn of its server."""

    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        hub: HubStandIn = self.server.hub  # type: ignore[attr-defined]
        path, body = self.path.partition("?")[0], self._body()
        headers = {}
        try:
            answer = hub.answer(self.command, path, body, self.headers.get("Authorization"))
        except Refused as refused:
            answer = {"error": str(refused), "status": refused.status}
            headers = {"X-Error-Message": str(refused)}
            if refused.code is not None:
                headers["X-Error-Code"] = refused.code
        status = 200
        if isinstance(answer, tuple):
            commit, content = answer
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        else:
            status = answer.pop("status", 200)
            content = json.dumps(answer).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *args: object) -> None:
        """Silence."""


@contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """Serve one on a free local port while the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = HubStandIn(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
