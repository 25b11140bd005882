"""A search index in OpenSearch or Elasticsearch, by HTTP."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec

from ...errors import Rejected, SinkError, SinkUnavailable, UsageError
from ..change import Change, Row, SchemaChanged, SnapshotCompleted
from ..shape import Shape, shape_of
from ..values import UNCHANGED, encode_row
from .base import Changes
from .http import AGAIN, Address, Client, require_httpx
from .net import key_of
from .search import Hit

if TYPE_CHECKING:
    from ...log import Log, Recorded

POSITION = "millstream_position"
"""The field of each document that tells the position of its change in the log."""

_LONGEST_ID = 512
_JSON = {"content-type": "application/json"}
_LINES = {"content-type": "application/x-ndjson"}
_encode = msgspec.json.Encoder().encode


class HttpIndex:
    """One index of a server. The log's checkpoint says where to go on: what comes again has a version that is known."""

    def __init__(self, url: str, key: tuple[str, ...], fields: tuple[str, ...] | None, timeout: float) -> None:
        require_httpx()
        address = Address(url)
        path = urlsplit(address.url).path.strip("/")
        if not path or "/" in path:
            raise UsageError("the URL names no index", hint="Write http://host:9200/users")
        self.location = f"{address.origin}/{path}"
        self._base = f"{address.origin}/{path}"
        self._name = path
        self._key, self._fields = key, fields
        self._client = Client(address, timeout)

    def open(self, log: Log, stream: str) -> None:
        """Nothing: connections are made when needed."""

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def notice(self, event: SchemaChanged | SnapshotCompleted, recorded: Recorded) -> None:
        """Nothing: documents have the columns that their rows had when they last changed."""

    def apply(self, changes: Changes) -> None:
        """One request of the bulk API, unless something needs to be asked or emptied in between."""
        lines: list[bytes] = []
        for change, recorded in changes:
            shape = shape_of(recorded.run.schema)
            position = recorded.position
            if shape is None:
                raise Rejected("the change does not say which columns its table has")
            if change.operation == "TRUNCATE":
                self._bulk(lines)
                lines = []
                self._empty(position)
                continue
            old, new = self._ids(change, shape)
            if new is not None and change.after is not None:
                document = encode_row(change.after, shape)
                if UNCHANGED in document.values():
                    self._bulk(lines)
                    lines = []
                    document = self._filled(document, change, shape, old or new)
                lines.append(_encode({"index": self._about(new, position)}))
                lines.append(_encode({**self._chosen(document), POSITION: position}))
            # After the new one: should only a part of the request be carried out, nothing is lost.
            if old is not None and old != new:
                lines.append(_encode({"delete": self._about(old, position)}))
        self._bulk(lines)

    def _ids(self, change: Change, shape: Shape) -> tuple[str | None, str | None]:
        key = self._key or shape.key
        if not key:
            raise UsageError(
                f"table {change.table!r} has no key, so that its rows cannot be told apart in an index",
                hint="Give the columns that do, with key=",
            )
        return _id(change.before, key), _id(change.after, key)

    def _about(self, id: str, position: int) -> dict[str, Any]:
        return {"_index": self._name, "_id": id, "version": position, "version_type": "external"}

    def _chosen(self, document: Row) -> Row:
        if self._fields is None:
            return document
        return {name: document[name] for name in self._fields if name in document}

    def _filled(self, document: Row, change: Change, shape: Shape, id: str) -> Row:
        """A document with the values that its change does not tell: those of the row before, or of the index."""
        known = encode_row(change.before, shape) if change.before is not None else {}
        missing = [n for n, v in document.items() if v == UNCHANGED and known.get(n, UNCHANGED) == UNCHANGED]
        if missing and not (self._fields is not None and set(missing).isdisjoint(self._fields)):
            answer = self._ask("GET", f"/_doc/{quote(id, safe='')}")
            stored = answer.json().get("_source", {}) if answer.status_code == 200 else {}
            known = {**known, **{name: stored[name] for name in missing if name in stored}}
        filled = {name: known.get(name, value) if value == UNCHANGED else value for name, value in document.items()}
        return {name: value for name, value in filled.items() if value != UNCHANGED}

    def _bulk(self, lines: list[bytes]) -> None:
        if not lines:
            return
        answer = self._ask("POST", "/_bulk", b"\n".join(lines) + b"\n", _LINES)
        told = answer.json()
        if not told.get("errors"):
            return
        for item in told.get("items", ()):
            [(action, result)] = item.items()
            status = result.get("status", 500)
            # 409: the index has this change already, or a later one. 404: what is to go is not there.
            if status < 300 or status == 409 or (status == 404 and action == "delete"):
                continue
            error = result.get("error") or {}
            reason = error.get("reason", error.get("type", "")) if isinstance(error, dict) else str(error)
            said = f"{self.location} answers {status} for document {result.get('_id')!r}: {reason}"
            if status in AGAIN:
                raise SinkUnavailable(said)
            raise Rejected(said) if status < 500 else SinkError(said)

    def _empty(self, position: int) -> None:
        """Delete all documents of earlier changes: when a TRUNCATE comes again, those of later ones stay."""
        query = {"query": {"range": {POSITION: {"lt": position}}}}
        # What was written a moment ago is found only after a refresh.
        if self._ask("POST", "/_refresh").status_code == 404:
            return
        self._ask("POST", "/_delete_by_query?conflicts=proceed&refresh=true", _encode(query), _JSON)

    def search(self, query: str, limit: int, syntax: bool, marks: tuple[str, str]) -> list[Hit]:
        """By the search API."""
        if syntax:
            asked: dict[str, Any] = {"query_string": {"query": query}}
        else:
            asked = {"simple_query_string": {"query": query, "default_operator": "and", "flags": "PREFIX|WHITESPACE"}}
        highlight = {"fields": {"*": {}}, "pre_tags": [marks[0]], "post_tags": [marks[1]]}
        body = _encode({"query": asked, "size": limit, "highlight": highlight})
        # With connections of its own, so that any thread may.
        client = Client(self._client.address, self._client.timeout)
        try:
            answer = self._ask("POST", "/_search", body, _JSON, client)
        finally:
            client.close()
        if answer.status_code == 404:
            return []
        hits = []
        for hit in answer.json()["hits"]["hits"]:
            row = {name: value for name, value in hit["_source"].items() if name != POSITION}
            snippet = " … ".join(text for texts in hit.get("highlight", {}).values() for text in texts)
            hits.append(Hit(row, float(hit.get("_score") or 0.0), snippet))
        return hits

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        client: Client | None = None,
    ) -> Any:
        answer = (client or self._client).send(method, self._base + path, body, headers)
        status = answer.status_code
        if status < 300 or status == 404:
            return answer
        said = f"{self.location} answers {status}: {answer.text[:200]}"
        if status in (401, 403):
            raise UsageError(said, hint="Check user, password and rights in the URL of the index")
        if 300 <= status < 400:
            raise UsageError(f"{self.location} answers {status}, a redirect", hint="Give the address that it leads to")
        raise Rejected(said) if status < 500 else SinkError(said)


def _id(row: Row | None, key: tuple[str, ...]) -> str | None:
    """The document's id: the key's value, or a JSON array of several; a hash of what is too long for an id."""
    if row is None:
        return None
    values = [str(value) if not isinstance(value, bytes) else value.hex() for value in key_of(row, key)]
    text = values[0] if len(values) == 1 else _encode(values).decode()
    raw = text.encode("utf-8", "surrogatepass")
    return text if text and len(raw) <= _LONGEST_ID else "sha256:" + hashlib.sha256(raw).hexdigest()
