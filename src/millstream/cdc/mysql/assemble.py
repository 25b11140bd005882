"""From the events of a binary log to whole transactions, their rows as lines of JSON.

Rows are taken apart where they arrived, without copies of the events. Those of a large transaction go to a
temporary file. The layout of events is that of MySQL's and MariaDB's documentation of their replication protocols.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Callable
from struct import Struct

from ...errors import CaptureError
from . import transaction
from .faults import RESYNC
from .rows import NotWhole, Table
from .stream import Stream
from .tablemap import Misfit
from .transaction import Committed, Note, Open, Part, position_of, spill, time_text, undo
from .wire import FULL, error_of, length, lost

MAX_ROWS = 5_000
"""After so many rows, one look at the stream ends with the next commit."""


_head = Struct("<BIBIIIH").unpack_from
_u32 = Struct("<I").unpack_from
_u64 = Struct("<Q").unpack_from

_INSERT, _UPDATE, _DELETE = 0, 1, 2
_ROWS = {
    23: _INSERT, 24: _UPDATE, 25: _DELETE, 30: _INSERT, 31: _UPDATE, 32: _DELETE,
    166: _INSERT, 167: _UPDATE, 168: _DELETE, 169: _INSERT, 170: _UPDATE, 171: _DELETE,
}  # fmt: skip
_EXTRA = {30, 31, 32, 169, 170, 171}
"""Events of rows that say more before their columns."""

_TABLE_MAP, _ROTATE, _XID, _QUERY, _INCIDENT, _HEARTBEAT, _GTID, _ANONYMOUS = 19, 4, 16, 2, 26, 27, 33, 34
_FORMAT = 15
_XA_PREPARE, _PARTIAL_UPDATE, _PAYLOAD, _GTID_TAGGED, _LOAD = 38, 39, 40, 42, 18
_MARIADB_GTID, _QUERY_COMPRESSED = 162, 165
_NO_TABLE = b"\xff\xff\xff\0\0\0"


class Assembler:
    """Gathers transactions.

    Args:
        file, offset: Where the stream begins.
        describe: The table, with its decoders, that a TABLE_MAP's body is of, at a position; None for one that is
            not captured. Called once for each that is new, until `forget`.
        stated: A statement, its database and where it ends: what it means for the log.
        doubted: A table's rows cannot be what they were taken for.
        noted: What is to be told, in the transaction at hand, because of any of these.
    """

    def __init__(
        self,
        file: str,
        offset: int,
        describe: Callable[[bytes, int], Table | None],
        stated: Callable[[str, str, int], list[Note]],
        doubted: Callable[[str], None],
        noted: Callable[[], list[Note]],
        location: str,
        born: tuple[str, int] | None = None,
    ) -> None:
        self._describe = describe
        self._stated = stated
        self._doubted = doubted
        self._noted = noted
        self._location = location
        self.done: deque[Committed] = deque()
        self._tx: Open | None = None
        self._tables: dict[bytes, Table | None] = {_NO_TABLE: None}
        self._maps: dict[bytes, Table | None] = {}
        self._payload = 0
        self._checksum = -1
        """How many bytes of each event are its checksum; not known yet at the beginning."""
        self.file, self.offset = file, offset
        self._base = position_of(file, 0)
        self._changed = False
        """A statement has changed what is known of tables."""
        self.born = born
        """A file of the log, and when it was begun."""
        self.begun = False
        """The stream has said of what format it is, as it does first."""
        self._floor = self._base | min(offset, 0xFFFFFFFF)

    @property
    def reached(self) -> int:
        """How far the stream has come. (By transaction ids it begins earlier, and what was taken is passed over.)"""
        return max(self._floor, self._base | min(self.offset, 0xFFFFFFFF))

    @property
    def idle(self) -> bool:
        """Whether no transaction is being told."""
        return self._tx is None

    def forget(self) -> None:
        """What was described may not be so any more."""
        self._maps.clear()

    def close(self) -> None:
        """Forget what has not ended."""
        for each in (self._tx, *self.done):
            if each is not None and each.spill is not None:
                each.spill.close()
        self._tx = None
        self.done.clear()

    def read(self, stream: Stream) -> None:
        """Take events until none is there now, or enough rows were committed.

        Raises:
            CaptureError: The log holds what cannot be told.
            pymysql.MySQLError, OSError: The stream has ended.
        """
        try:
            self._read(stream)
        except NotWhole as error:
            raise CaptureError(
                f"{self._location}: its log does not hold whole rows",
                hint="SET GLOBAL binlog_row_image = 'FULL'; reconnect the programs that write; then " + RESYNC,
            ) from error
        except (IndexError, KeyError, ValueError, struct.error, zlib.error) as error:
            raise CaptureError(
                f"{self._location}: an event before {self.file}:{self.offset} cannot be read ({error!r:.100})",
                hint=RESYNC,
            ) from error

    def _read(self, stream: Stream) -> None:
        packets = stream.packets
        if self._checksum < 0:
            self._checksum = stream.checksum
        b, at, end = packets.b, packets.at, len(packets.b)
        rows = 0
        while True:
            size = _u32(b, at)[0] & FULL if at + 4 <= end else 0
            after = at + 4 + size
            if after > end or at + 4 > end:
                packets.at = at
                if not stream.ready():
                    return
                packets.more(4 + size if size > 1 << 20 else 0)
                b, at, end = packets.b, 0, len(packets.b)
                continue
            if size < FULL:
                event, p, e = b, at + 4, after
            else:
                packets.at = at
                event = packets.take()
                b, after, end = packets.b, packets.at, len(packets.b)
                p, e = 0, len(event)
            at = after
            status, when, kind, server, _, offset, flags = _head(event, p) if e - p >= 20 else (event[p], *[0] * 6)
            if status:
                packets.at = at
                raise error_of(event[p:e]) if status == 0xFF else lost("the server has ended its log")
            p += 20
            e -= self._checksum
            if offset:
                self.offset = offset
            if kind in _ROWS:
                self._rows(kind, event, p, e)
            elif kind == _TABLE_MAP:
                body = event[p:e]
                if body in self._maps:
                    self._tables[body[:6]] = self._maps[body]
                else:
                    self._map(body, offset)
            else:
                self._event(kind, event, p, e, when, server, offset, flags)
                if self._tx is None and self.done:
                    rows += self.done[-1].rows if offset else 0
                    if rows >= MAX_ROWS or self.done[-1].spill is not None or self._changed:
                        self._changed = False
                        packets.at = at
                        return

    # --- rows -----------------------------------------------------------------------------------------------

    def _map(self, body: bytes, offset: int) -> None:
        position = self._base | min(offset or self._payload, 0xFFFFFFFF)
        table = self._describe(body, position)
        self._add_notes()
        if table is not None and position <= table.since:
            self._tables[body[:6]] = None  # told by a snapshot already
            return
        self._tables[body[:6]] = self._maps[body] = table

    def _rows(self, kind: int, b: bytes, p: int, e: int) -> None:
        table = self._tables[b[p : p + 6]]
        tx = self._tx
        if table is None:
            return
        if tx is None:
            raise CaptureError(f"{self._location}: its log has rows that belong to no transaction", hint=RESYNC)
        q = p + 8
        if kind in _EXTRA:
            q += b[q] | b[q + 1] << 8
        if kind >= 166:
            b, q, e = _inflated_rows(b, q, e, 2 if _ROWS[kind] == _UPDATE else 1)
        what = _ROWS[kind]
        try:
            if what == _INSERT:
                lines = table.insert(b, q, e, tx.time)
            elif what == _UPDATE:
                lines = table.update(b, q, e, tx.time)
            else:
                lines = table.delete(b, q, e, tx.time)
        except Misfit:
            self._doubted(table.name)
            self._add_notes()
            self._tables[b[p : p + 6]] = None
            return
        part = tx.last
        if part is None or part.table is not table:
            part = self._switch(tx, table)
        part.lines += lines
        tx.rows += len(lines)
        tx.size += e - q
        if tx.size > transaction.SPILL_BYTES:
            spill(tx)

    def _add_notes(self) -> None:
        if self._tx is not None and (notes := self._noted()):
            self._tx.order += notes
            self._changed = True

    def _switch(self, tx: Open, table: Table) -> Part:
        """From here on rows are of another table."""
        if tx.last is not None:
            tx.last.ranges[-1][1] = tx.rows - 1
        part = tx.parts.get(table.name)
        if part is None or part.table is not table:
            part = tx.parts[table.name] = Part(table)
            tx.order.append(part)
        part.ranges.append([tx.rows, tx.rows])
        tx.last = part
        return part

    # --- what is not a row ------------------------------------------------------------------------------------

    def _event(self, kind: int, b: bytes, p: int, e: int, when: int, server: int, offset: int, flags: int) -> None:
        if kind == _XID:
            self._commit(offset)
        elif kind == _MARIADB_GTID:
            self._mariadb_gtid(b, p, e, when, server)
        elif kind in (_QUERY, _QUERY_COMPRESSED):
            self._query(kind, b, p, e, when, offset)
        elif kind in (_GTID, _ANONYMOUS):
            self._mysql_gtid(kind, b, p, e, when)
        elif kind == _FORMAT:
            self._check_born(when)
            self._checksum = 4 if b[e + self._checksum - 5] == 1 else 0
        elif kind == _ROTATE:
            e = _without_checksum(b, p, e + self._checksum)
            self.file, self.offset = b[p + 8 : e].decode(), _u64(b, p)[0]
            self._base = position_of(self.file, 0)
        elif kind == _HEARTBEAT:
            e = _without_checksum(b, p, e + self._checksum)
            if self._tx is None and b[p:e].decode() == self.file:
                self.offset = max(self.offset, offset)
        elif kind == _PAYLOAD:
            self._compressed(b, p, e, offset)
        elif kind == _XA_PREPARE:
            if b[p]:
                self._commit(offset)
            elif self._tx is not None:
                if self._tx.rows:
                    raise CaptureError(
                        f"{self._location}: a transaction in two phases (XA) has changed captured tables",
                        hint="Captures follow no XA transactions; use plain ones for these tables. " + RESYNC,
                    )
                self._commit(offset)
        elif kind == _PARTIAL_UPDATE:
            raise CaptureError(
                f"{self._location}: its log holds parts of JSON documents",
                hint="SET GLOBAL binlog_row_value_options = ''; reconnect the programs that write; then " + RESYNC,
            )
        elif kind == _INCIDENT:
            raise CaptureError(f"{self._location}: the server says that its log has a gap", hint=RESYNC)
        elif kind == _GTID_TAGGED:
            raise CaptureError(
                f"{self._location}: its transaction ids have tags, which captures do not know",
                hint="SET GTID_NEXT = 'AUTOMATIC' in the programs that write; then " + RESYNC,
            )
        elif kind == _LOAD:
            self._tell_statement("", "LOAD DATA", offset, when * 1_000_000)

    def _check_born(self, when: int) -> None:
        """See that a file of the log is still the one that it was: after RESET MASTER its name comes again."""
        if self.born is not None and self.born[0] == self.file and self.born[1] != when:
            raise CaptureError(f"{self._location}: the server's log was begun anew", hint=RESYNC)
        self.born = (self.file, when)
        self.begun = True

    def _begin(self, gtid: str | None, micros: int, begun: bool, ignored: bool = False) -> Open:
        self._tx = tx = Open(gtid, micros, time_text(micros), begun, ignored)
        return tx

    def _commit(self, offset: int) -> None:
        tx = self._tx
        if tx is None:
            return
        if tx.last is not None:
            tx.last.ranges[-1][1] = tx.rows - 1
        self._tx = None
        offset = offset or self._payload
        position = self._base | min(offset, 0xFFFFFFFF)
        self.done.append(Committed(self.file, offset, position, tx.gtid, tx.micros, tx.order, tx.rows, tx.spill))

    def _mariadb_gtid(self, b: bytes, p: int, e: int, when: int, server: int) -> None:
        number, domain, flags = _u64(b, p)[0], _u32(b, p + 8)[0], b[p + 12]
        p += 13 + (8 if flags & 2 else 0)  # with a number, of commits that came together
        # An ALTER TABLE may be told when it begins, and again when it is done or taken back.
        ignored = bool(flags & 1 and not flags & 0xC0 and p < e and b[p] & (2 | 8))
        self._begin(f"{domain}-{server}-{number}", when * 1_000_000, not flags & 1, ignored)

    def _mysql_gtid(self, kind: int, b: bytes, p: int, e: int, when: int) -> None:
        gtid = None
        if kind == _GTID:
            h = b[p + 1 : p + 17].hex()
            gtid = f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}:{_u64(b, p + 17)[0]}"
        micros = when * 1_000_000
        if e - p >= 49:
            micros = int.from_bytes(b[p + 42 : p + 49], "little") & ((1 << 55) - 1) or micros
        self._begin(gtid, micros, False)

    def _query(self, kind: int, b: bytes, p: int, e: int, when: int, offset: int) -> None:
        size, more = b[p + 8], b[p + 11] | b[p + 12] << 8
        p += 13 + more
        database = b[p : p + size].decode()
        raw = b[p + size + 1 : e]
        if kind == _QUERY_COMPRESSED:
            raw = _inflated(raw)
        text = raw.decode("utf-8", "replace")
        tx = self._tx
        if text == "BEGIN" or text.startswith(("XA START", "XA BEGIN")):
            if tx is None or tx.begun:
                self._begin(None, when * 1_000_000, True)
            else:
                tx.begun = True
        elif tx is not None and tx.begun and text in ("COMMIT", "COMMIT /* implicit, from Xid_log_event */"):
            self._commit(offset)
        elif tx is not None and tx.begun and text.upper().startswith(("SAVEPOINT", "ROLLBACK", "XA ", "RELEASE")):
            self._partly(tx, text, offset)
        else:
            self._tell_statement(database, text, offset, when * 1_000_000)

    def _tell_statement(self, database: str, text: str, offset: int, micros: int) -> None:
        tx = self._tx
        if tx is None:
            tx = self._begin(None, micros, False)
        if not tx.ignored:
            position = self._base | min(offset or self._payload, 0xFFFFFFFF)
            tx.order += self._stated(database, text, position)
            self._changed = True
        if not tx.begun:
            self._commit(offset)

    def _partly(self, tx: Open, text: str, offset: int) -> None:
        """Savepoints, which are told only when rows of tables without transactions stand between them."""
        words = text.replace("`", " ").split()
        verb = words[0].upper()
        if verb == "SAVEPOINT":
            tx.marks[" ".join(words[1:])] = tx.rows
        elif verb == "ROLLBACK" and len(words) > 1 and words[1].upper() == "TO":
            name = " ".join(word for word in words[2:] if word.upper() != "SAVEPOINT")
            undo(tx, tx.marks.get(name, 0), self._location)
        elif verb == "ROLLBACK":
            undo(tx, 0, self._location)
            self._commit(offset)

    # --- compressed transactions --------------------------------------------------------------------------------

    def _compressed(self, b: bytes, p: int, e: int, offset: int) -> None:
        """MySQL's compressed transactions: events within one event."""
        method, size = 0, 0
        while p < e:
            kind, p = length(b, p)
            if not kind:
                break
            count, p = length(b, p)
            number, _ = length(b, p)
            if kind == 2:
                method = number
            elif kind == 3:
                size = number
            p += count
        raw = b[p:e] if method else _zstd(b[p:e], size, self._location)
        self._payload = offset
        at = 0
        while at < len(raw):
            _, when, kind, server, count, _, flags = _head(b"\0" + raw[at : at + 19], 0)
            p, end = at + 19, at + count
            if kind in _ROWS:
                self._rows(kind, raw, p, end)
            elif kind == _TABLE_MAP:
                self._map(raw[p:end], 0)
            else:
                self._event(kind, raw, p, end, when, server, 0, flags)
            at = end


