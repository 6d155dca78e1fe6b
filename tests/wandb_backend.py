"""As much of W&B's server as a run needs to be online: it answers, and keeps what it was told.

The shapes of its answers are those that the package wandb checks; everything it does not know is answered with nothing.
"""

import base64
import gzip
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENTITY = "our-team"


class Backend(ThreadingHTTPServer):
    """Runs in a thread of its own until `stop`.

    Attributes:
        runs: what was said of each run, by id.
        artifacts: what was logged or used, by id.
        used: ids of artifacts with the run that used them.
        history: rows by run.
        uploads: contents by path.
    """

    daemon_threads, block_on_close = True, False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runs: dict[str, dict] = {}
        self.artifacts: dict[str, dict] = {}
        self.used: list[tuple[str, str]] = []
        self.history: dict[str, list[dict]] = {}
        self.uploads: dict[str, bytes] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """The server is gone from here on."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nothing to speak of; an error of ours is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    # --- answers ------------------------------------------------------------------------------------------------------

    def answer(self, name: str, given: dict) -> dict:
        """What the operation `name` of GraphQL gives."""
        return getattr(self, f"_{name}", lambda given: {})(given.get("input", given))

    def _Viewer(self, given: dict) -> dict:  # noqa: N802
        return {"viewer": {"id": "u", "entity": ENTITY, "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def _ServerFeaturesQuery(self, given: dict) -> dict:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, given: dict) -> dict:  # noqa: N802
        return {"model": {"id": "p", "name": given["project"], "entity": {"id": "e", "name": ENTITY}, "bucket": None}}

    def _UpsertBucket(self, given: dict) -> dict:  # noqa: N802
        told = {key: value for key, value in given.items() if value is not None}
        self.runs.setdefault(given["name"], {}).update(told)
        project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": ENTITY}}
        bucket = {"id": "b", "name": given["name"], "displayName": "run", "description": "", "config": "{}"}
        bucket |= {"sweepName": None, "historyLineCount": 0, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _CreateRunFiles(self, given: dict) -> dict:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}

    def _ArtifactType(self, given: dict) -> dict:  # noqa: N802
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, given: dict) -> dict:  # noqa: N802
        number = base64.b64encode(f"Artifact:{len(self.artifacts)}".encode()).decode()
        self.artifacts[number] = given
        sequence = {"id": "s", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": number, "state": "PENDING", "artifactSequence": sequence}}}

    def _CreateArtifactManifest(self, given: dict) -> dict:  # noqa: N802
        return {"createArtifactManifest": {"artifactManifest": self._manifest()}}

    def _UpdateArtifactManifest(self, given: dict) -> dict:  # noqa: N802
        return {"updateArtifactManifest": {"artifactManifest": self._manifest()}}

    def _manifest(self) -> dict:
        return {"id": "m", "file": {"id": "f", "uploadUrl": f"{self.url}/upload/manifest", "uploadHeaders": []}}

    def _CreateArtifactFiles(self, given: dict) -> dict:  # noqa: N802
        edges = []
        for file in given["artifactFiles"]:
            node = {"id": "f", "name": file["name"], "displayName": file["name"], "uploadHeaders": []}
            node |= {"uploadUrl": f"{self.url}/upload/{file['name']}", "storagePath": None, "uploadMultipartUrls": None}
            edges.append({"node": node | {"artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, given: dict) -> dict:  # noqa: N802
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    def _ArtifactByID(self, given: dict) -> dict:  # noqa: N802
        return {"artifact": self._artifact(given["id"])}

    def _ArtifactMembershipByName(self, given: dict) -> dict:  # noqa: N802
        """`<collection>:<alias>`, the newest that has it."""
        collection, _, alias = given["name"].rpartition(":")
        found = [id for id, told in self.artifacts.items() if told["artifactCollectionName"] == collection]
        found = [id for id in found if alias in {alias["alias"] for alias in self.artifacts[id]["aliases"]}]
        if not found:
            return {"project": {"artifactCollectionMembership": None}}
        membership = {"__typename": "ArtifactCollectionMembership", "id": "TTox", "versionIndex": 0, "aliases": []}
        membership |= {"createdAt": "2026-01-01T00:00:00Z"}
        membership |= {"artifactCollection": self._collection(collection), "artifact": self._artifact(found[-1])}
        return {"project": {"artifactCollectionMembership": membership}}

    def _UseArtifact(self, given: dict) -> dict:  # noqa: N802
        self.used.append((given["artifactID"], given["runName"]))
        return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}

    def _collection(self, name: str) -> dict:
        project = {"id": "p", "internalId": "p", "name": "llama-adapter", "entity": {"name": ENTITY}}
        return {"__typename": "ArtifactSequence", "id": "s", "name": name, "project": project}

    def _artifact(self, id: str) -> dict:
        told = self.artifacts[id]
        return {
            "__typename": "Artifact",
            "id": id,
            "artifactSequence": self._collection(told["artifactCollectionName"]),
            "versionIndex": 0,
            "artifactType": {"name": told["artifactTypeName"]},
            "description": told.get("description"),
            "metadata": told.get("metadata"),
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": 1,
            "digest": told["digest"],
            "commitHash": "c",
            "fileCount": 1,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "aliases": [],
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict = {}
        if self.path.startswith("/graphql"):
            asked = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
            answer = {"data": self.server.answer(name, asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            run = self.path.split("/")[-2]
            lines = (json.loads(body).get("files") or {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history.setdefault(run, []).extend(map(json.loads, lines))
        elif self.path.startswith("/upload/"):
            self.server.uploads[self.path.removeprefix("/upload/")] = body
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _do  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def backend() -> Iterator[Backend]:
    """A server until the end of the block."""
    running = Backend()
    try:
        yield running
    finally:
        running.stop()
