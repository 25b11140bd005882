"""A capture: the changes of a database, exactly once into the log.

Each batch of changes goes into the log in one commit together with the capture's checkpoint (the position in the
source) and its state (how far the snapshot is); only then is the source told that it may forget them. A crash
anywhere repeats nothing and loses nothing. The checkpoint is fenced: of two captures of one source, the one that
came last goes on, and the other stops with `ConsumerFenced` before it has written anything.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from ..errors import CaptureError, MissingExtra, SourceUnavailable, UsageError
from ..log.staging import check_stream
from .filters import Filters, Mask, RowFilter
from .source import Options, Progress, Source
from .sqlite import SQLiteSource
from .worker import Worker, ask_to_read_again

if TYPE_CHECKING:
    from ..log import Log

POLL = 0.01
"""Seconds between two looks at an idle source."""

PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Seconds until a source that has gone away is tried again: at first, and at most."""


def capture(
    url: str | os.PathLike[str],
    *,
    tables: Sequence[str] | None = None,
    name: str | None = None,
    prefix: str = "",
    lock_timeout: float = 10.0,
    slot: str | None = None,
    publication: str | None = None,
    outbox: str | None = None,
    heartbeat: float = 10.0,
    slot_limit: int | None = None,
    drop_slot: bool = False,
    failover: bool = False,
    chunk_rows: int = 50_000,
    server_id: int | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    rows: Mapping[str, RowFilter] | None = None,
    mask: Mapping[str, Mask] | None = None,
    mask_key: bytes | str | None = None,
    subjects: Mapping[str, str] | None = None,
) -> Capture:
    """Capture the changes of a database.

    A table's changes go to the stream of its name, ``"users"``, as `Change` events: first its rows as they are
    (operation READ), then every change with the row before and after.

    Args:
        url: ``postgresql://user@host/shop``, ``mysql://user@host/shop`` (MariaDB, too), ``sqlite:///shop.sqlite``
            (relative) or ``sqlite:////data/shop.sqlite`` (absolute). A `pathlib.Path` is that of a SQLite file.
        tables: The tables to capture; None for all ordinary tables. Outside of PostgreSQL's schema ``public``:
            ``sales.orders``.
        name: Names the capture in the log; by default the source's own id, so that a source is captured once
            in a log, wherever it lies. Give one to capture one source twice, with other tables.
        prefix: What the streams' names begin with, when several databases have tables of one name.
            It is the same each time that this capture is run.
        lock_timeout: Seconds to wait for a source that another program holds locked, or that cannot be reached.
        slot, publication: PostgreSQL: use these, which must be there, instead of making some.
        outbox: PostgreSQL: a table whose inserted rows are events for other streams: its columns ``stream``, ``type``
            and ``data`` (a JSON object) say which.
        heartbeat: PostgreSQL: seconds after which the place that was reached is noted though nothing was captured, so
            that an idle table does not hold back the server's log.
        slot_limit: PostgreSQL: bytes of its log that the server may hold back for this capture; more is a
            `CaptureWarning`.
        drop_slot: When it is more, drop the slot: the server's disk is saved, and the capture needs a resync.
        failover: PostgreSQL 17 and later: the slot is to be kept at standbys, too.
        chunk_rows: PostgreSQL and MySQL: how many rows of a big table are read at once.
        server_id: MySQL: the number by which the server knows the capture among its replicas, as no other one of
            them has; by default another one for each connection.
        columns: By table, the only columns that come into the log. The key's must be among them.
        rows: By table, a function of a row (a dict, values as the source holds them) that says whether it is wanted.
            An update that takes a row out of what is wanted comes as DELETE, one that brings it in as INSERT.
        mask: By ``"table.column"``, what becomes of its values: ``"drop"`` leaves the column out, ``"redact"`` writes
            ``***``, ``"hash"`` an HMAC-SHA256 under ``mask_key``, the same for the same value; ``"personal"``
            encrypts it, until its subject is forgotten (`Log.forget`); or a function of a value. NULL stays NULL.
        mask_key: The secret of the hashes.
        subjects: By table, whose its personal values are, by columns of the row: ``{"users": "customer-{id}"}``.

    Raises:
        UsageError: The URL, the tables or the filters cannot be used.
        MissingExtra: The source needs a package that is not installed.

    Example:
        >>> from millstream.cdc import capture
        >>> capture("sqlite:///shop.sqlite", tables=["users"]).stream("users")
        'users'
    """
    if isinstance(tables, str):
        raise UsageError("tables= is one string", hint=f"Give a list: tables=[{tables!r}]")
    named = list(tables) if isinstance(tables, Iterable) else None
    if tables is not None and (named is None or not all(isinstance(each, str) for each in named)):
        raise UsageError(f"tables={tables!r:.60} is no list of names", hint='Give one: tables=["users"]')
    chosen = tuple(dict.fromkeys(named)) if named is not None else None
    if chosen == ():
        raise UsageError("tables= is empty", hint="Name the tables to capture, or leave it out to capture all")
    if name is not None and not isinstance(name, str):
        raise UsageError(f"name={name!r:.60} is no text", hint='Give one: name="shop"')
    if prefix != "":
        check_stream(prefix)
    options = Options(
        tables=chosen, lock_timeout=lock_timeout, slot=slot, publication=publication, outbox=outbox,
        heartbeat=heartbeat, slot_limit=slot_limit, drop_slot=drop_slot, failover=failover, chunk_rows=chunk_rows,
        server_id=server_id,
    )  # fmt: skip
    filters = Filters(columns, rows, mask, mask_key, chosen, subjects)
    if isinstance(url, os.PathLike):
        url = f"sqlite:///{os.fspath(url)}"
    if not isinstance(url, str):
        raise UsageError(f"{url!r:.80} is no URL of a database", hint=_URLS)
    return Capture(_source(url, options), name=name, prefix=prefix, filters=filters if filters else None)


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
        case "mysql" | "mariadb":
            try:
                from .mysql import MySQLSource
            except ImportError as error:
                raise MissingExtra("mysql", "PyMySQL") from error
            return MySQLSource(url, options)
        case _:
            kind, colon, _ = url.partition(":")  # what follows may hold a password
            other = colon and kind != "sqlite"
            raise UsageError(
                f"databases of kind {kind!r} cannot be captured" if other else f"{url!r:.80} is no URL of a database",
                hint=_URLS,
            )


