"""A capture: the changes of a database, exactly once into the log.

Each batch of changes goes into the log in one commit together with the capture's checkpoint (the position in the
source) and its state (how far the snapshot is); only then is the source told that it may forget them. A crash
anywhere repeats nothing and loses nothing. The checkpoint is fenced: of two captures of one source, the one that
came last goes on, and the other stops with `ConsumerFenced` before it has written anything.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec

from ..errors import CaptureError, MissingExtra, UsageError
from ..log.checkpoints import Checkpoint, advance, take
from ..storage.base import Encoding, StagedAppend, StagedRun
from ..time import from_micros, now_micros
from .change import Change
from .source import Batch, Options, Piece, Session, Source, State, encode_lines
from .sqlite import SQLiteSource

if TYPE_CHECKING:
    from ..log import Log
    from ..storage.base import Receipt
    from ..storage.database import Database

POLL = 0.01
"""Seconds between two looks at an idle source."""

_STATES = "millstream_captures"

_AHEAD = "millstream_ahead"
"""The numbers of bodies that captures have put ahead, for transactions that are not in the log yet."""

_STREAMS = "millstream_captured"
"""Which capture a stream's changes come from: two tables in one stream could not be told apart."""

TABLES = {
    _STATES: "name text primary key, state text not null",
    _STREAMS: "stream text primary key, capture text not null",
    _AHEAD: "ref bigint primary key, capture text not null",
}
"""The tables that captures keep in the log's database: their columns by their names."""


_sha256 = hashlib.sha256


def capture(
    url: str,
    *,
    tables: Sequence[str] | None = None,
    name: str | None = None,
    prefix: str = "",
    lock_timeout: float = 10.0,
    slot: str | None = None,
    publication: str | None = None,
    heartbeat: float = 10.0,
    slot_limit: int | None = None,
    failover: bool = False,
    outbox: str | None = None,
    chunk_rows: int = 50_000,
) -> Capture:
    """Capture the changes of a database.

    A table's changes go to the stream of its name, ``"users"``, as `Change` events: first its rows as they are
    (operation READ), then every change with the row before and after.

    Args:
        url: ``sqlite:///shop.sqlite`` (relative) or ``sqlite:////data/shop.sqlite`` (absolute).
        tables: The tables to capture; None for all ordinary tables.
        name: Names the capture in the log; by default the source's own id, so that a source is captured once
            in a log, wherever its file lies. Give one to capture one source twice, with other tables.
        prefix: What the streams' names begin with, when several databases have tables of one name.
        lock_timeout: Seconds to wait for a source that another program holds locked.

    Raises:
        UsageError: The URL or the tables cannot be used.

    Example:
        >>> from millstream.cdc import capture
        >>> capture("sqlite:///shop.sqlite", tables=["users"]).stream("users")
        'users'
    """
    if isinstance(tables, str):
        raise UsageError("tables= is one string", hint=f"Give a list: tables=[{tables!r}]")
    chosen = tuple(dict.fromkeys(tables)) if tables is not None else None
    if chosen == ():
        raise UsageError("tables= is empty", hint="Name the tables to capture, or leave it out to capture all")
    options = Options(
        tables=chosen, lock_timeout=lock_timeout, slot=slot, publication=publication, heartbeat=heartbeat,
        slot_limit=slot_limit, failover=failover, outbox=outbox, chunk_rows=chunk_rows,
    )  # fmt: skip
    return Capture(_source(url, options), name=name, prefix=prefix)


def _source(url: str, options: Options) -> Source:
    """The database at a URL, as a source. What a kind of database needs is imported when one of it is captured."""
    match url.partition("://")[0]:
        case "sqlite" if url.startswith("sqlite:///"):
            return SQLiteSource(url, options)
        case "postgresql" | "postgres":
            try:
                from .postgres import PostgresSource
            except ImportError as error:
                raise MissingExtra("postgres", "psycopg") from error
            return PostgresSource(url, options)
        case scheme:
            raise UsageError(
                f"databases of kind {scheme.partition(':')[0]!r} cannot be captured",
                hint="Write postgresql://user@host/shop, or sqlite:///shop.sqlite",
            )


