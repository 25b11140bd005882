"""The rows that are there, brought into the log beside the stream, and what of the stream they show already."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from ...conversion import ready
from ...errors import CaptureError
from ...log.staging import encode_metadata
from ...time import from_micros
from ..change import Change, SnapshotCompleted
from ..points import reach
from ..source import Piece, Progress, State, pieces_of
from .assemble import NO_TIME, Committed
from .catalog import Catalog, SourceTable
from .publish import Publisher
from .snapshot import WHOLE_BYTES, Chunks, Page, WholeTables
from .visibility import Visibility

if TYPE_CHECKING:
    from .source import PostgresSource


class Backfill:
    """The snapshots of a visit's tables; see `millstream.cdc.postgres.snapshot` for the two ways of taking them.

    Args:
        state: The visit's state, whose tables' progress is kept here.
    """

    def __init__(
        self,
        source: PostgresSource,
        about: dict[str, Any],
        state: State,
        tables: dict[str, SourceTable],
        publications: list[str],
        publisher: Publisher,
    ) -> None:
        self.source = source
        self.about = about
        self.state = state
        self.tables = tables
        self.publications = publications
        self.publisher = publisher
        self.whole: WholeTables | None = None
        """The tables that are being read whole, while the stream waits."""
        self.chunks: dict[str, Chunks] = {}
        """By table: its chunks, while the stream goes on."""
        self._touched: dict[str, list[tuple[int, list[bytes] | None]]] = {}
        """By table that is read in chunks: the rows that each transaction changed since; None for too many to keep."""
        self._recent: dict[int, None] = {}
        """The last transactions that were taken."""
        self._seen: list[tuple[Visibility, frozenset[str]]] = [
            (msgspec.convert(each[0], ready(Visibility)), frozenset(each[1])) for each in state.source.get("seen", [])
        ]
        """What whole tables showed already, while the stream may still tell of it."""
        self._again: set[str] = set()

    @property
    def under_way(self) -> bool:
        """Whether rows are being read."""
        return self.whole is not None or bool(self.chunks)

    def begun(self, state: State) -> bool:
        """Whether a row of every captured table was read, or is being read."""
        return self.whole is not None or all(state.tables[name].begun or name in self.chunks for name in self.tables)

    @property
    def waits(self) -> bool:
        """Whether a chunk is in hand, and waits for the stream."""
        return any(chunks.look() is not None for chunks in self.chunks.values())

    def close(self) -> None:
        """End all reading, wherever it is. What is not in the log yet is read again."""
        if self.whole is not None:
            self.whole.close()
            self.whole = None
            for name in self.tables:
                progress = self.state.tables[name]
                if not progress.done and progress.cursor is None:
                    progress.restart()
        for chunks in self.chunks.values():
            chunks.close()
        self.chunks.clear()
        self._touched.clear()

    def passed(self, reached: int) -> None:
        """The stream has come so far: what it was behind is of no more use."""
        if self._seen:
            self._seen = [each for each in self._seen if each[0].high > reached]
        self.state.source["seen"] = [(msgspec.to_builtins(seen), sorted(names)) for seen, names in self._seen]

    def wanted(self, table: str, xid: int) -> bool:
        """Whether what a transaction did to a table belongs into the log: not if a whole table has shown it already.

        (A table's snapshot has always begun: that comes before the stream is looked at.)
        """
        return not any(table in names and seen.sees(xid) for seen, names in self._seen)

    def note(self, tx: Committed) -> None:
        """Remember what a transaction has changed, for the snapshots that may not have seen it."""
        self._recent[tx.xid] = None
        if len(self._recent) > 10_000:
            del self._recent[next(iter(self._recent))]
        for part in tx.parts:
            touched = self._touched.get(part.relation.table)
            if touched is not None:
                touched.append((tx.xid, part.lines if tx.spill is None else None))

    def read_again(self, table: str) -> None:
        """A table's old rows are not what the log says they are."""
        progress = self.state.tables[table]
        progress.done, progress.cursor, progress.rows = False, None, 0
        progress.again = not self.tables[table].keyed
        self._again.add(table)

    def begin(self, catalog: Catalog) -> None:
        """Begin to read the tables whose rows are not in the log."""
        outbox = self.source.options.outbox
        if outbox in self.tables:
            self.state.tables[outbox].done = True  # what was in it before is not told again
        left = [name for name in self.tables if not self.state.tables[name].done]
        whole = []
        for name in left:
            table, progress = self.tables[name], self.state.tables[name]
            progress.expected = table.rows
            if (table.size > WHOLE_BYTES or progress.cursor or name in self._again) and catalog.key(table.id):
                self._begin_chunks(name, progress.cursor)
            else:
                whole.append(table)
        if whole:
            self._begin_whole(whole)

    def _begin_chunks(self, name: str, cursor: list[Any] | None) -> None:
        self._touched.setdefault(name, [])
        self.chunks[name] = Chunks(
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
        self.whole = found
        found.start()

    def whole_page(self, seconds: float) -> list[Piece]:
        """The next rows of the tables that are read whole, if they come within a time."""
        whole = self.whole
        assert whole is not None
        page = whole.next(seconds)
        if page is None:
            return []
        reach("in-snapshot")
        progress = self.state.tables[page.table]
        pieces = self._page(page, progress)
        if page.last:
            progress.done, progress.cursor, progress.again = True, None, False
        if not whole.waiting_for:
            whole.close()
            self.whole = None
        return pieces

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

    def chunk(self, reached: int) -> list[Piece]:
        """The rows of a chunk whose high watermark the stream has passed.

        Args:
            reached: How far all of the stream was taken.
        """
        for name, chunks in self.chunks.items():
            page = chunks.look()
            if page is None or page.visibility.high > reached:
                continue
            touched = self._touched[name]
            unseen = [(xid, lines) for xid, lines in touched if not page.visibility.sees(xid)]
            self._touched[name] = unseen
            progress = self.state.tables[name]
            if any(lines is None for _, lines in unseen) or self._is_of_old_shape(page):
                # A large transaction, whose rows are not kept here, or a change of columns, has come between: read the
                # chunk again, so that it shows it.
                chunks.close()
                self._begin_chunks(name, progress.cursor)
                return []
            chunks.take()
            reach("in-chunk")
            kept = _without(page, [line for _, lines in unseen for line in lines or ()])
            progress.cursor = chunks.cursor
            pieces = self._page(kept, progress)
            if page.last:
                progress.done, progress.cursor = True, None
                chunks.close()
                del self.chunks[name], self._touched[name]
                self._again.discard(name)
            return pieces
        return []

    def _is_of_old_shape(self, page: Page) -> bool:
        """Whether the stream has told of other columns since a page was read."""
        relation = page.relation
        if relation is None or self.publisher.shapes.get(page.table, relation.shape).columns == relation.shape.columns:
            return False
        now = self.publisher.catalog.relation_of(self.tables[page.table], self.publications)
        return now.shape.columns != relation.shape.columns


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
