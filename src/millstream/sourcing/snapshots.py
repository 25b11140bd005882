"""Snapshots: states kept beside the log, so that rebuilding need not begin at the first event. Never the truth."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from typing import Any

from ..errors import (
    DatabaseError,
    LogMoved,
    MillstreamError,
    PermissionDenied,
    ReadOnlyLog,
    ReplicaLog,
    StorageError,
    TimedOut,
    UsageError,
)
from ..events import definitions
from ..log import Log
from ..log.staging import check_stream
from ..storage.base import Receipt
from ..storage.database import Database
from ..storage.forked import lock
from .codec import HoldsErased, NotStorable
from .errors import SnapshotWarning
from .model import Model
from .privacy import Privacy, Unreadable
from .replay import Replay
from .root import Root

TABLE = "millstream_snapshots"
TABLES = {
    TABLE: "stream text not null, kind text not null, fingerprint text not null, version bigint not null,"
    " position bigint not null, state {blob} not null, primary key (stream, kind, fingerprint, version)"
}
"""The table that snapshots are kept in, in the log's own database, made when first needed."""

_BYTES_AT_ONCE = 32_000_000

_LOOK = 1.0
"""For so many seconds a log that had no table of snapshots is not looked at for one when a state is rebuilt."""

Row = tuple[str, int, int, bytes]
"""Stream, version, position, state."""


