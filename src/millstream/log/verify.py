"""Tamper evidence: walk the chain of headers, and the bodies, and name the first that does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ..errors import DamagedLog, InvalidPosition, NotFound, Trimmed
from ..frames import frame_hash
from ..storage.base import Encoding
from ..storage.chain import FRAME_FORMAT, GENESIS, header_hash
from ..time import iso
from .bodies import Trim, trim_of
from .records import Run

if TYPE_CHECKING:
    from .log import Log
    from .retention.ledger import Ledger

_PAGE = 2_000
_REF = 10
"""Where a header has the number of its body; see `Store.headers`."""


class Verified(msgspec.Struct, frozen=True):
    """What a verification has seen.

    Attributes:
        position: The last position.
        runs: How many headers were walked.
        events: How many events they stand for.
        hash: The head's hash, in hex. Kept elsewhere, it shows a later cut or a chain made anew.
        trimmed: What was trimmed on purpose, by whom and when.
        archived: How many events are read from archives.
    """

    position: int
    runs: int
    events: int
    hash: str
    trimmed: tuple[TrimmedEvents, ...] = ()
    archived: int = 0


class TrimmedEvents(msgspec.Struct, frozen=True):
    """Events of a stream that one and the same rule has trimmed, applied by one and the same person.

    Attributes:
        stream: The stream's name.
        rule: What was kept, in words.
        by: Who trimmed.
        since: When it was done first (ISO 8601).
        until: When it was done last.
        first: Position of the first event.
        last: Position of the last one.
        events: How many.
    """

    stream: str
    rule: str
    by: str
    since: str
    until: str
    first: int
    last: int
    events: int


def verify(
    log: Log,
    *,
    head: str | None = None,
    archives: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Walk the whole log: each header's hash, its place, its body's hash.

    A trimmed body is no damage if an event in ``$retention``, itself in the chain, says that it was trimmed.

    Args:
        archives: Fetch archived bodies, too, and compare their hashes.
        head: A head's hash (hex) that was kept elsewhere: it must be one of the chain's. Without it, a cut tail
            or a chain that was computed anew from some point cannot be seen.
        progress: Called with the position reached and the head's position, now and then.

    Raises:
        DamagedLog: Names the first position where something was changed, removed or inserted.
        DepotError: An archived body cannot be had.
    """
    wanted = _wanted(head)
    total = log.head
    previous, position, runs = GENESIS, 0, 0
    met = wanted is None or wanted == GENESIS
    versions: dict[int, int] = {}
    trims, archived = _Trims(log), 0
    while True:
        page, tags = log.store.headers(position, _PAGE)
        encodings = log.bodies.encodings({ref for row in page if (ref := row[_REF]) is not None and ref < 0})
        for row in page:
            *header, body_hash, stored = row
            run = Run(log, *header)
            if run.position != position + 1:
                raise DamagedLog(position + 1, f"a header is missing: the next one stands at {run.position}")
            if run.version != versions.get(run.stream_id, 0) + 1:
                raise DamagedLog(run.position, "its version does not follow the one before in its stream")
            versions[run.stream_id] = run.version + run.count - 1
            digest = _digest(run, previous, body_hash, tags.get(run.position, ()))
            if digest != stored:
                raise DamagedLog(run.position, "its header does not match its hash")
            encoding = encodings.get(run.body_ref or 0)
            archived += run.count if encoding == Encoding.ARCHIVED else 0
            if encoding == Encoding.TRIMMED:
                trims.add(run)
            elif archives or encoding != Encoding.ARCHIVED:
                try:
                    _check_body(run, body_hash)
                except Trimmed:  # since the page was read
                    trims.add(run)
            previous, position, runs = digest, run.last, runs + 1
            met = met or digest == wanted
        if progress is not None:
            progress(position, total)
        if len(page) < _PAGE:
            break
    log.store.check()
    if not met:
        raise DamagedLog(position, "the head that was kept is not in the chain: its end was cut or made anew")
    return Verified(position, runs, position, previous.hex(), trims.found(), archived)


class _Trims:
    """The trimmed runs that were met, held against the events that tell of them."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._read: tuple[int, Trim] | None = None
        self._seen: dict[tuple[str, str, str], list[int]] = {}
        self._events: dict[str, int] = {}

    def add(self, run: Run) -> None:
        """Take in a run whose body was trimmed.

        Raises:
            DamagedLog: No event says so.
        """
        ref = run.body_ref or 0
        if self._read is None or self._read[0] != ref:
            self._read = (ref, trim_of(self._log.store.body(ref)[1], run.position))
        trim = self._read[1]
        events = self._events[run.stream] = self._events.get(run.stream, 0) + run.count
        ledger = self._log.archives.ledger
        if self._told(ledger, run) < events and self._told(ledger.refresh(), run) < events:
            raise DamagedLog(run.position, "its body was taken away, and no event in $retention tells of it")
        seen = self._seen.setdefault((run.stream, trim.rule, trim.by), [trim.at, trim.at, run.position, run.last, 0])
        seen[0], seen[1] = min(seen[0], trim.at), max(seen[1], trim.at)
        seen[3] = run.last
        seen[4] += run.count

    def _told(self, ledger: Ledger, run: Run) -> int:
        """How many events of a run's stream are told to be trimmed; none when the run is not among them."""
        trims = ledger.trims.get(run.stream)
        return trims.events if trims is not None and trims.takes_in(run.position, run.last) else 0

    def found(self) -> tuple[TrimmedEvents, ...]:
        return tuple(
            TrimmedEvents(stream, rule, by, iso(since), iso(until), first, last, events)
            for (stream, rule, by), (since, until, first, last, events) in sorted(self._seen.items())
        )


def _wanted(head: str | None) -> bytes | None:
    if head is None:
        return None
    try:
        wanted = bytes.fromhex(head)
    except (ValueError, TypeError) as error:
        raise InvalidPosition(f"{head!r:.80} is not a hash", hint="Give the 64 hex digits of a head") from error
    if len(wanted) != 32:
        raise InvalidPosition(f"{head!r:.80} is not a hash", hint="Give the 64 hex digits of a head")
    return wanted


def _digest(run: Run, previous: bytes, body_hash: bytes, tags: Sequence[str]) -> bytes:
    try:
        return header_hash(
            previous, body_hash, run.position, run.count, run.stream, run.version, run.type, run.schema,
            run.recorded, run.effective, tags, run.raw_metadata, run.format,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise DamagedLog(run.position, "its stream or type has no name") from error


def _check_body(run: Run, body_hash: bytes) -> None:
    try:
        if run.format == FRAME_FORMAT:
            found = frame_hash(run.frame())
        else:
            lines = (line if isinstance(line, bytes) else line.encode() for line in run.lines())
            found = hashlib.sha256(b"\n".join(lines)).digest()
    except NotFound as error:
        raise DamagedLog(run.position, "its body is missing") from error
    except pl.exceptions.PanicException as error:
        raise DamagedLog(run.position, f"its frame cannot be read ({error})") from error
    if found != body_hash:
        raise DamagedLog(run.position, "its body does not match its hash")
