"""A batch of requests as the database's `append` function takes it, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ...conversion import ready
from ...errors import ConditionFailed, IdReused, MillstreamError, StreamClosed, VersionConflict
from ..base import Encoding, Matching, Receipt, Request, StagedAppend, StagedRun, category_of
from ..chain import FRAME_FORMAT, JSON_FORMAT

INLINE_LIMIT = 8_192
"""Bodies of one event up to so many bytes stand in the header's row."""
TRAVEL_LIMIT = 1_000_000
"""Bodies of so many bytes together travel with their headers; more go first, before the lock is taken."""

_encode = msgspec.json.Encoder().encode


class _Run(msgspec.Struct, omit_defaults=True):
    type: str
    schema: str
    kind: str
    count: int
    format: int
    encoding: int
    body_hash: str
    body: str | None = None
    slot: int | None = None
    ref: int | None = None
    effective: int | None = None
    tags: tuple[str, ...] | None = None
    tags_text: str | None = None
    metadata: str | None = None
    metadata_text: str | None = None
    ranges: Sequence[tuple[str, int, int]] | None = None


class _Append(msgspec.Struct, omit_defaults=True):
    stream: str
    name: str
    category: str
    runs: list[_Run]
    expect: int | None = None
    before: int = 0
    unless: list[dict[str, Any]] | None = None
    shapes: int | None = None
    close: bool = False


class _Request(msgspec.Struct, omit_defaults=True):
    appends: list[_Append]
    origin: int
    id: str | None = None
    digest: str | None = None


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """What the database says to one request."""

    first: int = 0
    position: int = 0
    count: int = 0
    stream: str | None = None
    version: int = 0
    recorded: int = 0
    done: str | None = None
    reused: int | None = None
    closed: str | None = None
    conflict: str | None = None
    expected: int = 0
    actual: int = 0
    matched: int | None = None
    shapes: str | None = None

    def receipt(self) -> Receipt:
        """The receipt of a request that was placed, now or the first time."""
        if self.done is not None:
            return msgspec.json.decode(self.done, type=ready(Receipt))
        return Receipt(self.first, self.position, self.count, self.stream, self.version, self.recorded)

    def error(self, request: Request) -> MillstreamError | None:
        """What stood against it, if anything did."""
        if self.reused is not None:
            return IdReused(request.id or "", self.reused)
        if self.closed is not None:
            return StreamClosed(self.closed)
        if self.conflict is not None:
            return VersionConflict(self.conflict, self.expected, self.actual)
        if self.matched is not None:
            return ConditionFailed(self.matched)
        return None


class Answers(msgspec.Struct):
    """What the database says to a batch, and its clock (microseconds since 1970)."""

    now: int
    answers: list[Answer]


decode_answers = msgspec.json.Decoder(Answers).decode


class Batch:
    """Requests on their way to the database.

    Args:
        put: Sends a large body ahead and gives its number; None while bodies travel with their headers.
    """

    def __init__(self, put: Callable[[StagedRun], int] | None = None) -> None:
        self._requests: list[_Request] = []
        self._put = put
        self.bodies: list[bytes] = []

    def add(self, request: Request, origin: int, shapes: dict[str, int]) -> None:
        """Add a request.

        Args:
            origin: A number that its runs carry, so that they can be found again; 0 for none.
            shapes: For streams with new shapes of frames: against how many shapes these were checked.
        """
        seen: dict[str, int] = {}
        appends = []
        for append in request.appends:
            wired = self._append(append, shapes)
            wired.before = seen.get(append.stream, 0)
            seen[append.stream] = wired.before + append.count
            appends.append(wired)
        digest = request.digest.hex() if request.id is not None else None
        self._requests.append(_Request(appends, origin, request.id, digest))

    def encode(self) -> str:
        """The batch as JSON."""
        return _encode(self._requests).decode()

    def _append(self, append: StagedAppend, shapes: dict[str, int]) -> _Append:
        wired = _Append(
            append.stream,
            _encode(append.stream).decode(),
            category_of(append.stream),
            [self._run(run) for run in append.runs],
            append.expect,
        )
        if append.unless is not None:
            wired.unless = [_query(each) for each in append.unless.any_of]
        if append.stream in shapes:
            wired.shapes = shapes[append.stream]
        wired.close = append.close
        return wired

    def _run(self, run: StagedRun) -> _Run:
        kind = _encode((run.type, run.schema))[1:-1].decode()
        format = FRAME_FORMAT if run.encoding is Encoding.ARROW else JSON_FORMAT
        wired = _Run(run.type, run.schema, kind, run.count, format, int(run.encoding), run.body_hash.hex())
        if run.ref is not None:
            wired.ref = run.ref
        elif run.encoding is Encoding.JSON and len(run.body) <= INLINE_LIMIT:
            wired.body = run.body.decode()
        elif self._put is not None:
            wired.ref = self._put(run)
        else:
            self.bodies.append(run.body)
            wired.slot = len(self.bodies)
        if run.effective is not None:
            wired.effective = run.effective
        if run.tags:
            wired.tags, wired.tags_text = run.tags, _encode(run.tags).decode()
        if run.metadata is not None:
            wired.metadata = run.metadata.decode()
            wired.metadata_text = _encode(wired.metadata).decode()
        if run.ranges:
            wired.ranges = run.ranges
        return wired


