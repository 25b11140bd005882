"""A visit to PostgreSQL: the stream and the snapshots, taken together into batches for the log."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg

from ...errors import CaptureError, CaptureWarning, SourceUnavailable
from ...log.staging import encode_metadata
from ...time import from_micros
from ..change import Change, SnapshotCompleted
from ..points import reach
from ..shape import Shape
from ..source import Batch, Piece, Progress, State, pieces_of
from . import slots
from .assemble import NO_TIME, Assembler, Committed
from .catalog import Catalog, SourceTable, connect
from .faults import fault
from .publish import Publisher
from .relation import Relation
from .replication import Replication
from .snapshot import WHOLE_BYTES, Chunks, Page, WholeTables
from .visibility import Visibility

if TYPE_CHECKING:
    from .source import PostgresSource

TELL_EVERY = 1.0
"""Seconds between two acknowledgements, unless one is asked for."""

ALIVE_EVERY = 10.0
"""Seconds after which the server is told something even when there is nothing new."""

STAGE_BYTES = 8 << 20
"""How much of a transaction from a file goes ahead into the log at once."""


class PostgresSession:
    """An open source, used by one thread."""

    def __init__(
        self,
        source: PostgresSource,
        catalog: Catalog,
        about: dict[str, Any],
        state: State,
        tables: dict[str, SourceTable],
        publications: list[str],
    ) -> None:
        self.source = source
        self.catalog = catalog
        self.about = about
        self.state = state
        self.tables = tables
        self.publications = publications
        self.assembler = Assembler(self._describe, about["slot"])
        self.publisher = Publisher(
            catalog,
            about,
            msgspec.convert(state.source.get("shapes", {}), dict[str, Shape]),
            source.options.outbox,
            self._read_again,
        )
        self.replication: Replication | None = None
        self._names = {table.id: name for name, table in tables.items()}
        self._position = 0
        """What was given to be committed."""
        self._durable = 0
        self._moved_at = time.monotonic()
        self._watched_at = 0.0
        self._whole: WholeTables | None = None
        self._chunks: dict[str, Chunks] = {}
        self._touched: dict[str, list[tuple[int, list[bytes] | None]]] = {}
        """By table that is read in chunks: the rows that each transaction changed since; None for too many to keep."""
        self._recent: dict[int, None] = {}
        """The last transactions that were taken."""
        self._seen: list[tuple[Visibility, frozenset[str]]] = [
            (msgspec.convert(each[0], Visibility), frozenset(each[1])) for each in state.source.get("seen", [])
        ]
        """What whole tables showed already, while the stream may still tell of it."""
        self._again: set[str] = set()
        self._publishing: Iterator[Batch] | None = None

    # --- the connection -----------------------------------------------------------------------------------

    def close(self) -> None:
        """End the visit."""
        self._disconnect()
        self._end_snapshots()
        self.catalog.connection.close()

    def _end_snapshots(self) -> None:
        if self._whole is not None:
            self._whole.close()
            self._whole = None
        for chunks in self._chunks.values():
            chunks.close()
        self._chunks.clear()
        self._touched.clear()

    def _disconnect(self) -> None:
        self.assembler.close()
        replication, self.replication = self.replication, None
        if replication is not None:
            replication.close()

    def _connect(self, position: int) -> Replication:
        replication = Replication(self.source.place)
        version = 2 if replication.pgconn.server_version >= 140_000 else 1
        options = {
            "proto_version": str(version),
            "publication_names": ",".join(f'"{name}"' for name in self.publications),
            "messages": "true",
            "streaming": "true",
        }
        try:
            replication.start(self.about["slot"], position, options)
        except BaseException:
            replication.close()
            raise
        self.assembler = Assembler(self._describe, self.about["slot"])
        self.assembler.server_position = position
        self.replication = replication
        self._position = position
        self._durable = max(self._durable, position)
        return replication

    def changed(self) -> bool:
        """Whether there may be something new. Also says to the server that this side is alive."""
        replication = self.replication
        if replication is None or self._whole is not None or self._chunks or self._publishing is not None:
            return True
        if replication.quiet_for >= ALIVE_EVERY:
            self._tell()
        due = self.assembler.server_position > self._position and self._is_due()
        return due or replication.waiting(0)

    def _watch(self) -> None:
        """Look now and then at how much of its log the server holds back for the slot.

        Raises:
            CaptureError: It is more than the limit, and the slot was dropped, as was asked for.
        """
        limit, now = self.source.options.slot_limit, time.monotonic()
        if limit is None or now - self._watched_at < self.source.options.heartbeat:
            return
        self._watched_at = now
        slot = slots.find_slot(self.catalog.connection, self.about["slot"])
        kept = int(slot["retained"] or 0) if slot is not None else 0
        if kept <= limit:
            return
        about = f"{self.source.url}: the server holds back {kept:,} bytes for this capture, more than {limit:,}"
        if not self.source.options.drop_slot:
            warnings.warn(f"{about}. See what keeps it: millstream cdc doctor", CaptureWarning, stacklevel=2)
            return
        self._disconnect()
        slots.drop_slot(self.catalog.connection, self.about["slot"])
        raise CaptureError(f"{about}, so its slot was dropped", hint=slots.RESYNC)

    def _is_due(self) -> bool:
        return time.monotonic() - self._moved_at >= self.source.options.heartbeat

    def acknowledge(self, position: int, *, now: bool = False) -> None:
        """All up to a position is durable in the log: the slot may let go of it."""
        replication = self.replication
        self._durable = max(self._durable, position)
        if replication is not None and (now or replication.quiet_for >= TELL_EVERY):
            self._tell()

    def _tell(self, *, reply: bool = False) -> None:
        replication = self.replication
        assert replication is not None
        try:
            replication.tell(self._durable, reply=reply)
        except psycopg.Error:
            self._disconnect()  # the next look connects anew, and says what is wrong if it cannot

    # --- a batch ------------------------------------------------------------------------------------------

    def begun(self, state: State) -> bool:
        """Whether a row of every captured table was read, or the snapshot of what is left is being taken."""
        return self._whole is not None or all(state.tables[name].begun or name in self._chunks for name in self.tables)

    def poll(self, position: int, state: State, *, whole: bool = False) -> Batch | None:
        """What is there now, after a position; see `Source`."""
        deadline = time.monotonic() + self.source.options.lock_timeout
        pause = 0.05
        while True:
            try:
                return self._poll(position, state, whole)
            except psycopg.Error as error:
                found = fault(error, self.source.url)
                self._disconnect()
                self._publishing = None
                lasting = isinstance(error, psycopg.errors.ObjectInUse) or time.monotonic() + pause > deadline
                if not isinstance(found, SourceUnavailable) or lasting:
                    raise found from error
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
                self._renew()

    def _renew(self) -> None:
        """The other connections, too, after one was lost."""
        whole = self._whole is not None
        self._end_snapshots()
        if whole:
            for name in self.tables:
                progress = self.state.tables[name]
                if not progress.done and progress.cursor is None:
                    progress.restart()
        self.catalog.connection.close()
        try:
            self.publisher.catalog = self.catalog = Catalog(connect(self.source.place))
        except psycopg.Error:
            return  # the server is not back yet; whoever asks the closed connection learns it

    def _poll(self, position: int, state: State, whole: bool) -> Batch | None:
        if self._publishing is not None:
            batch = next(self._publishing, None)
            if batch is not None:
                return batch
            self._publishing = None
        self._watch()
        replication = self.replication or self._connect(position)
        if self._whole is None and not self._chunks:
            self._begin_snapshots()
        if self._whole is not None:
            return self._whole_page(position)
        target = self._target() if whole else 0
        while True:
            self.assembler.read(replication)
            if self.assembler.wants_reply:
                self.assembler.wants_reply = False
                self._tell()
            batch = self._batch(position)
            if batch is not None:
                return batch
            if self.assembler.server_position > position and self._is_due():
                return self._moved(self.assembler.server_position)
            if not self._chunks and self._reached() >= target:
                if whole and target > position:
                    return self._moved(max(self._reached(), position))
                return None
            if self._chunks and not whole and not any(chunks.look() for chunks in self._chunks.values()):
                return None
            self._tell(reply=True)
            replication = self.replication or self._connect(position)
            replication.waiting(0.01)

    def _target(self) -> int:
        """Where the server's log ends now, all of it on its disk."""
        row = self.catalog.connection.execute(
            "select (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::int8 as position"
        ).fetchone()
        assert row is not None
        return int(row["position"])

    def _reached(self) -> int:
        """How far everything of the stream was taken."""
        return max(self._position, self.assembler.server_position if self.assembler.idle else 0)

    def _moved(self, position: int) -> Batch:
        self._moved_at = time.monotonic()
        self._position = max(self._position, position)
        return Batch([], self._position, self._copied())

    def _batch(self, position: int) -> Batch | None:
        """What was committed, or else a chunk whose time has come."""
        done = self.assembler.done
        pieces: list[Piece] = []
        while done:
            tx = done[0]
            if tx.spill is not None and tx.position > self._position:
                if pieces:
                    break
                done.popleft()
                self._publishing = self._staged(tx)
                return next(self._publishing)
            done.popleft()
            if tx.position > self._position:
                self._note(tx)
                pieces += self.publisher.pieces(tx, self._wanted)
                self._position = tx.position
        if self._position > position:
            self._moved_at = time.monotonic()
            return Batch(pieces, self._position, self._copied())
        return self._chunk()

    def _copied(self) -> State:
        """The state as it is now, to be committed while this one moves on."""
        state = self.state
        if self._seen:
            reached = self._reached()
            self._seen = [each for each in self._seen if each[0].high > reached]
        state.source["seen"] = [(msgspec.to_builtins(seen), sorted(names)) for seen, names in self._seen]
        state.source["shapes"] = {name: msgspec.to_builtins(shape) for name, shape in self.publisher.shapes.items()}
        return State(
            slot=state.slot,
            opened=state.opened,
            tables={name: msgspec.structs.replace(progress) for name, progress in state.tables.items()},
            source=dict(state.source),
        )

    def _staged(self, tx: Committed) -> Iterator[Batch]:
        """A transaction from a file: its rows go ahead in short commits, and its headers make them seen in a last
        one."""
        assert tx.spill is not None
        self._note(tx)
        every: list[Piece] = []
        some: list[Piece] = []
        size = 0
        before = self._copied()
        for piece in self.publisher.spilled(tx, self._wanted):
            every.append(piece)
            if piece.type != "Change":
                continue
            some.append(piece)
            size += len(piece.body)
            if size >= STAGE_BYTES:
                yield Batch([], self._position, before, ahead=some)
                some, size = [], 0
        if some:
            yield Batch([], self._position, before, ahead=some)
        tx.spill.close()
        self._position = tx.position
        self._moved_at = time.monotonic()
        yield Batch(every, self._position, self._copied())

    # --- what of the stream is wanted ---------------------------------------------------------------------

    def _describe(
        self, id: int, schema: str, name: str, identity: str, columns: list[tuple[str, int, int, bool]]
    ) -> Relation | None:
        table = self._names.get(id)
        if table is None:
            return None
        return self.catalog.relation(id, schema, name, table, identity, columns)

    def _wanted(self, table: str, xid: int) -> bool:
        """Whether what a transaction did to a table belongs into the log: not if a whole table has shown it already.

        (A table's snapshot has always begun: that comes before the stream is looked at.)
        """
        return not any(table in names and seen.sees(xid) for seen, names in self._seen)

    def _note(self, tx: Committed) -> None:
        """Remember what a transaction has changed, for the snapshots that may not have seen it."""
        self._recent[tx.xid] = None
        if len(self._recent) > 10_000:
            del self._recent[next(iter(self._recent))]
        for part in tx.parts:
            touched = self._touched.get(part.relation.table)
            if touched is not None:
                touched.append((tx.xid, part.lines if tx.spill is None else None))

    def _read_again(self, table: str) -> None:
        """A table's old rows are not what the log says they are."""
        progress = self.state.tables[table]
        progress.done, progress.cursor, progress.rows = False, None, 0
        progress.again = not self.tables[table].keyed
        self._again.add(table)

    # --- snapshots ----------------------------------------------------------------------------------------

    def _begin_snapshots(self) -> None:
        outbox = self.source.options.outbox
        if outbox in self.tables:
            self.state.tables[outbox].done = True  # what was in it before is not told again
        left = [name for name in self.tables if not self.state.tables[name].done]
        whole = []
        for name in left:
            table, progress = self.tables[name], self.state.tables[name]
            progress.expected = table.rows
            if (table.size > WHOLE_BYTES or progress.cursor or name in self._again) and self.catalog.key(table.id):
                self._begin_chunks(name, progress.cursor)
            else:
                whole.append(table)
        if whole:
            self._begin_whole(whole)

    def _begin_chunks(self, name: str, cursor: list[Any] | None) -> None:
        self._touched.setdefault(name, [])
        self._chunks[name] = Chunks(
            self.source.place, self.tables[name], self.publications, cursor, self.source.options.chunk_rows
        )

    def _begin_whole(self, tables: list[SourceTable]) -> None:
        """Begin to read whole tables, under a snapshot that sees every transaction that was taken already."""
        deadline = time.monotonic() + self.source.options.lock_timeout
        while True:
            found = WholeTables(self.source.place, tables, self.publications)
            # A transaction is told by the stream a moment before others can see what it did.
            if all(found.visibility.sees(xid) for xid in self._recent):
                break
            found.close()
            if time.monotonic() > deadline:
                raise CaptureError(
                    f"{self.source.url}: a transaction that was committed does not become visible",
                    hint="A synchronous standby may be down; run the capture again when it is back",
                )
            time.sleep(0.01)
        self._seen.append((found.visibility, frozenset(table.name for table in tables)))
        self._whole = found
        found.start()

    def _whole_page(self, position: int) -> Batch | None:
        """The next rows of the tables that are read whole."""
        whole = self._whole
        assert whole is not None
        replication = self.replication
        if replication is not None and replication.quiet_for >= ALIVE_EVERY:
            self._tell()
        page = whole.next(1.0)
        if page is None:
            return Batch([], position, self._copied())
        reach("in-snapshot")
        progress = self.state.tables[page.table]
        pieces = self._page(page, progress)
        if page.last:
            progress.done, progress.cursor, progress.again = True, None, False
        if not whole.waiting_for:
            whole.close()
            self._whole = None
        return Batch(pieces, position, self._copied())

    def _page(self, page: Page, progress: Progress) -> list[Piece]:
        """A page's rows; a TRUNCATE before the first one, if the log holds some that may be gone."""
        relation = page.relation
        assert relation is not None
        shape = relation.shape
        about = {"database": self.about["database"], "slot": self.about["slot"], "snapshot": True}
        moment = from_micros(page.micros)
        pieces = self.publisher.reshaped(relation, encode_metadata(about), page.micros)
        if progress.again:
            progress.again = False
            change = Change(operation="TRUNCATE", table=page.table, before=None, after=None, timestamp=moment)
            pieces += pieces_of(page.table, shape, [change], about, page.micros)
        progress.rows += page.count
        for rows, count in page.runs():
            pieces.append(Piece(page.table, rows, count, shape, "Change", encode_metadata(about), page.micros))
        if page.last:
            completed = SnapshotCompleted(
                table=page.table, columns=list(shape.names), rows=progress.rows, timestamp=moment
            )
            pieces += pieces_of(page.table, shape, [completed], about, page.micros)
        return pieces

    def _chunk(self) -> Batch | None:
        """A chunk whose high watermark the stream has passed."""
        if not self.assembler.idle:
            return None
        reached = self._reached()
        for name, chunks in self._chunks.items():
            page = chunks.look()
            if page is None or page.visibility.high > reached:
                continue
            touched = self._touched[name]
            unseen = [(xid, lines) for xid, lines in touched if not page.visibility.sees(xid)]
            self._touched[name] = unseen
            progress = self.state.tables[name]
            if any(lines is None for _, lines in unseen):
                # A large transaction, whose rows are not kept here: read the chunk again, so that it shows them.
                chunks.close()
                self._begin_chunks(name, progress.cursor)
                return None
            chunks.take()
            reach("in-chunk")
            kept = _without(page, [line for _, lines in unseen for line in lines or ()])
            progress.cursor = chunks.cursor
            pieces = self._page(kept, progress)
            if page.last:
                progress.done, progress.cursor = True, None
                chunks.close()
                del self._chunks[name], self._touched[name]
                self._again.discard(name)
            return Batch(pieces, self._position, self._copied())
        return None


def _without(page: Page, lines: list[bytes]) -> Page:
    """A chunk without the rows that were changed by transactions which it has not seen: the log knows better of those.

    Args:
        lines: Those changes.
    """
    if not lines or not page.count:
        return page
    assert page.relation is not None
    key = page.relation.shape.key
    changed = set()
    for line in lines:
        change = msgspec.json.decode(line.replace(NO_TIME, b""))
        if change["operation"] == "TRUNCATE":
            return msgspec.structs.replace(page, rows=b"", count=0)
        for row in (change["before"], change["after"]):
            if row is not None:
                changed.add(tuple(row.get(name) for name in key))

    def key_of(row: bytes) -> tuple[Any, ...]:
        values = msgspec.json.decode(row)
        return tuple(values.get(name) for name in key)

    kept = [row for row in page.rows.split(b"\n") if key_of(row) not in changed]
    return msgspec.structs.replace(page, rows=b"\n".join(kept), count=len(kept))
