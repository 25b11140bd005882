"""A visit to a source, by one thread: batches go into the log, each in one commit with the checkpoint and the state."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec

from ..conversion import ready
from ..errors import CaptureError, UsageError
from ..log.checkpoints import Checkpoint, advance, take
from ..log.log import check_log
from ..storage.base import Encoding, StagedAppend, StagedRun
from ..time import from_micros, now_micros
from .change import Change
from .points import reach
from .source import Batch, Piece, Session, State, encode_lines

if TYPE_CHECKING:
    from ..log import Log
    from ..storage.base import Receipt
    from ..storage.database import Database
    from .capture import Capture

_STATES = "millstream_captures"

_AHEAD = "millstream_ahead"
"""The numbers of bodies that captures have put ahead, for transactions that are not in the log yet."""

_STREAMS = "millstream_captured"
"""Which capture a stream's changes come from: two tables in one stream could not be told apart."""

_REQUESTS = "millstream_capture_requests"
"""Tables that a capture is asked to read again, by whoever can open the log."""

TABLES = {
    _STATES: "name text primary key, state text not null",
    _STREAMS: "stream text primary key, capture text not null",
    _AHEAD: "ref bigint primary key, capture text not null",
    _REQUESTS: "capture text not null, table_name text not null",
}
"""The tables that captures keep in the log's database: their columns by their names."""

ASK_EVERY = 1.0
"""Seconds between two looks at what a running capture is asked to do."""

_sha256 = hashlib.sha256