class Capture:
    """Takes the changes of one source into a log; made by `capture`.

    Promises: each committed change of the source is in the log once, in the source's order within its table,
    whatever dies at whatever moment; ``metadata["changes"]`` gives the source's number of each, which orders
    changes across tables. Rows are in the log before the capture removes them from the source.
    """

    def __init__(self, source: Source, *, name: str | None = None, prefix: str = "") -> None:
        self.source = source
        self.prefix = prefix
        self.error: Exception | None = None
        """What ended the background run, when something did."""
        self._name = name
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The name that it was given, or where its source is."""
        return self._name or self.source.url

    def stream(self, table: str) -> str:
        """The stream of a table's changes: its name after the prefix, with characters that no stream name may
        have (control characters, ``*``) written as ``%`` and their UTF-8 bytes in hexadecimal, as in a URL."""
        return self.prefix + stream_of(table)

    def run(self, log: Log, *, resync: bool = False) -> None:
        """Snapshot, then stream, until `stop` is called from another thread.

        Args:
            resync: The source has lost changes (it was restored from a copy, or `uninstall` was called):
                read the tables again from where it is now. Takes over streams of another capture, too.

        Raises:
            CaptureError: The source cannot be captured, or is gone; or a stream holds another capture's changes.
            ConsumerFenced: Another capture of this source into this log has started.
        """
        self._stopping.clear()
        self._run(log, resync=resync, ready=None)

    def catch_up(self, log: Log, *, resync: bool = False) -> int:
        """Take all that is there now, the snapshot included, and return how many events that gave.

        Raises:
            CaptureError, ConsumerFenced: As in `run`.
        """
        worker = _Worker(self, log, resync)
        with worker:
            return worker.drain(None)

    def start(self, log: Log, *, resync: bool = False) -> None:
        """Run in the background. When this returns, the snapshot of each table has begun: what a program does
        to it from now on comes as changes.

        Raises:
            CaptureError: The source cannot be captured.
        """
        if self._thread is not None and self._thread.is_alive():
            raise UsageError("this capture is running already", hint="Stop it first")
        self._stopping.clear()
        self.error = None
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._background, args=(log, resync, ready), name="millstream-capture", daemon=True
        )
        self._thread.start()
        ready.wait()
        if self.error is not None:
            self._thread.join()
            self._thread = None
            raise self.error

    def stop(self) -> None:
        """End a run after the batch at hand.

        Raises:
            CaptureError, ConsumerFenced, StorageError: What had ended a background run before.
        """
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
            if self.error is not None:
                raise self.error

    def uninstall(self) -> None:
        """Remove from the source all that captures made in it: triggers and tables, of all captures.

        What the log holds stays. A later run needs ``resync=True``.
        """
        self.source.uninstall()

    def _background(self, log: Log, resync: bool, ready: threading.Event) -> None:
        try:
            self._run(log, resync=resync, ready=ready)
        except Exception as error:  # whoever calls stop() is told, be it what it may
            self.error = error
        finally:
            ready.set()

    def _run(self, log: Log, *, resync: bool, ready: threading.Event | None) -> None:
        worker = _Worker(self, log, resync)
        with worker:
            worker.drain(self._stopping, ready)
            while not self._stopping.wait(POLL):
                if worker.session.changed():
                    worker.drain(self._stopping)
                else:
                    worker.session.acknowledge(worker.checkpoint.position)


class _Worker:
    """One visit to the source, by one thread."""

    session: Session

    def __init__(self, capture: Capture, log: Log, resync: bool) -> None:
        self.capture = capture
        self.log = log
        self.resync = resync
        self._owned: set[str] = set()
        """The streams that are known to be this capture's."""
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="millstream-capture-commit")

    def __enter__(self) -> None:
        source, log = self.capture.source, self.log
        if log.path and source.url == f"sqlite:///{os.path.abspath(log.path)}":
            raise UsageError("a log cannot capture its own file", hint="Keep the captured tables in another file")
        name = f"capture:{self.capture._name or source.identity()}"
        checkpoint, state = self._take(name)
        self._visit = source.session(checkpoint.position, state, resync=self.resync)
        self.session, position, self.state = self._visit.__enter__()
        try:
            self.checkpoint = checkpoint
            self._commit(Batch([], position, self.state))
        except BaseException:
            self._visit.__exit__(None, None, None)
            raise

    def __exit__(self, *exc: object) -> None:
        self._committer.shutdown()
        self._visit.__exit__(None, None, None)

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
                state = msgspec.json.decode(row["state"], type=State)
            found.append((checkpoint, state))

        self.log.commit(work=work)
        self._drop_orphans(name)
        return found[-1]

    def _drop_orphans(self, name: str) -> None:
        """Remove what a visit has put ahead that died before it was published."""
        with self.log.connect() as db:
            rows = db.query(f"select ref from {db.own(_AHEAD)} where capture = ?", (name,))
        refs = [row["ref"] for row in rows]

        def forget(db: Database) -> None:
            db.execute(f"delete from {db.own(_AHEAD)} where capture = ?", (name,))

        if refs:
            self.log.store.drop_bodies(refs, forget)

    def drain(self, stopping: threading.Event | None, ready: threading.Event | None = None) -> int:
        """Take all there is; how many events that gave. Says ``ready`` when the snapshots have begun.

        While a batch is committed, the next one is read already.
        """
        count = 0
        position, state = self.checkpoint.position, self.state
        under_way: Future[int] | None = None
        try:
            while stopping is None or not stopping.is_set():
                batch = self.session.poll(position, state, whole=stopping is None)
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

    def _commit(self, batch: Batch) -> int:
        """Events, checkpoint and state in one commit; how many events there were."""
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
            for ref in refs:
                db.execute(f"delete from {db.own(_AHEAD)} where ref = ?", (ref,))

        self.log.commit(appends, work=work)
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
    encoding = Encoding.JSON if piece.count == 1 else Encoding.NDJSON
    digest = _sha256(piece.body).digest()
    run = StagedRun(piece.type, schema, piece.count, encoding, piece.body, digest, (), piece.metadata, piece.effective)
    append.runs.append(run)
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


def stream_of(table: str) -> str:
    """A table's name as a stream name; see `Capture.stream`."""
    if table.isprintable() and "*" not in table and "%" not in table:
        return table
    return "".join(
        c if (c.isprintable() or c == " ") and c not in "*%" else "".join(f"%{b:02X}" for b in c.encode())
        for c in table
    )
