"""Tamper evidence: walk the chain of headers, and the bodies, and name the first that does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ..errors import DamagedLog, InvalidPosition, NotFound
from ..frames import frame_hash
from ..storage.chain import FRAME_FORMAT, GENESIS, header_hash
from .records import Run

if TYPE_CHECKING:
    from .log import Log

_PAGE = 2_000


class Verified(msgspec.Struct, frozen=True):
    """What a verification has seen.

    Attributes:
        position: The last position.
        runs: How many headers were walked.
        events: How many events they stand for.
        hash: The head's hash, in hex. Kept elsewhere, it shows a later cut or a chain made anew.
    """

    position: int
    runs: int
    events: int
    hash: str


def verify(log: Log, *, head: str | None = None, progress: Callable[[int, int], None] | None = None) -> Verified:
    """Walk the whole log: each header's hash, its place, its body's hash.

    Args:
        head: A head's hash (hex) that was kept elsewhere: it must be one of the chain's. Without it, a cut tail
            or a chain that was computed anew from some point cannot be seen.
        progress: Called with the position reached and the head's position, now and then.

    Raises:
        DamagedLog: Names the first position where something was changed, removed or inserted.
    """
    wanted = _wanted(head)
    total = log.head
    previous, position, runs = GENESIS, 0, 0
    met = wanted is None or wanted == GENESIS
    versions: dict[int, int] = {}
    while True:
        page, tags = log.store.headers(position, _PAGE)
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
            _check_body(run, body_hash)
            previous, position, runs = digest, run.last, runs + 1
            met = met or digest == wanted
        if progress is not None:
            progress(position, total)
        if len(page) < _PAGE:
            break
    log.store.check()
    if not met:
        raise DamagedLog(position, "the head that was kept is not in the chain: its end was cut or made anew")
    return Verified(position, runs, position, previous.hex())


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
