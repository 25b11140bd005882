"""A visit to MySQL: the stream and the snapshots, taken together into batches for the log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pymysql

from ...errors import CaptureError, SourceUnavailable
from ...time import from_micros
from ..change import SnapshotCompleted
from ..points import reach
from ..source import Batch, Piece, Progress, State, pieces_of
from .assemble import Assembler
from .catalog import Catalog
from .faults import LOST, RESYNC, fault
from .gtid import Domains, Intervals
from .publish import Publisher, keys_of
from .snapshot import SCHEMA_ERRORS, Page, Reader
from .stream import Stream
from .tables import Tables
from .transaction import Committed, Note, Part, position_of

if TYPE_CHECKING:
    from .source import MySQLSource

STAGE_BYTES = 8 << 20
"""How much of a transaction from a file goes ahead into the log at once."""


class MySQLSession:
    """An open source, used by one thread."""

    def __init__(self, source: MySQLSource, catalog: Catalog, state: State, position: int) -> None:
        self.source = source
        self.catalog = catalog
        self.state = state
        server = catalog.server
        self.reader = Reader(source.place, server, source.options.chunk_rows)
        self.tables = Tables(catalog, self.reader, state, source.options.tables)
        self.publisher = Publisher(server.id, server.mariadb, self.tables.told)
        self.stream: Stream | None = None
        self._file, self._offset = str(state.source["file"]), int(state.source["offset"])
        self._gtids = self._parse(str(state.source.get("gtids") or ""))
        self._position = self.tables.taken = position
        """What was given to be committed."""
        self._given = position
        self._moved_house = position == 0
        """Positions were those of another server."""
        self._moved_at = time.monotonic()
        self._touched: dict[str, list[tuple[int, set[tuple[Any, ...]]]]] = {}
        """By table that is read in chunks: the keys of rows that each transaction changed since."""
        self._stuck: dict[str, tuple[int, Exception]] = {}
        """Tables that could not be read because they were altered, of which the stream will tell before a position."""
        self._publishing: Iterator[Batch] | None = None
        self._notes: list[Note] = []
        """What is to be told before anything of the stream."""
        self.assembler = self._assembler()

    def _parse(self, text: str) -> Domains | Intervals | None:
        server = self.catalog.server
        if not server.with_gtids or (server.mariadb and not text):
            return None
        return Domains.parse(text) if server.mariadb else Intervals.parse(text)

    def _assembler(self) -> Assembler:
        tables, born = self.tables, self.state.source.get("born")
        made = Assembler(
            self._file, self._offset, tables.describe, tables.stated, tables.doubted, tables.noted, self.source.url,
            (born[0], born[1]) if born else None,
        )  # fmt: skip
        self.tables.forget = made.forget
        return made

    # --- the connection -------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin: the tables first, then the stream."""
        self.tables.open()
        self._notes = self.tables.noted()
        if not self._whole():
            self._connect()

    def close(self) -> None:
        """End the visit."""
        stream = self.stream
        if stream is not None:
            with suppress(pymysql.err.MySQLError, OSError):
                # The server itself notices only when it has something to say.
                self.catalog.query(f"KILL {stream.connection.thread_id()}")
        self._disconnect()
        self.reader.close()
        self.catalog.close()

    def _disconnect(self) -> None:
        self.assembler.close()
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()

    def _connect(self) -> Stream:
        self.assembler.close()
        self.assembler = self._assembler()
        self.stream = Stream(self.source.place, self._file, self._offset, self._gtids, self.source.options.server_id)
        self.assembler.read(self.stream)
        while not self.assembler.begun:
            self.stream.ready(0.1)
            self.assembler.read(self.stream)
        return self.stream

    def _renew(self) -> None:
        """The connection for questions, after one was lost."""
        self.catalog.close()
        fresh = Catalog(self.source.place)
        if fresh.server != self.catalog.server:
            fresh.close()
            raise SourceUnavailable(f"{self.source.url} is another server now", hint="The capture goes on by itself")
        self.catalog = self.tables.catalog = fresh

    def changed(self) -> bool:
        """Whether there may be something new."""
        if self.stream is None or self.tables.jobs or self._publishing is not None or self._notes:
            return True
        try:
            return self.stream.ready()
        except LOST:
            return True

    def acknowledge(self, position: int, *, now: bool = False) -> None:
        """Nothing: the server keeps its log by its own rules."""

    def begun(self, state: State) -> bool:
        """Whether the rows of every table are read, or are being read."""
        jobs = self.tables.jobs
        return all(
            progress.begun or (name in jobs and (jobs[name].keyed or jobs[name].position is not None))
            for name, progress in self.state.tables.items()
            if name in self.tables.followed
        )

    # --- a batch ----------------------------------------------------------------------------------------------

    def poll(self, position: int, state: State, *, whole: bool = False) -> Batch | None:
        """What is there now, after a position; see `Source`."""
        deadline = time.monotonic() + self.source.options.lock_timeout
        pause = 0.05
        while True:
            try:
                return self._poll(whole)
            except (pymysql.err.MySQLError, OSError) as error:
                found = fault(error, self.source.url)
                self._disconnect()
                self._publishing = None
                if not isinstance(found, SourceUnavailable) or time.monotonic() + pause > deadline:
                    raise found from error
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
            try:
                self._renew()
            except (pymysql.err.MySQLError, OSError):
                continue  # it is not back yet; the next look says so again

    def _poll(self, whole: bool) -> Batch | None:
        if self._publishing is not None:
            batch = next(self._publishing, None)
            if batch is not None:
                return batch
            self._publishing = None
        if not self.assembler.done:
            self._notes += self.tables.noted()
        if self._notes:
            about, micros = self._about(self._position), time.time_ns() // 1000
            notes, self._notes = self._notes, []
            self._emptied(notes)
            return self._moved([self.publisher.truncation(note.table, micros, about) for note in notes])
        if self._whole():
            return self._whole_page()
        stream = self.stream or self._connect()
        target = self.catalog.end().position if whole else 0
        while True:
            self.assembler.read(stream)
            batch = self._batch(now=whole)
            if batch is not None:
                return batch
            if self._whole():  # a table that must be read again, and whole
                return self._moved()
            page = self._page(0.02 if self.tables.jobs and not whole else 0.0)
            if page is not None:
                return page
            if not whole:
                return None
            if not self.tables.jobs and self.assembler.idle and self.assembler.reached >= target:
                self._reach()
                return self._moved() if self._position != self._given else None
            stream.ready(0.01)

    def _batch(self, *, now: bool) -> Batch | None:
        """What was committed, as far as it is there."""
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
            if self._is_old(tx):
                continue
            self._note(tx)
            if tx.order:
                pieces += self.publisher.pieces(tx)
                self._emptied(tx.order)
            self._take(tx)
        due = time.monotonic() - self._moved_at >= self.source.options.heartbeat
        if due and not pieces:
            self._reach()
        if pieces or (due and self._position != self._given):
            return self._moved(pieces)
        return None

    def _emptied(self, order: Sequence[Part | Note]) -> None:
        """The log says now that rows which it had are gone."""
        for note in order:
            if isinstance(note, Note) and note.layout is None:
                self.state.tables[note.table].again = False

    def _is_old(self, tx: Committed) -> bool:
        """Whether a transaction was before all that is captured.

        MySQL says where its log ends a moment before it counts the last transactions among those that were executed,
        so that some from before the beginning are asked for, and come.
        """
        if tx.position > self._position or self._moved_house:
            self._moved_house = False
            return False
        if tx.position > self.state.source.get("origin", 0) or tx.gtid is None or self._gtids is None:
            raise CaptureError(f"{self.source.url}: the server's log was begun anew", hint=RESYNC)
        self._gtids.add(tx.gtid)
        if tx.spill is not None:
            tx.spill.close()
        return True

    def _take(self, tx: Committed) -> None:
        self._file, self._offset = tx.file, tx.offset
        self._position = self.tables.taken = tx.position
        if tx.gtid is not None:
            if self._gtids is None and self.catalog.server.with_gtids:
                self._gtids = self._parse(tx.gtid)
            elif self._gtids is not None:
                self._gtids.add(tx.gtid)

    def _reach(self) -> None:
        """Count what the stream has passed without a transaction, such as the beginning of another file."""
        made = self.assembler
        position = position_of(made.file, made.offset)
        if made.idle and not made.done and position > self._position:
            self._file, self._offset = made.file, made.offset
            self._position = self.tables.taken = position

    def _moved(self, pieces: list[Piece] | None = None) -> Batch:
        self._moved_at = time.monotonic()
        self._given = self._position
        return Batch(pieces or [], self._position, self._copied())

    def _copied(self) -> State:
        """The state as it is now, to be committed while this one moves on."""
        state = self.state
        state.source.update(
            file=self._file, offset=self._offset, gtids=str(self._gtids or ""), tables=self.tables.saved(),
            born=self.assembler.born,
        )  # fmt: skip
        return msgspec.structs.replace(
            state,
            tables={name: msgspec.structs.replace(progress) for name, progress in state.tables.items()},
            source=dict(state.source),
        )

    def _staged(self, tx: Committed) -> Iterator[Batch]:
        """A transaction from a file: its rows go ahead in short commits, and its headers make them seen in a last
        one."""
        assert tx.spill is not None
        self._note(tx)
        before = self._copied()
        every: list[Piece] = []
        some: list[Piece] = []
        size = 0
        for piece in self.publisher.spilled(tx):
            every.append(piece)
            if piece.type != "Change":
                continue
            some.append(piece)
            size += len(piece.body)
            if size >= STAGE_BYTES:
                yield Batch([], self._given, before, ahead=some)
                some, size = [], 0
        if some:
            yield Batch([], self._given, before, ahead=some)
        tx.spill.close()
        self._emptied(tx.order)
        self._take(tx)
        yield self._moved(every)

    def _note(self, tx: Committed) -> None:
        """Remember what a transaction has changed, for the chunks that have not seen it."""
        for part in tx.order:
            if not isinstance(part, Part):
                continue
            name = part.table.name
            job = self.tables.jobs.get(name)
            if job is None or not job.keyed or part.table.layout.key != job.layout.key:
                continue
            keys = keys_of(part, part.lines)
            for chunk in part.chunks:
                assert tx.spill is not None
                keys |= keys_of(part, tx.spill.read(chunk).split(b"\n"))
            self._touched.setdefault(name, []).append((tx.position, keys))

    # --- snapshots ----------------------------------------------------------------------------------------------

    def _whole(self) -> bool:
        """Whether a table is being read whole, while the stream waits."""
        return any(not job.keyed for job in self.tables.jobs.values()) and not self.assembler.done

    def _whole_page(self) -> Batch | None:
        self._disconnect()  # the server would give up on one that does not listen
        page = self._look(1.0)
        if page is None:
            return self._moved()
        if page.job.keyed:
            # A chunk, which waits for the stream. What is read whole comes after it, so it is read again.
            self.reader.take()
            self.tables.again(page.job)
            return self._moved()
        each = self.tables.followed[page.job.table]
        each.since = page.position
        self.tables.forget()
        reach("in-snapshot")
        return self._give(page, page.rows)

    def _page(self, seconds: float) -> Batch | None:
        """A chunk whose position the stream has passed."""
        if not self.assembler.idle:
            return None
        page = self._look(seconds)
        if page is None or not page.job.keyed or page.position > self.assembler.reached:
            return None
        reach("in-chunk")
        name = page.job.table
        unseen = [(position, keys) for position, keys in self._touched.get(name, []) if position > page.position]
        self._touched[name] = unseen
        rows = page.rows
        if unseen and rows:
            changed = set().union(*(keys for _, keys in unseen))
            key = page.job.layout.key
            rows = [row for row in rows if _key(row, key) not in changed]
        return self._give(page, rows)

    def _look(self, seconds: float) -> Page | None:
        page = self.reader.look(seconds)
        if page is None or page.error is None:
            self._check_stuck()
            return page
        self.reader.take()
        error, name = page.error, page.job.table
        code = error.args[0] if error.args else 0
        if code in SCHEMA_ERRORS:
            self._stuck[name] = (self.catalog.end().position, error)
            if not page.job.keyed:
                self.tables.begin(name)  # the stream waits for it, and so could never tell what happened
        elif isinstance(error, LOST) and isinstance(fault(error, self.source.url), SourceUnavailable):
            time.sleep(0.1)
            self._renew()
            self.tables.again(page.job)
        else:
            raise error
        return None

    def _check_stuck(self) -> None:
        for name, (position, error) in list(self._stuck.items()):
            job = self.tables.jobs.get(name)
            if job is None or self.assembler.reached >= position:
                del self._stuck[name]
                if job is not None and job.failed:
                    raise error

    def _give(self, page: Page, rows: list[bytes]) -> Batch:
        """A page's rows."""
        self.reader.take()
        name, layout = page.job.table, page.job.layout
        progress: Progress = self.state.tables[name]
        about = self._about(page.position)
        pieces = self.publisher.shape(name, layout, page.micros, about)
        progress.rows += len(rows)
        progress.cursor = page.cursor if page.job.keyed else None
        shape = layout.shape
        if rows:
            pieces.append(Piece(name, page.lines(rows), len(rows), shape, "Change", about, page.micros))
        if page.last:
            completed = SnapshotCompleted(
                table=name, columns=list(shape.names), rows=progress.rows, timestamp=from_micros(page.micros)
            )
            [piece] = pieces_of(name, shape, [completed], None, page.micros)
            pieces.append(msgspec.structs.replace(piece, metadata=about))
            progress.done, progress.cursor, progress.again = True, None, False
            self.tables.cancel(name)
            self._touched.pop(name, None)
        return self._moved(pieces)

    def _about(self, position: int) -> bytes:
        prefix, _, number = self._file.rpartition(".")
        file = f"{prefix}.{position >> 32:0{len(number)}d}"
        return self.publisher.snapshot_metadata(file, position & 0xFFFFFFFF)


def _key(row: bytes, key: tuple[str, ...]) -> tuple[Any, ...]:
    found = msgspec.json.decode(row)
    return tuple(found[name] for name in key)


__all__ = ["CaptureError", "MySQLSession"]