_URLS = "Write postgresql://user@host/shop, mysql://user@host/shop, or sqlite:///shop.sqlite"


class Capture:
    """Takes the changes of one source into a log; made by `capture`.

    Promises: each committed change of the source is in the log once, in the source's order within its table,
    whatever dies at whatever moment; ``metadata["changes"]`` gives the source's number of each, which orders
    changes across tables. Rows are in the log before the capture removes them from the source.
    """

    def __init__(
        self, source: Source, *, name: str | None = None, prefix: str = "", filters: Filters | None = None
    ) -> None:
        self.source = source
        self.filters = filters
        """What is left out or masked on the way; None: nothing."""
        self.prefix = prefix
        self.error: Exception | None = None
        """What ended the background run, when something did."""
        self.trouble: SourceUnavailable | None = None
        """Why the source cannot be reached at present, as long as that lasts: the run goes on trying."""
        self.given_name = name
        """The name that it was given."""
        self._stopping = threading.Event()
        self.grown = threading.Event()
        """Set when a table was added that the run at hand does not know of."""
        self._worker: Worker | None = None
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The name that it was given, or where its source is."""
        return self.given_name or self.source.url

    def __repr__(self) -> str:
        tables = self.source.options.tables
        return f"<millstream.cdc.Capture of {', '.join(tables) if tables else 'all tables'} in {self.source.url}>"

    @property
    def running(self) -> bool:
        """Whether it runs in the background."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def progress(self) -> dict[str, Progress]:
        """How far the snapshot of each table is, while it runs."""
        worker = self._worker
        return {} if worker is None else dict(worker.state.tables)

    @property
    def checkpoint(self) -> str:
        """The name of its checkpoint in the log.

        Raises:
            CaptureError: It has no name of its own, and its source, which tells it, cannot be reached.
        """
        return f"capture:{self.given_name or self.source.identity()}"

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
            SourceUnavailable: The source cannot be reached now.
        """
        worker = Worker(self, log, resync)
        count = 0
        try:
            worker.take()
            for last in (False, True):
                try:
                    with worker.visit():
                        count += worker.drain(None)
                    break
                except SourceUnavailable:
                    worker.check_fence()
                    if last:
                        raise
            return count
        finally:
            worker.close()

    def snapshot(self, log: Log, table: str) -> None:
        """Read a table again: its rows come as READs once more, after a TRUNCATE, and no other table is touched.
        A running capture does it within seconds, another one when it is run next."""
        ask_to_read_again(log, self.checkpoint, table)

    def add(self, *tables: str) -> None:
        """Capture more tables. A running capture begins with them within seconds, and the others are not read again.
        What is captured when the program starts the next time is for its `capture` to say: name them there, too.

        Raises:
            UsageError: All tables of the source are captured anyway.
            CaptureError: One is not there, or cannot be captured; nothing has changed then.
        """
        source, before = self.source, self.source.options
        if before.tables is None:
            raise UsageError("this capture takes all tables of its source", hint="A new one is taken when it is run")
        known = {finding.about for finding in source.check() if finding.level == "error"}
        source.options = msgspec.structs.replace(before, tables=tuple(dict.fromkeys((*before.tables, *tables))))
        try:
            for finding in source.check():
                if finding.level == "error" and finding.about not in known:
                    raise CaptureError(f"{source.url}: {finding.about}", hint=finding.mend)
        except BaseException:
            source.options = before
            raise
        self.grown.set()

    def start(self, log: Log, *, resync: bool = False) -> None:
        """Run in the background. When this returns, the snapshot of each table has begun: what a program does
        to it from now on comes as changes.

        Raises:
            CaptureError: The source cannot be captured.
        """
        if self.running:
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
        worker = Worker(self, log, resync)
        pause = PAUSE
        try:
            worker.take()
            self._worker = worker
            while not self._stopping.is_set():
                try:
                    with worker.visit():
                        pause = PAUSE
                        self.trouble = None
                        self._follow(worker, ready)
                except SourceUnavailable as error:
                    worker.check_fence()
                    if ready is not None and not ready.is_set():
                        raise  # whoever starts a capture learns that it cannot begin
                    self.trouble = error
                    self._stopping.wait(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            worker.close()

    def _follow(self, worker: Worker, ready: threading.Event | None) -> None:
        """Take what comes, until it is time to stop, or to open the source anew."""
        worker.drain(self._stopping, ready)
        while not self._stopping.wait(POLL):
            if worker.session.changed():
                worker.drain(self._stopping)
            else:
                worker.session.acknowledge(worker.checkpoint.position)
            if worker.asked():
                return


def stream_of(table: str) -> str:
    """A table's name as a stream name; see `Capture.stream`.

    Raises:
        UsageError: That is not the name of a table.
    """
    if not isinstance(table, str) or any("\ud800" <= c <= "\udfff" for c in table):
        raise UsageError(f"{table!r:.60} is not the name of a table", hint="Give it as text")
    if table.isprintable() and "*" not in table and "%" not in table:
        return table
    return "".join(
        c if (c.isprintable() or c == " ") and c not in "*%" else "".join(f"%{b:02X}" for b in c.encode())
        for c in table
    )
