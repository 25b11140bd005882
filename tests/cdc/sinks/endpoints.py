"""Real HTTP servers on loopback: a receiver of webhooks, and a server that keeps the contract of the bulk API.

There is no package of OpenSearch to test against, so `IndexServer` does what its documentation says of the requests
that the sink makes: ``_bulk`` with ``index`` and ``delete`` under external versions (a version that is not higher than
the document's, or than that of its deletion, is a 409, and the items around it are carried out), ``_doc``,
``_refresh``, ``_delete_by_query`` with a range, and ``_search`` with a simple query string over whole words.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]


class Endpoint:
    """A server that gives each request to a function, one after the other."""

    def __init__(self, answer: Callable[[str, str, dict[str, str], bytes], Answer]) -> None:
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                with lock:
                    status, headers, content = answer(self.command, self.path, dict(self.headers.items()), body)
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _do

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Receiver:
    """Receives webhooks, and answers what it is told to."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[Answer] = []
        """What it answers next; 204 when there is nothing more."""
        self.refuse: Callable[[bytes], int | None] = lambda body: None
        self._endpoint = Endpoint(self._answer)
        self.url = self._endpoint.url + "/hooks/secret-path"

    @property
    def delivered(self) -> list[Any]:
        return [json.loads(body) for _, body in self.requests]

    def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        assert (method, path) == ("POST", "/hooks/secret-path")
        status = self.refuse(body)
        if status is not None:
            return status, {}, b"no"
        if self.answers:
            return self.answers.pop(0)
        self.requests.append((headers, body))
        return 204, {}, b""

    def close(self) -> None:
        self._endpoint.close()


class IndexServer:
    """One index of something like OpenSearch."""

    def __init__(self) -> None:
        self.documents: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, int] = {}
        """Of documents, and of deletions, which it remembers for a while."""
        self.bulks: list[int] = []
        self.busy = 0
        """How many requests it answers with 429 first."""
        self._endpoint = Endpoint(self._answer)
        self.url = self._endpoint.url + "/users"

    def close(self) -> None:
        self._endpoint.close()

    def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        name, _, rest = urlsplit(path).path.strip("/").partition("/")
        assert name == "users"
        if self.busy:
            self.busy -= 1
            return 429, {"retry-after": "0"}, b"{}"
        if rest == "_bulk":
            assert headers["content-type"] == "application/x-ndjson"
            return self._json(self._bulk(body))
        if rest == "_refresh":
            return self._json({})
        if rest == "_delete_by_query":
            [(field, bound)] = json.loads(body)["query"]["range"].items()
            for id in [id for id, document in self.documents.items() if document[field] < bound["lt"]]:
                del self.documents[id]
                self.versions[id] += 1
            return self._json({})
        if rest == "_search":
            return self._json(self._search(json.loads(body)))
        if rest.startswith("_doc/"):
            id = unquote(rest.removeprefix("_doc/"))
            if id not in self.documents:
                return 404, {}, b'{"found": false}'
            return self._json({"found": True, "_source": self.documents[id]})
        return 400, {}, b"{}"

    def _json(self, value: Any) -> Answer:
        return 200, {"content-type": "application/json"}, json.dumps(value).encode()

    def _bulk(self, body: bytes) -> dict[str, Any]:
        assert body.endswith(b"\n")
        lines = iter(body.split(b"\n")[:-1])
        items: list[dict[str, Any]] = []
        for line in lines:
            [(action, about)] = json.loads(line).items()
            assert about["_index"] == "users"
            assert about["version_type"] == "external"
            assert len(about["_id"].encode()) <= 512
            document = json.loads(next(lines)) if action == "index" else None
            items.append({action: {"_id": about["_id"], **self._item(about["_id"], about["version"], document)}})
        self.bulks.append(len(items))
        return {"errors": any(item["status"] >= 300 for each in items for item in each.values()), "items": items}

    def _item(self, id: str, version: int, document: dict[str, Any] | None) -> dict[str, Any]:
        if document is not None and document.get("email") == "unmappable":
            return {"status": 400, "error": {"type": "mapper_parsing_exception", "reason": "failed to parse"}}
        if version <= self.versions.get(id, -1):
            return {"status": 409, "error": {"type": "version_conflict_engine_exception", "reason": "newer"}}
        self.versions[id] = version
        if document is not None:
            self.documents[id] = document
            return {"status": 201}
        return {"status": 200 if self.documents.pop(id, None) is not None else 404}

    def _search(self, asked: dict[str, Any]) -> dict[str, Any]:
        words = asked["query"]["simple_query_string"]["query"].lower().split()
        hits = []
        for document in self.documents.values():
            texts = {name: str(value) for name, value in document.items()}
            found = {w for text in texts.values() for w in re.findall(r"\w+", text.lower())}
            if all(word in found for word in words):
                hits.append({"_source": document, "_score": 1.0, "highlight": {"email": [f"[{words[0]}]"]}})
        return {"hits": {"hits": hits[: asked["size"]]}}
