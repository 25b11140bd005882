"""A visit to PostgreSQL: the stream and the snapshots, taken together into batches for the log."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg

from ...conversion import ready
from ...errors import CaptureError, CaptureWarning, SourceUnavailable
from ..shape import Shape
from ..source import Batch, Piece, State
from . import slots
from .assemble import Assembler, Committed
from .backfill import Backfill
from .catalog import Catalog, SourceTable, connect
from .faults import fault
from .publish import Publisher
from .relation import Relation
from .replication import Replication

if TYPE_CHECKING:
    from .source import PostgresSource

TELL_EVERY = 1.0
"""Seconds between two acknowledgements, unless one is asked for."""

ALIVE_EVERY = 10.0
"""Seconds after which the server is told something even when there is nothing new."""

STAGE_BYTES = 8 << 20
"""How much of a transaction from a file goes ahead into the log at once."""

_TAKEOVER = 10.0
"""Seconds within which a capture that was taken over lets go of its slot."""


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
            msgspec.convert(state.source.get("shapes", {}), ready(dict[str, Shape])),
            source.options.outbox,
            lambda table: self.backfill.read_again(table),
        )
        self.replication: Replication | None = None
        self._names = {table.id: name for name, table in tables.items()}
        self._position = 0
        """What was given to be committed."""
        self._durable = 0
        self._moved_at = time.monotonic()
        self._watched_at = float("-inf")
        self.backfill = Backfill(source, about, state, tables, publications, self.publisher)
        self._publishing: Iterator[Batch] | None = None

    # --- the connection -----------------------------------------------------------------------------------

    def close(self) -> None:
        """End the visit."""
        self._disconnect()
        self.backfill.close()
        self.catalog.connection.close()

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
        if replication is None or self.backfill.under_way or self._publishing is not None:
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
        """Whether a row of every captured table was read, or is being read."""
        return self.backfill.begun(state)

    def poll(self, position: int, state: State, *, whole: bool = False) -> Batch | None:
        """What is there now, after a position; see `Source`."""
        began = time.monotonic()
        pause = 0.05
        while True:
            try:
                return self._poll(position, state, whole)
            except psycopg.Error as error:
                found = fault(error, self.source.url)
                self._disconnect()
                self._publishing = None
                # A capture that this one has taken over lets go of the slot as soon as it learns of it.
                in_use = isinstance(error, psycopg.errors.ObjectInUse)
                patience = (
                    min(_TAKEOVER, self.source.options.lock_timeout) if in_use else self.source.options.lock_timeout
                )
                lasting = time.monotonic() + pause > began + patience
                if not isinstance(found, SourceUnavailable) or lasting:
                    raise found from error
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
                self._renew()

    def _renew(self) -> None:
        """The other connections, too, after one was lost."""
        self.backfill.close()
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
        if not self.backfill.under_way:
            self.backfill.begin(self.catalog)
        if self.backfill.whole is not None:
            if replication.quiet_for >= ALIVE_EVERY:
                self._tell()
            return Batch(self.backfill.whole_page(1.0), position, self._copied())
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
            if not self.backfill.chunks and self._reached() >= target:
                if whole and target > position:
                    return self._moved(max(self._reached(), position))
                return None
            if self.backfill.chunks and not whole and not self.backfill.waits:
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
                self.backfill.note(tx)
                pieces += self.publisher.pieces(tx, self.backfill.wanted)
                self._position = tx.position
        if self.assembler.idle:
            pieces += self.backfill.chunk(self._reached())
        if self._position > position:
            self._moved_at = time.monotonic()
        elif not pieces:
            return None
        return Batch(pieces, self._position, self._copied())

    def _copied(self) -> State:
        """The state as it is now, to be committed while this one moves on."""
        state = self.state
        self.backfill.passed(self._reached())
        state.source["shapes"] = {name: msgspec.to_builtins(shape) for name, shape in self.publisher.shapes.items()}
        return msgspec.structs.replace(
            state,
            tables={name: msgspec.structs.replace(progress) for name, progress in state.tables.items()},
            source=dict(state.source),
        )

    def _staged(self, tx: Committed) -> Iterator[Batch]:
        """A transaction from a file: its rows go ahead in short commits, and its headers make them seen in a last
        one."""
        assert tx.spill is not None
        self.backfill.note(tx)
        every: list[Piece] = []
        some: list[Piece] = []
        size = 0
        before = self._copied()
        for piece in self.publisher.spilled(tx, self.backfill.wanted):
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
