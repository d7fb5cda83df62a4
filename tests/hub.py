"""A Hugging Face hub in miniature: the real client of huggingface_hub talks to it over HTTP, on this machine only.

It keeps repositories in memory, as one list of commits per branch, and answers what the client asks for creating a
repository or a branch, committing, listing and reading files. Cards with metadata that is no YAML are refused, private
repositories are hidden from those without the token ``"hf_right"``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_right"


class Hub(ThreadingHTTPServer):
    """The server; ``repositories[name][branch]`` maps file names to contents, ``requests`` counts what came in."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def revision(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a branch, or of the commit itself."""
        for branch, files in self.repositories.get(name, {}).items():
            commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
            if revision in (branch, commit):
                return commit, files
        return None


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests look at ``requests``."""

    def do_HEAD(self) -> None:
        """As ``GET``, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Information on a revision, its files, or one of them."""
        parts = self._parts()
        if parts[:2] == ["api", "models"]:
            name, verb, revision = "/".join(parts[2:4]), *(parts[4:6] or ["revision", "main"])
        else:
            name, verb, revision = "/".join(parts[:2]), parts[2], parts[3]
        if name not in self.server.repositories or (name in self.server.private and not self._authorised()):
            return self._json({"error": "Repository Not Found"}, 401, {"X-Error-Code": "RepoNotFound"})
        found = self.server.revision(name, revision)
        if found is None:
            return self._json({"error": "Revision Not Found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if verb == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})
        if verb == "tree":
            rows = [{"type": "file", "path": f, "size": len(c), "oid": _oid(c)} for f, c in files.items()]
            return self._json(rows)
        content = files["/".join(parts[4:])]
        return self._send(content, 200, {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"'})

    def do_POST(self) -> None:
        """Create a repository or a branch, look at a card, say how files travel, commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self._parts()
        if parts[:2] == ["api", "validate-yaml"]:
            return self._validate(json.loads(body)["content"])
        if not self._authorised():
            return self._json({"error": "Invalid username or password."}, 401)
        if parts[:3] == ["api", "repos", "create"]:
            data = json.loads(body)
            name = f"{data['organization']}/{data['name']}" if data.get("organization") else data["name"]
            self.server.repositories.setdefault(name, {"main": {}})
            if data.get("private") or data.get("visibility") == "private":
                self.server.private.add(name)
            return self._json({"url": f"{self.server.address}/{name}", "name": name, "id": name})
        name, verb, revision = "/".join(parts[2:4]), parts[4], parts[5]
        branches = self.server.repositories[name]
        if verb == "branch":
            branches.setdefault(revision, dict(branches["main"]))
            return self._json({})
        if verb == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        for line in body.decode().splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                value = operation["value"]
                branches[revision][value["path"]] = base64.b64decode(value["content"])
        commit = self.server.revision(name, revision)
        assert commit is not None
        address = f"{self.server.address}/{name}/commit/{commit[0]}"
        return self._json({"success": True, "commitOid": commit[0], "commitUrl": address, "hookOutput": ""})

    def _validate(self, card: str) -> None:
        try:
            data = yaml.safe_load(card.split("---\n")[1])
            problems = [] if isinstance(data, dict) else [{"message": "metadata is no mapping"}]
        except (yaml.YAMLError, IndexError) as error:
            problems = [{"message": str(error)}]
        self._json({"errors": problems, "warnings": []}, 400 if problems else 200)

    def _parts(self) -> list[str]:
        self.server.requests.append(f"{self.command} {urlsplit(self.path).path}")
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for its own, with an empty cache in ``cache`` and nobody logged in."""
    from huggingface_hub import constants

    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        patch.delenv(name, raising=False)
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
