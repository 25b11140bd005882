"""From the messages of a stream to whole transactions, as pieces that are ready for the log.

Rows of a transaction are gathered by table, each as a line of JSON, with its number within the transaction. What
is large goes to a temporary file. The layout of the messages is PostgreSQL's "Logical Replication Message Formats".
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
import psycopg

from ...time import from_micros
from ..spill import Chunk, Spill
from .relation import Relation
from .replication import EPOCH, Replication

MAX_ROWS = 20_000
"""After so many rows, one look at the stream ends with the next commit."""

SPILL_BYTES = 16 << 20
"""What a transaction may hold in memory; beyond, its rows go to a file."""

NO_TIME = b"\0" * 27
"""Stands in lines for the commit time while it is not known: JSON has no such bytes, so it can be replaced."""

_INSERT, _UPDATE, _DELETE, _TRUNCATE, _RELATION, _MESSAGE = b"IUDTRM"
_BEGIN, _COMMIT, _STREAM_START, _STREAM_STOP, _STREAM_COMMIT, _STREAM_ABORT = b"BCSEcA"
_u32 = struct.Struct(">I").unpack_from
_two_u32 = struct.Struct(">II").unpack_from
_u64 = struct.Struct(">Q").unpack_from
_begin = struct.Struct(">QqI").unpack_from
_commit = struct.Struct(">BQQq").unpack_from


class Message(msgspec.Struct, frozen=True):
    """A logical message: what a program has told the stream by ``pg_logical_emit_message``."""

    prefix: str
    content: bytes
    number: int
    """Its number within the transaction."""
    sub: int


class Part(msgspec.Struct):
    """Rows of one table in one transaction, of one shape."""

    relation: Relation
    lines: list[bytes] = []
    ranges: list[list[int]] = []
    """The rows' numbers within the transaction."""
    chunks: list[Chunk] = []
    """What went to the file before."""
    subs: list[tuple[int, int]] = []
    """Of a streamed transaction: the first line of each stretch, and the subtransaction that it belongs to."""


class Open(msgspec.Struct):
    """A transaction that was not committed yet, as far as it has come."""

    xid: int
    time: bytes
    final: int = 0
    micros: int = 0
    streamed: bool = False
    parts: dict[bytes, Part] = {}
    """By the relation's number, as messages have it."""
    order: list[Part] = []
    messages: list[Message] = []
    rows: int = 0
    size: int = 0
    last: Any = None
    sub: int = 0
    gone: set[int] = set()
    """Subtransactions that were rolled back."""
    spill: Spill | None = None


class Committed(msgspec.Struct):
    """A transaction that the source has committed.

    Attributes:
        position: Where it ends in the source's log; beyond it, nothing of it comes again.
        lsn: Where its commit stands.
        micros: When it was committed, in microseconds since 1970.
    """

    xid: int
    position: int
    lsn: int
    micros: int
    parts: list[Part]
    messages: list[Message]
    rows: int
    spill: Spill | None
    gone: set[int]