class Worker:
    """Takes a source's changes into a log; several visits when the source goes away meanwhile."""

    session: Session

    def __init__(self, capture: Capture, log: Log, resync: bool) -> None:
        check_log(log)
        self.capture = capture
        self.log = log
        self.resync = resync
        self._owned: set[str] = set()
        """The streams that are known to be this capture's."""
        self._visited = False
        self._looked_at = float("-inf")
        self._asked = False
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="millstream-capture-commit")

    def take(self) -> None:
        """Become the holder of the capture's checkpoint: who held it before is fenced.

        Raises:
            CaptureError: The source cannot be reached.
            UsageError: It would go on in other streams than before.
        """
        source, log = self.capture.source, self.log
        if log.path and source.url == f"sqlite:///{os.path.abspath(log.path)}":
            raise UsageError("a log cannot capture its own file", hint="Keep the captured tables in another file")
        self.name = self.capture.checkpoint
        self.checkpoint, self.state = self._take(self.name)

    @contextmanager
    def visit(self) -> Iterator[None]:
        """An open source, from the checkpoint on."""
        self.capture.grown.clear()
        self._asked = False
        asked = self._requests()
        for table in asked & self.state.tables.keys():
            self.state.tables[table].restart()
        resync = self.resync and not self._visited
        if self.capture.filters is not None:
            self.capture.filters.check(self.capture.source)
        opened = self.capture.source.session(self.checkpoint.position, self.state, resync=resync)
        with opened as (self.session, position, state):
            self._commit(Batch([], position, state), asked)
            self._visited = True
            yield

    def close(self) -> None:
        """End the thread that commits."""
        self._committer.shutdown()

    def asked(self) -> bool:
        """Whether the capture is asked to read a table again, or one more: then another visit is due.

        Looks once a second. Not before the tables are read that it has: some would be read from their beginning again.
        """
        if self.capture.grown.is_set():
            return True
        if not self._asked and time.monotonic() - self._looked_at >= ASK_EVERY:
            self._looked_at = time.monotonic()
            self._asked = bool(self._requests())
        return self._asked

    def _wanted(self) -> bool:
        return all(progress.done for progress in self.state.tables.values()) and self.asked()

    def _requests(self) -> set[str]:
        with self.log.connect() as db:
            rows = db.query(f"select table_name from {db.own(_REQUESTS)} where capture = ?", (self.name,))
        return {row["table_name"] for row in rows}

    def check_fence(self) -> None:
        """See that nobody else has taken the capture over.

        Raises:
            ConsumerFenced: Somebody has.
        """
        checkpoint = self.checkpoint

        def work(db: Database, receipt: Receipt) -> None:
            advance(db, checkpoint, checkpoint.position)

        self.log.commit(work=work)

    def _take(self, name: str) -> tuple[Checkpoint, State]:
        """Become the holder of the checkpoint, and read the state that stands beside it."""
        found: list[tuple[Checkpoint, State]] = []

        def work(db: Database, receipt: Receipt) -> None:
            for table, columns in TABLES.items():
                db.ensure_table(table, columns)
            checkpoint = take(db, name)
            row = db.one(f"select state from {db.own(_STATES)} where name = ?", (name,))
            if row is None:
                state = State(slot=uuid4().hex)
                _save(db, name, state)
            else:
                state = msgspec.json.decode(row["state"], type=ready(State))
            self._keep_prefix(state)  # before anybody is fenced
            found.append((checkpoint, state))

        self.log.commit(work=work)
        self._drop_orphans(name)
        return found[-1]

    def _keep_prefix(self, state: State) -> None:
        before, prefix = state.prefix, self.capture.prefix
        begun = any(progress.begun for progress in state.tables.values())
        if before not in (None, prefix) and begun and not self.resync:
            raise UsageError(
                f"this capture has written streams that begin with {before!r}, and would go on with {prefix!r}",
                hint=f"Give it prefix={before!r}; or another name=, or resync=True, and its tables are read anew",
            )
        state.prefix = prefix

    def _drop_orphans(self, name: str) -> None:
        """Remove what a visit has put ahead that died before it was published."""
        with self.log.connect() as db:
            rows = db.query(f"select ref from {db.own(_AHEAD)} where capture = ?", (name,))
        refs = [row["ref"] for row in rows]

        def forget(db: Database) -> None:
            db.execute(f"delete from {db.own(_AHEAD)} where capture = ?", (name,))

        if refs:
            self.log.store.drop_bodies(refs, forget)

    def drain(self, stopping: Event | None, ready: Event | None = None) -> int:
        """Take all there is; how many events that gave. Says ``ready`` when the snapshots have begun.

        While a batch is committed, the next one is read already.
        """
        count = 0
        position, state = self.checkpoint.position, self.state
        under_way: Future[int] | None = None
        try:
            while stopping is None or not (stopping.is_set() or self._wanted()):
                try:
                    batch = self.session.poll(position, state, whole=stopping is None)
                except CaptureError:
                    # Who takes a capture over ends the connection of the one before: that is what should be said
                    # then. But a commit of one's own is no takeover.
                    if under_way is not None:
                        count += self._settle(under_way)
                        under_way = None
                    self.check_fence()
                    raise
                if under_way is not None:
                    count += self._settle(under_way)
                    under_way = None
                if ready is not None and self.session.begun(self.state):
                    ready.set()
                if batch is None:
                    break
                under_way = self._committer.submit(self._commit, batch)
                position, state = batch.position, batch.state
        finally:
            if under_way is not None:
                count += self._settle(under_way)
        self.session.acknowledge(self.checkpoint.position, now=stopping is None)
        return count

    def _settle(self, commit: Future[int]) -> int:
        count = commit.result()
        self.session.acknowledge(self.checkpoint.position)
        reach("after-acknowledge")
        return count

    def _put_ahead(self, pieces: list[Piece]) -> None:
        """Bodies of a transaction too large for one short commit, unseen until its headers come."""
        name = self.checkpoint.name

        def note(db: Database, ref: int) -> None:
            db.execute(f"insert into {db.own(_AHEAD)} (ref, capture) values (?, ?)", (ref, name))

        for piece in pieces:
            piece.digest = _sha256(piece.body).digest()
            run = StagedRun(piece.type, "1", piece.count, Encoding.NDJSON, piece.body, piece.digest)
            piece.ref = self.log.store.put_body(run, note)
            piece.body = b""
            reach("put-ahead")

    def _commit(self, batch: Batch, asked: Set[str] = frozenset()) -> int:
        """Events, checkpoint and state in one commit; how many events there were."""
        if self.capture.filters is not None:
            batch = self.capture.filters.batch(batch, self.log.keys)
        if batch.ahead:
            self._put_ahead(batch.ahead)
            return 0
        own = {self._stream(piece) for piece in batch.pieces if piece.stream is None}
        new = own - self._owned
        taken = self._taken_over(new) if new and self.resync else set()
        appends: list[StagedAppend] = []
        emptied = set(taken)
        for piece in batch.pieces:
            stream = self._stream(piece)
            if not appends or appends[-1].stream != stream:
                appends.append(StagedAppend(stream, []))
            if stream in emptied:
                # What another capture has left there is gone from here on.
                emptied.remove(stream)
                _add(appends[-1], _truncation(piece))
            _add(appends[-1], piece)
        checkpoint = self.checkpoint
        refs = [piece.ref for piece in batch.pieces if piece.ref is not None]

        def work(db: Database, receipt: Receipt) -> None:
            advance(db, checkpoint, batch.position)
            for stream in new:
                self._own(db, stream, stream in taken)
            _save(db, checkpoint.name, batch.state)
            for table in asked:
                db.execute(f"delete from {db.own(_REQUESTS)} where capture = ? and table_name = ?", (self.name, table))
            for ref in refs:
                db.execute(f"delete from {db.own(_AHEAD)} where ref = ?", (ref,))

        reach("before-commit")
        self.log.commit(appends, work=work)
        reach("after-commit")
        self.checkpoint = Checkpoint(checkpoint.name, batch.position, checkpoint.epoch)
        self.state = batch.state
        self._owned |= new
        return sum(append.count for append in appends)

    def _stream(self, piece: Piece) -> str:
        return piece.stream if piece.stream is not None else self.capture.stream(piece.table)

    def _taken_over(self, streams: set[str]) -> set[str]:
        """Those of some streams that are another capture's."""
        with self.log.connect() as db:
            owners = {
                row["stream"]: row["capture"] for row in db.query(f"select stream, capture from {db.own(_STREAMS)}")
            }
        return {stream for stream in streams if owners.get(stream, self.checkpoint.name) != self.checkpoint.name}

    def _own(self, db: Database, stream: str, take: bool) -> None:
        """See that a stream is this capture's, and note it when it is nobody's yet."""
        name = self.checkpoint.name
        conflict = "update set capture = excluded.capture" if take else "nothing"
        table = db.own(_STREAMS)
        db.execute(f"insert into {table} values (?, ?) on conflict (stream) do {conflict}", (stream, name))
        row = db.one(f"select capture from {table} where stream = ?", (stream,))
        if row is not None and row["capture"] != name:
            raise CaptureError(
                f"stream {stream!r} holds the changes of another database or capture ({row['capture']}), and those of"
                f" {self.capture.source.url} would mix with them",
                hint="Give one of the two captures a prefix=, such as prefix='shop/'; or run this one with"
                " resync=True, if it is to take the stream over",
            )