class Snapshots:
    """The snapshots of a repository's aggregates; made by it, and by `rebuild`.

    A snapshot holds the state at one version, for the shape and the code that it was made by (a fingerprint); after a
    change of either it is passed over. One that cannot be read is dropped with a `SnapshotWarning`. They can be
    deleted at any time: states are rebuilt from the events.
    """

    def __init__(self, log: Log, model: Model[Any], replay: Replay, every: int | None) -> None:
        self._log = log
        self._model = model
        self._replay = replay
        self._every = every
        self.privacy = Privacy(log, model)
        self._mark: tuple[int, str] | None = None
        self._mutex = lock()
        self._made = False
        self._looked = -_LOOK
        self._off = False
        """Whether making them was given up, since the state or the database does not allow it."""

    @property
    def fingerprint(self) -> str:
        """What the snapshots in use were made by: the state's shape, the code that makes it, its events' shapes."""
        known = definitions()
        if self._mark is None or self._mark[0] != known:
            self._mark = (known, self._model.mark())
        return self._mark[1]

    # --- what users ask -------------------------------------------------------------------------------

    def count(self, id: str | None = None) -> int:
        """How many there are that can be used, of one aggregate or of all."""
        with self._log.connect() as db:
            if not self._has_table(db):
                return 0
            sql = f"select count(*) from {db.own(TABLE)} where kind = ? and fingerprint = ?"
            params = [self._model.name, self.fingerprint]
            if id is not None:
                sql, params = sql + " and stream = ?", [*params, check_stream(id)]
            return int(db.execute(sql, params).fetchone()[0])

    def delete(self, id: str | None = None) -> int:
        """Delete those of one aggregate, or of all, whatever code they were made by; how many there were."""
        deleted = 0

        def work(db: Database, receipt: Receipt) -> None:
            nonlocal deleted
            deleted = 0
            if db.has_table(TABLE):
                where, params = ("", [self._model.name]) if id is None else (" and stream = ?", [self._model.name, id])
                deleted = db.execute(f"delete from {db.own(TABLE)} where kind = ?{where}", params).rowcount

        if id is not None:
            check_stream(id)
        self._log.commit(work=work)
        return deleted

    def rebuild(self, id: str | None = None) -> int:
        """Make those of one aggregate, or of all that have some, anew from their events; how many there are then.

        Raises:
            UsageError: The repository keeps none.
        """
        if self._every is None:
            raise UsageError("this repository keeps no snapshots", hint="Make it with snapshot_every=1000, for example")
        self._off = False
        streams = [check_stream(id)] if id is not None else self._streams()
        made = 0
        for stream in streams:
            self.delete(stream)
            made += self.advance(self._model.new(stream)).saved
        return made

    def _streams(self) -> list[str]:
        with self._log.connect() as db:
            if not self._has_table(db):
                return []
            sql = f"select distinct stream from {db.own(TABLE)} where kind = ? order by stream"
            return [row[0] for row in db.execute(sql, (self._model.name,))]

    # --- what the repository asks ---------------------------------------------------------------------

    @property
    def made(self) -> bool:
        """Whether they are made; those that are there are read all the same, if the repository has any."""
        return self._every is not None and not self._off

    def due(self, version: int, last: int) -> bool:
        """Whether one is due at a version, the last one being at another."""
        return self.made and self._every is not None and version // self._every > last // self._every

    def advance(self, root: Root, version: int | None = None, position: int | None = None) -> Collected:
        """Carry an aggregate forward, and keep what falls due on the way."""
        collected = Collected(self, root.version)
        if not self.made or self._every is None:
            collected.whole = self._replay.advance(root, version=version, position=position)
            return collected
        collected.whole = self._replay.advance(
            root, version=version, position=position, every=self._every, passed=collected.passed
        )
        collected.save()
        return collected

    def find(self, id: str, version: int | None = None, position: int | None = None) -> Root | None:
        """An aggregate as the last snapshot before a version or position (inclusive) has it; None without one."""
        if self._every is None:
            return None
        while True:
            try:
                row = self._row(id, version, position)
            except PermissionDenied:
                return None
            if row is None:
                return None
            root = self._model.new(id)
            self._check_whole(id)
            try:
                self._model.codec.load(root, self.privacy.open(id, row[2]))
            except Unreadable:
                # Someone was forgotten whose data it held; it is made anew, without.
                if not self._drop(id, row[0]):
                    return None
                continue
            except Exception as error:
                warnings.warn(
                    f"the snapshot of {id!r} at version {row[0]} cannot be read ({error}); it is dropped, and the"
                    " state rebuilt from its events",
                    SnapshotWarning,
                    stacklevel=2,
                )
                if not self._drop(id, row[0]):
                    return None
                continue
            root.version, root._position = row[0], row[1]
            return root

    def _row(self, id: str, version: int | None, position: int | None) -> tuple[int, int, bytes] | None:
        if not self._made and time.monotonic() < self._looked + _LOOK:
            return None  # there was no table a moment ago: without a snapshot it only takes longer
        with self._log.connect() as db:
            if not self._has_table(db):
                self._looked = time.monotonic()
                return None
            sql = (
                f"select version, position, state from {db.own(TABLE)}"
                " where stream = ? and kind = ? and fingerprint = ?"
            )
            params: list[Any] = [id, self._model.name, self.fingerprint]
            if version is not None:
                sql, params = sql + " and version <= ?", [*params, version]
            if position is not None:
                sql, params = sql + " and position <= ?", [*params, position]
            row = db.execute(sql + " order by version desc limit 1", params).fetchone()
        return None if row is None else (row[0], row[1], bytes(row[2]))

    def _check_whole(self, id: str) -> None:
        """See that the events before a snapshot are there, as they would have to be without it.

        Raises:
            Trimmed: They are not.
        """
        next(self._log.runs(id, until_version=2, trimmed="raise"), None)

    def _has_table(self, db: Database) -> bool:
        if not self._made:
            self._made = db.has_table(TABLE)
        return self._made

    def _drop(self, id: str, version: int) -> bool:
        """Delete one; False when that cannot be done here."""

        def work(db: Database, receipt: Receipt) -> None:
            db.execute(
                f"delete from {db.own(TABLE)} where stream = ? and kind = ? and fingerprint = ? and version = ?",
                (id, self._model.name, self.fingerprint, version),
            )

        if self._log.store.readonly:
            return False
        try:
            self._log.commit(work=work)
        except MillstreamError:
            return False
        return True

    def row(self, root: Root) -> Row | None:
        """What is to be kept of an aggregate as it is; None when its state cannot be."""
        try:
            state = self.privacy.seal(root.id, self._model.codec.dump(root))
        except HoldsErased:
            return None
        except MillstreamError as error:
            self._give_up(f"snapshots of {self._model.name} cannot be sealed: {error}")
            return None
        except NotStorable as error:
            self._give_up(f"states of {self._model.name} cannot be kept as snapshots: {error}")
            return None
        return root.id, root.version, root._position, state

    def save(self, rows: Iterable[Row]) -> None:
        """Keep some; without them everything works, only slower, so that what goes wrong is no error."""
        prints = self.fingerprint
        found = [(stream, self._model.name, prints, *rest) for stream, *rest in rows]
        if not found or not self.made or self._log.store.readonly:
            return

        def work(db: Database, receipt: Receipt) -> None:
            db.ensure_table(TABLE, TABLES[TABLE])
            db.executemany(
                f"insert into {db.own(TABLE)} (stream, kind, fingerprint, version, position, state)"
                " values (?, ?, ?, ?, ?, ?) on conflict do nothing",
                found,
            )

        try:
            self._log.commit(work=work)
            self._made = True
        except (ReadOnlyLog, ReplicaLog, LogMoved, PermissionDenied):
            self._off = True  # it is not for this reader to make them
        except UsageError:
            pass  # inside a transaction of the log, which a snapshot is no part of: a later load makes it
        except (StorageError, TimedOut) as error:
            reason = f"snapshots of {self._model.name} cannot be written: {error}"
            if isinstance(error, DatabaseError):
                self._give_up(reason)
            else:
                warnings.warn(reason, SnapshotWarning, stacklevel=3)

    def _give_up(self, reason: str) -> None:
        with self._mutex:
            told, self._off = self._off, True
        if not told:
            warnings.warn(f"{reason}; states are rebuilt from their events", SnapshotWarning, stacklevel=4)


class Collected:
    """Snapshots that fall due while an aggregate is carried forward, kept until it is there."""

    def __init__(self, snapshots: Snapshots, last: int) -> None:
        self._snapshots = snapshots
        self.last = last
        """The version of the last one."""
        self.saved = 0
        self.whole = True
        """Whether the stream still has what the aggregate was made of."""
        self._rows: list[Row] = []
        self._bytes = 0

    def passed(self, root: Root) -> None:
        """Take one, if it is due."""
        if self._snapshots.due(root.version, self.last):
            self.take(root)

    def take(self, root: Root) -> None:
        """Take one."""
        row = self._snapshots.row(root)
        if row is None:
            return
        self._rows.append(row)
        self.last = root.version
        self._bytes += len(row[3])
        if self._bytes > _BYTES_AT_ONCE:
            self.save()

    def save(self) -> None:
        """Write those that were taken."""
        self._snapshots.save(self._rows)
        self.saved += len(self._rows)
        self._rows, self._bytes = [], 0