class Assembler:
    """Gathers transactions.

    Args:
        describe: Makes a relation of what the stream says of it (number, schema, name, identity, columns).
    """

    def __init__(
        self, describe: Callable[[int, str, str, str, list[tuple[str, int, int, bool]]], Relation | None], slot: str
    ) -> None:
        self._describe = describe
        self._slot = slot
        self.relations: dict[bytes, Relation | None] = {}
        """By their numbers; None for one that is not captured."""
        self._current: Open | None = None
        self._streamed: dict[int, Open] = {}
        self.done: deque[Committed] = deque()
        self.server_position = 0
        """How far the stream has come, by the server's word."""
        self.wants_reply = False

    @property
    def idle(self) -> bool:
        """Whether all that was committed before the server's position has been taken: no transaction is being told.

        One that is streamed before its end does not count: it will be committed later, or never.
        """
        return self._current is None

    def close(self) -> None:
        """Forget what was not committed."""
        for each in (self._current, *self._streamed.values(), *self.done):
            if each is not None and each.spill is not None:
                each.spill.close()
        self._current = None
        self._streamed.clear()
        self.done.clear()

    def read(self, source: Replication) -> int:
        """Take messages until none is there now, or enough rows were committed; how many messages there were.

        Raises:
            psycopg.Error: The stream has ended.
        """
        get = source.get
        relations = self.relations
        tx = self._current
        count = rows = 0
        while True:
            size, view = get(1)
            if size <= 0:
                if size < 0:
                    raise source.ended()
                source.receive()
                size, view = get(1)
                if size == 0:
                    break
                if size < 0:
                    raise source.ended()
            count += 1
            b = bytes(view)
            if b[0] != 119:
                self._keepalive(b)
                continue
            kind = b[25]
            if kind in b"IUD" and tx is not None and not tx.streamed:
                # By far the most messages, and those whose cost shows.
                number = b[26:30]
                part = tx.parts.get(number)
                if part is None:
                    relation = relations[number]
                    if relation is None:
                        continue
                    part = _new_part(tx, number, relation)
                if part is not tx.last:
                    _switch(tx, part)
                if kind == _INSERT:
                    part.lines.append(part.relation.insert(b, 31, tx.time))
                elif kind == _UPDATE:
                    part.lines.append(part.relation.update(b, 30, tx.time))
                else:
                    part.lines.append(part.relation.delete(b, 30, tx.time))
                tx.rows += 1
                tx.size += size
                if tx.size > SPILL_BYTES:
                    _spill(tx)
            elif kind == _BEGIN:
                final, stamp, xid = _begin(b, 26)
                micros = stamp + EPOCH
                self._current = tx = Open(xid, time_text(micros), final, micros)
            elif kind == _COMMIT:
                assert tx is not None
                _, lsn, end, _ = _commit(b, 26)
                self._end(tx, end, lsn, tx.micros)
                rows += tx.rows
                self._current = tx = None
                if rows >= MAX_ROWS:
                    break
            else:
                self._rare(kind, b)
                if self._current is not tx:
                    tx = self._current
                if kind == _STREAM_COMMIT:
                    break
        return count

    def _end(self, tx: Open, end: int, lsn: int, micros: int) -> None:
        if tx.last is not None:
            tx.last.ranges[-1][1] = tx.rows - 1
        self.done.append(Committed(tx.xid, end, lsn, micros, tx.order, tx.messages, tx.rows, tx.spill, tx.gone))

    def _clock(self) -> int:
        return time.time_ns() // 1000

    def _keepalive(self, b: bytes) -> None:
        if b[0] != 107:  # k
            raise psycopg.OperationalError(f"the server sent a message of kind {b[:1]!r}")
        if self.idle:
            self.server_position = max(self.server_position, _u64(b, 1)[0])
        if b[17]:
            self.wants_reply = True

    def _rare(self, kind: int, b: bytes) -> None:
        tx = self._current
        if kind == _STREAM_START:
            xid = _u32(b, 26)[0]
            self._current = self._streamed.setdefault(xid, Open(xid, NO_TIME, streamed=True))
        elif kind == _STREAM_STOP:
            self._current = None
        elif kind == _STREAM_COMMIT:
            xid = _u32(b, 26)[0]
            _, lsn, end, stamp = _commit(b, 30)
            self._end(self._streamed.pop(xid), end, lsn, stamp + EPOCH)
        elif kind == _STREAM_ABORT:
            xid, sub = _two_u32(b, 26)
            aborted = self._streamed.get(xid)
            if aborted is None:
                return
            if xid != sub:
                aborted.gone.add(sub)
                return
            del self._streamed[xid]
            if aborted.spill is not None:
                aborted.spill.close()
        elif tx is not None and tx.streamed:
            tx.sub = _u32(b, 26)[0]
            self._of_transaction(kind, b, 30, tx)
        else:
            self._of_transaction(kind, b, 26, tx)

    def _of_transaction(self, kind: int, b: bytes, at: int, tx: Open | None) -> None:
        """A message whose content begins at a place; that of a streamed transaction stands 4 bytes later."""
        if kind == _RELATION:
            self._relation(b, at, tx)
        elif kind == _TRUNCATE:
            assert tx is not None
            (many,) = _u32(b, at)
            for i in range(many):
                number = b[at + 5 + 4 * i : at + 9 + 4 * i]
                if (part := self._part(tx, number)) is not None:
                    part.lines.append(_truncation(part.relation.table, tx.time))
                    tx.rows += 1
        elif kind == _MESSAGE:
            prefix, rest = b[at + 9 : b.index(0, at + 9)].decode(), b.index(0, at + 9) + 1
            if not b[at] & 1:
                # It belongs to no transaction: one of its own, which ends just after where it begins.
                (lsn,) = _u64(b, at + 1)
                alone = [Message(prefix, b[rest + 4 :], 0, 0)]
                self.done.append(Committed(0, lsn + 1, lsn, self._clock(), [], alone, 0, None, set()))
            elif tx is not None:
                tx.messages.append(Message(prefix, b[rest + 4 :], tx.rows, tx.sub))
                if tx.last is not None:
                    tx.last.ranges[-1][1] = tx.rows - 1
                    tx.last = None
                tx.rows += 1
        elif kind in b"IUD":
            assert tx is not None
            if (part := self._part(tx, b[at : at + 4])) is None:
                return
            relation = part.relation
            if kind == _INSERT:
                part.lines.append(relation.insert(b, at + 5, tx.time))
            elif kind == _UPDATE:
                part.lines.append(relation.update(b, at + 4, tx.time))
            else:
                part.lines.append(relation.delete(b, at + 4, tx.time))
            tx.rows += 1
            tx.size += len(b)
            if tx.size > SPILL_BYTES:
                _spill(tx)

    def _part(self, tx: Open, number: bytes) -> Part | None:
        """Where the next row of a table goes; None when the table is not captured."""
        part = tx.parts.get(number)
        if part is None:
            relation = self.relations[number]
            if relation is None:
                return None
            part = _new_part(tx, number, relation)
        if part is not tx.last:
            _switch(tx, part)
        if tx.streamed and (not part.subs or part.subs[-1][1] != tx.sub):
            part.subs.append((len(part.lines), tx.sub))
        return part

    def _relation(self, b: bytes, at: int, tx: Open | None) -> None:
        number = b[at : at + 4]
        end = b.index(0, at + 4)
        schema = b[at + 4 : end].decode()
        start, end = end + 1, b.index(0, end + 1)
        name = b[start:end].decode()
        identity = chr(b[end + 1])
        (width,) = struct.unpack_from(">H", b, end + 2)
        p, columns = end + 4, []
        for _ in range(width):
            end = b.index(0, p + 1)
            oid, modifier = struct.unpack_from(">Ii", b, end + 1)
            columns.append((b[p + 1 : end].decode(), oid, modifier, bool(b[p] & 1)))
            p = end + 9
        self.relations[number] = self._describe(_u32(number)[0], schema or "pg_catalog", name, identity, columns)
        if tx is not None:
            tx.parts.pop(number, None)  # rows from here on are of the new shape