def _add(append: StagedAppend, piece: Piece) -> None:
    schema = piece.shape.text if piece.shape is not None else "1"
    if piece.ref is not None:
        encoding, digest = Encoding.NDJSON, piece.digest
    else:
        encoding = Encoding.JSON if piece.count == 1 else Encoding.NDJSON
        digest = _sha256(piece.body).digest()
    append.runs.append(
        StagedRun(
            piece.type, schema, piece.count, encoding, piece.body, digest, (), piece.metadata, piece.effective, (),
            piece.ref,
        )
    )  # fmt: skip
    append.count += piece.count


def _truncation(piece: Piece) -> Piece:
    """That all rows known before are gone."""
    time = from_micros(piece.effective if piece.effective is not None else now_micros())
    change = Change(operation="TRUNCATE", table=piece.table, before=None, after=None, timestamp=time)
    return Piece(piece.table, encode_lines([change]), 1, piece.shape, metadata=piece.metadata)


def _save(db: Database, name: str, state: State) -> None:
    db.execute(
        f"insert into {db.own(_STATES)} (name, state) values (?, ?)"
        " on conflict (name) do update set state = excluded.state",
        (name, msgspec.json.encode(state).decode()),
    )


def captured_streams(log: Log) -> list[str]:
    """The streams that hold the changes of captured tables, by name."""
    with log.connect() as db:
        if not db.has_table(_STREAMS):
            return []
        return [row["stream"] for row in db.query(f"select stream from {db.own(_STREAMS)} order by stream")]


def captured_tables(log: Log, capture: str) -> list[str]:
    """The tables that a capture takes, as far as it was run, by name."""
    with log.connect() as db:
        row = None
        if db.has_table(_STATES):
            row = db.one(f"select state from {db.own(_STATES)} where name = ?", (capture,))
    return sorted(msgspec.json.decode(row["state"], type=ready(State)).tables) if row is not None else []


def ask_to_read_again(log: Log, capture: str, table: str) -> None:
    """Ask a capture, running or not, to read a table again."""

    def work(db: Database, receipt: Receipt) -> None:
        for name, columns in TABLES.items():
            db.ensure_table(name, columns)
        db.execute(f"insert into {db.own(_REQUESTS)} values (?, ?)", (capture, table))

    log.commit(work=work)
