"""A hub on this machine: as much of its interface as reading and writing a repository takes, with its real client."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """``repos``: repository -> path -> bytes. ``asked``: what was told when one was made."""

    repos: dict[str, dict[str, bytes]]
    asked: list[dict[str, Any]]

    def log_message(self, *_: Any) -> None: ...

    def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _say(self, value: Any, status: int = 200, **headers: str) -> None:
        self._answer(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def do_GET(self) -> None:
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = words[:2] == ["api", "models"]
        repo = "/".join(words[2:4] if api else words[:2])
        if (files := self.repos.get(repo)) is None:
            self._say({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif api and words[4:5] == ["tree"]:
            self._say([{"type": "file", "path": path, "size": len(b), "oid": "0"} for path, b in files.items()])
        elif api:
            self._say({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})
        elif (path := "/".join(words[4:])) in files:
            self._answer(files[path], X_Repo_Commit=COMMIT, ETag=f'"{path.replace("/", "-")}"')
        else:
            self._say({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server asks for

    def do_POST(self) -> None:
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        body, repo = self.rfile.read(int(self.headers["Content-Length"])), "/".join(words[2:4])
        if words[1:] == ["repos", "create"]:
            self.asked.append(made := json.loads(body))
            self.repos.setdefault(name := f"{made['organization']}/{made['name']}", {".gitattributes": b""})
            self._say({"url": f"http://{self.headers['Host']}/{name}"})
        elif words[1] == "validate-yaml":
            self._say({"errors": [], "warnings": []})
        elif words[4] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._say({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._say({"commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})


@contextmanager
def serving(**repos: dict[str, bytes]) -> Iterator[tuple[str, type[Hub]]]:
    """Its address, and what it holds; ``repos`` are someone's."""

    class Mine(Hub):
        """Of one test."""

    Mine.repos, Mine.asked = {f"someone/{name}": files for name, files in repos.items()}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", Mine
    finally:
        server.shutdown()
        server.server_close()


def held(folder: Path) -> dict[str, bytes]:
    """The files under a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