def _new_part(tx: Open, number: bytes, relation: Relation) -> Part:
    part = tx.parts[number] = Part(relation)
    tx.order.append(part)
    return part


def _switch(tx: Open, part: Part) -> None:
    """From here on rows are of another table."""
    if tx.last is not None:
        tx.last.ranges[-1][1] = tx.rows - 1
    part.ranges.append([tx.rows, tx.rows])
    tx.last = part


def _spill(tx: Open) -> None:
    """Write what a transaction holds to its file."""
    if tx.spill is None:
        tx.spill = Spill()
    for part in tx.order:
        if part.lines:
            part.chunks += tx.spill.write(part.lines, part.subs)
            part.lines = []
            part.subs = part.subs[-1:] and [(0, part.subs[-1][1])]
    tx.size = 0


def time_text(micros: int) -> bytes:
    """A time as lines have it, always of one width."""
    second, rest = divmod(micros, 1_000_000)
    return b"%b.%06dZ" % (_second_text(second), rest)


@lru_cache(16)
def _second_text(second: int) -> bytes:
    return from_micros(second * 1_000_000).strftime("%Y-%m-%dT%H:%M:%S").encode()


def _truncation(table: str, time: bytes) -> bytes:
    return b'{"operation":"TRUNCATE","table":%b,"before":null,"after":null,"timestamp":"%b"}' % (
        msgspec.json.encode(table),
        time,
    )
