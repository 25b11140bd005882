"""From committed transactions to pieces for the log: a run per table, and what happened to its columns before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ...log.staging import encode_metadata
from ...time import from_micros
from ..change import Change, SchemaChanged
from ..shape import Shape
from ..source import MAX_EVENTS, Piece, encode_lines, pieces_of
from .layout import Layout, default_of
from .transaction import Committed, Note, Part
from .values import quoted


class Publisher:
    """Makes pieces of transactions.

    Args:
        server: Its id.
        told: The shape that each table's rows had in the log at last; kept up to date.
        doubled: Whether a table is wanted at all: rows are gathered before this is known for certain.
    """

    def __init__(self, server: str, mariadb: bool, told: dict[str, Shape]) -> None:
        self.server = server
        self.mariadb = mariadb
        self.told = told
        # The keys of metadata are in order: gtid, position, sequence, source.
        self._tail = b',"source":%b}' % quoted(server)

    def pieces(self, tx: Committed) -> list[Piece]:
        """A transaction that is held in memory."""
        found: list[Piece] = []
        head = self._head(tx)
        for part in tx.order:
            if isinstance(part, Note):
                found += self.note(part, tx)
                continue
            lines = part.lines
            if not lines:
                continue
            table = part.table
            if self.told.get(table.name) is not table.shape:
                found += self.shape(table.name, table.layout, tx.micros, self._about(head, part.ranges[:0]))
            if len(lines) <= MAX_EVENTS:
                found.append(
                    Piece(
                        table.name, b"\n".join(lines), len(lines), table.shape, "Change",
                        self._about(head, part.ranges), tx.micros,
                    )
                )  # fmt: skip
                continue
            for first in range(0, len(lines), MAX_EVENTS):
                some = lines[first : first + MAX_EVENTS]
                about = self._about(head, slice_ranges(part.ranges, first, len(some)))
                found.append(Piece(table.name, b"\n".join(some), len(some), table.shape, "Change", about, tx.micros))
        return found

    def spilled(self, tx: Committed) -> Iterator[Piece]:
        """A transaction whose rows are in a file, piece by piece, each small enough for a short commit."""
        assert tx.spill is not None
        head = self._head(tx)
        for part in tx.order:
            if isinstance(part, Note):
                yield from self.note(part, tx)
                continue
            table = part.table
            yield from self.shape(table.name, table.layout, tx.micros, self._about(head, []))
            if part.lines:
                part.chunks += tx.spill.write(part.lines)
                part.lines = []
            first = 0
            for chunk in part.chunks:
                about = self._about(head, slice_ranges(part.ranges, first, chunk.rows))
                yield Piece(table.name, tx.spill.read(chunk), chunk.rows, table.shape, "Change", about, tx.micros)
                first += chunk.rows

    def _head(self, tx: Committed) -> bytes:
        gtid = b'"%b"' % tx.gtid.encode() if tx.gtid is not None else b"null"
        return b'{"gtid":%b,"position":[%b,%d],"sequence":' % (gtid, quoted(tx.file), tx.offset)

    def _about(self, head: bytes, ranges: list[list[int]]) -> bytes:
        if len(ranges) == 1:
            [(low, high)] = ranges
            return b"%b[[%d,%d]]%b" % (head, low, high, self._tail)
        return b"%b[%b]%b" % (head, b",".join(b"[%d,%d]" % (low, high) for low, high in ranges), self._tail)

    # --- tables -----------------------------------------------------------------------------------------------

    def note(self, note: Note, tx: Committed) -> list[Piece]:
        """What a statement did to a table."""
        about = self._about(self._head(tx), [])
        if note.layout is not None:
            return self.shape(note.table, note.layout, tx.micros, about, note.renamed)
        return [self.truncation(note.table, tx.micros, about)]

    def truncation(self, table: str, micros: int, about: bytes | None) -> Piece:
        """That all rows of a table are gone."""
        change = Change(operation="TRUNCATE", table=table, before=None, after=None, timestamp=from_micros(micros))
        return Piece(table, encode_lines([change]), 1, self.told.get(table), "Change", about, micros)

    def shape(
        self, table: str, layout: Layout, micros: int, about: bytes | None, renamed: dict[str, str] | None = None
    ) -> list[Piece]:
        """What has become of a table's columns since its rows were told last."""
        old, new = self.told.get(table), layout.shape
        self.told[table] = new
        if old is None or old.columns == new.columns:
            return []
        event = _schema_change(table, old, layout, micros, renamed, self.mariadb)
        [piece] = pieces_of(table, new, [event], None, micros)
        return [msgspec.structs.replace(piece, metadata=about)]

    def snapshot_metadata(self, file: str, offset: int) -> bytes:
        """Of rows that a snapshot has found."""
        found = encode_metadata({"position": [file, offset], "snapshot": True, "source": self.server})
        assert found is not None
        return found


def _schema_change(
    table: str, old: Shape, layout: Layout, micros: int, renamed: dict[str, str] | None, mariadb: bool
) -> SchemaChanged:
    new = layout.shape
    was = {column.name: column for column in old.columns}
    now = {column.name: column for column in new.columns}
    renamed = {a: b for a, b in (renamed or {}).items() if a in was and a not in now and b in now and b not in was}
    values: dict[str, Any] = {}
    for column in layout.columns:
        if column.name not in was and column.name not in renamed.values():
            values[column.name] = default_of(column, mariadb)[1]
    retyped = {name: c.type for name, c in now.items() if name in was and was[name].type != c.type}
    retyped |= {b: now[b].type for a, b in renamed.items() if was[a].type != now[b].type}
    return SchemaChanged(
        table=table,
        columns=list(new.names),
        added=values,
        timestamp=from_micros(micros),
        dropped=[name for name in was if name not in now and name not in renamed],
        renamed=renamed,
        retyped=retyped,
    )


def slice_ranges(ranges: list[list[int]], first: int, count: int) -> list[list[int]]:
    """The numbers of some rows of a part, from those of all of its rows."""
    found = []
    for low, high in ranges:
        size = high - low + 1
        if first < size and count > 0:
            start = low + first
            end = min(high, start + count - 1)
            found.append([start, end])
            count -= end - start + 1
            first = 0
        else:
            first -= size
    return found


def keys_of(part: Part, lines: list[bytes]) -> set[tuple[Any, ...]]:
    """The keys of rows that were changed, before and after."""
    key, found = part.table.layout.key, set()
    for line in lines:
        change = msgspec.json.decode(line)
        for row in (change["before"], change["after"]):
            if row is not None:
                found.add(tuple(row[name] for name in key))
    return found