def _without_checksum(b: bytes, p: int, e: int) -> int:
    """Where an event ends that the server makes while it sends: whether it has a checksum, only that itself says."""
    return e - 4 if zlib.crc32(b[p - 19 : e - 4]) == _u32(b, e - 4)[0] else e


def _zstd(raw: bytes, size: int, location: str) -> bytes:
    """Decompress, by what is installed."""
    for module in ("compression.zstd", "zstandard", "pyarrow"):
        try:
            found = __import__(module, fromlist=["decompress"])
        except ImportError:
            continue
        if module == "pyarrow":
            return bytes(found.decompress(raw, decompressed_size=size, codec="zstd", asbytes=True))
        return bytes(found.decompress(raw))
    raise CaptureError(
        f"{location}: its log is compressed, and nothing is installed here to read it",
        hint="Install zstandard; or SET GLOBAL binlog_transaction_compression = OFF",
    )


def _inflated(raw: bytes) -> bytes:
    """What MariaDB has compressed in an event."""
    return zlib.decompress(raw[1 + (raw[0] & 7) :])


def _inflated_rows(b: bytes, q: int, e: int, bitmaps: int) -> tuple[bytes, int, int]:
    """An event of compressed rows, from its columns on."""
    width, p = length(b, q)
    p += bitmaps * ((width + 7) // 8)
    found = b[q:p] + _inflated(b[p:e])
    return found, 0, len(found)