def _query(query: Matching) -> dict[str, Any]:
    return {"types": query.type_names, "tags": sorted(set(query.tags)), "after": query.after}


def travels(requests: Sequence[Request]) -> bool:
    """Whether the bodies of some requests are small enough to travel with their headers."""
    size = 0
    for request in requests:
        for append in request.appends:
            for run in append.runs:
                size += len(run.body)
                if size > TRAVEL_LIMIT:
                    return False
    return True


def is_plain(request: Request | None) -> bool:
    """Whether `append_one` and `append_many` take it: one event, its body inline, no id, tags or further conditions."""
    if request is None or request.id is not None or len(request.appends) != 1:
        return False
    append = request.appends[0]
    if len(append.runs) != 1 or append.unless is not None or append.close:
        return False
    run = append.runs[0]
    return (
        run.encoding is Encoding.JSON and run.ref is None and not run.tags and run.effective is None
        and len(run.body) <= INLINE_LIMIT
    )  # fmt: skip


def one(request: Request) -> list[bytes | None]:
    """The parameters of `append_one`, up to ``expect``."""
    append = request.appends[0]
    run = append.runs[0]
    stream, type, schema, metadata = append.stream, run.type, run.schema, run.metadata
    return [
        stream.encode(), _encode(stream), category_of(stream).encode(), type.encode(), schema.encode(),
        _encode((type, schema))[1:-1], run.body, run.body_hash, metadata,
        None if metadata is None else _encode(metadata.decode()),
        None if append.expect is None else b"%d" % append.expect,
    ]  # fmt: skip


class _Plain(msgspec.Struct, omit_defaults=True):
    stream: str
    nth: int
    name: str
    category: str
    type: str
    schema: str
    kind: str
    hash: str
    body: str
    origin: int
    meta: str | None = None
    meta_text: str | None = None
    expect: int | None = None


def many(requests: Sequence[Request], origins: Sequence[int]) -> str | None:
    """The batch of `append_many`; None when it does not take these: two to a stream, and one expects a version."""
    seen: dict[str, int] = {}
    expecting: set[str] = set()
    batch = []
    for request, origin in zip(requests, origins, strict=True):
        append = request.appends[0]
        run, stream = append.runs[0], append.stream
        nth = seen[stream] = seen.get(stream, 0) + 1
        if append.expect is not None:
            expecting.add(stream)
        wired = _Plain(
            stream, nth, _encode(stream).decode(), category_of(stream), run.type, run.schema,
            _encode((run.type, run.schema))[1:-1].decode(), run.body_hash.hex(), run.body.decode(), origin,
        )  # fmt: skip
        if run.metadata is not None:
            wired.meta = run.metadata.decode()
            wired.meta_text = _encode(wired.meta).decode()
        wired.expect = append.expect
        batch.append(wired)
    if any(seen[stream] > 1 for stream in expecting):
        return None
    return _encode(batch).decode()
