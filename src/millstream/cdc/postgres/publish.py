"""From committed transactions to pieces for the log: a run per table, and what happened to its columns before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ...conversion import ready
from ...log.staging import encode_metadata
from ...time import from_micros
from ..change import SchemaChanged
from ..shape import Shape
from ..source import MAX_EVENTS, Piece, encode_lines
from .assemble import NO_TIME, Committed, Message, Part, time_text
from .catalog import Catalog
from .relation import Relation
from .types import converter

MESSAGE_PREFIX = "millstream"
"""Logical messages of this prefix go to the stream that they name."""

_sha256 = hashlib.sha256


class Sent(msgspec.Struct):
    """What a row of an outbox, or a logical message, says."""

    stream: str
    type: str
    data: msgspec.Raw


class Publisher:
    """Makes pieces of transactions.

    Args:
        shapes: The shape that each table's rows had in the log at last; kept up to date.
        outbox: The table whose rows are events for the streams that they name.
        read_again: Called with a table whose rows from before a change of columns are not known any more.
    """

    def __init__(
        self,
        catalog: Catalog,
        about: dict[str, Any],
        shapes: dict[str, Shape],
        outbox: str | None,
        read_again: Callable[[str], None],
    ) -> None:
        self.catalog = catalog
        self.shapes = shapes
        self.outbox = outbox
        self.read_again = read_again
        # The keys of metadata are in order: database, lsn, sequence, slot, xid.
        head = encode_metadata({"database": about["database"]}) or b""
        slot = msgspec.json.encode(about["slot"])
        self._metadata = b"%b,%b" % (
            head[:-1].replace(b"%", b"%%"),
            b'"lsn":%%d,"sequence":%%b,"slot":%b,"xid":%%d}' % slot.replace(b"%", b"%%"),
        )

    def pieces(self, tx: Committed, wanted: Callable[[str, int], bool]) -> list[Piece]:
        """A transaction that is held in memory.

        Args:
            wanted: Whether the changes that a transaction made to a table belong into the log.
        """
        found: list[Piece] = []
        for part in tx.parts:
            if not self._begin(part, tx, wanted, found):
                continue
            lines = part.lines
            if tx.gone and part.subs:
                lines = _kept(part, tx.gone)
            if len(lines) <= MAX_EVENTS:
                if lines:
                    found.append(self._piece(part, tx, b"\n".join(lines), len(lines), part.ranges))
                continue
            for first in range(0, len(lines), MAX_EVENTS):
                some = lines[first : first + MAX_EVENTS]
                ranges = _slice(part.ranges, first, len(some))
                found.append(self._piece(part, tx, b"\n".join(some), len(some), ranges))
        found += self._messages(tx)
        return found

    def spilled(self, tx: Committed, wanted: Callable[[str, int], bool]) -> Iterator[Piece]:
        """A transaction whose rows are in a file, piece by piece, each small enough for a short commit."""
        assert tx.spill is not None
        time = time_text(tx.micros)
        for part in tx.parts:
            before: list[Piece] = []
            if not self._begin(part, tx, wanted, before):
                continue
            yield from before
            if part.lines:
                part.chunks += tx.spill.write(part.lines, part.subs)
                part.lines = []
            first = 0
            for chunk in part.chunks:
                if chunk.sub not in tx.gone:
                    body = tx.spill.read(chunk).replace(NO_TIME, time)
                    yield self._piece(part, tx, body, chunk.rows, _slice(part.ranges, first, chunk.rows))
                first += chunk.rows
        yield from self._messages(tx)

    def _begin(self, part: Part, tx: Committed, wanted: Callable[[str, int], bool], found: list[Piece]) -> bool:
        """Whether a part belongs into the log as changes; says before what has become of its columns."""
        relation = part.relation
        if relation.table == self.outbox:
            found += self._outbox(part, tx)
            return False
        if not wanted(relation.table, tx.xid):
            return False
        found += self.reshaped(relation, self._about(tx, []), tx.micros)
        return True

    def reshaped(self, relation: Relation, about: bytes | None, micros: int) -> list[Piece]:
        """What has become of a table's columns, if its rows have another shape from here on."""
        known = self.shapes.get(relation.table)
        self.shapes[relation.table] = relation.shape
        if known is None or known.columns == relation.shape.columns:
            return []
        event = self._schema_change(relation, known, micros)
        lines = encode_lines([event])
        return [Piece(relation.table, lines, 1, relation.shape, "SchemaChanged", about, micros)]

    def _piece(self, part: Part, tx: Committed, body: bytes, count: int, ranges: list[list[int]]) -> Piece:
        if tx.parts and NO_TIME[:1] in body:
            body = body.replace(NO_TIME, time_text(tx.micros))
        return Piece(
            part.relation.table, body, count, part.relation.shape, "Change", self._about(tx, ranges), tx.micros
        )

    def _about(self, tx: Committed, ranges: list[list[int]]) -> bytes:
        if len(ranges) == 1:
            sequence = b"[[%d,%d]]" % tuple(ranges[0])
        else:
            sequence = b"[%b]" % b",".join(b"[%d,%d]" % (first, last) for first, last in ranges)
        return self._metadata % (tx.lsn, sequence, tx.xid)

    # --- columns ------------------------------------------------------------------------------------------

    def _schema_change(self, relation: Relation, old: Shape, micros: int) -> SchemaChanged:
        new = relation.shape
        was = {column.name: column for column in old.columns}
        now = {column.name: column for column in new.columns}
        added = [name for name in now if name not in was]
        dropped = [name for name in was if name not in now]
        renamed = _renamed(old, new)
        added = [name for name in added if name not in renamed.values()]
        dropped = [name for name in dropped if name not in renamed]
        retyped = {name: column.type for name, column in now.items() if name in was and was[name].type != column.type}
        values: dict[str, Any] = dict.fromkeys(added)
        known = {row["name"]: row for row in self.catalog.columns(relation.id)}
        again = bool(retyped)
        for name in added:
            row = known.get(name)
            if row is not None and row["has_missing"] and row["missing"] is not None:
                values[name] = msgspec.json.decode(converter(now[name].kind)(row["missing"].encode()))
            elif row is not None and (row["has_default"] or row["required"]):
                again = True  # each row got a value of its own, which only the table itself can tell
        if again:
            self.read_again(relation.table)
        return SchemaChanged(
            table=relation.table,
            columns=list(new.names),
            added=values,
            timestamp=from_micros(micros),
            dropped=dropped,
            renamed=renamed,
            retyped=retyped,
        )

    # --- what names its stream ------------------------------------------------------------------------------

    def _outbox(self, part: Part, tx: Committed) -> list[Piece]:
        lines = part.lines if not part.chunks else []
        if part.chunks:
            assert tx.spill is not None
            for chunk in part.chunks:
                lines += tx.spill.read(chunk).split(b"\n")
        found = []
        for line in lines:
            change = msgspec.json.decode(line)
            row = change["after"]
            if change["operation"] != "INSERT" or row is None:
                continue
            sent = _sent_by_row(row)
            if sent is not None:
                found.append(self._sent(sent, tx))
        return found

    def _messages(self, tx: Committed) -> list[Piece]:
        found = []
        for message in tx.messages:
            if message.sub in tx.gone or message.prefix != MESSAGE_PREFIX:
                continue
            found.append(self._sent(_sent_by_message(message), tx))
        return found

    def _sent(self, sent: Sent, tx: Committed) -> Piece:
        return Piece("", bytes(sent.data), 1, None, sent.type, self._about(tx, []), tx.micros, stream=sent.stream)


def _sent_by_row(row: dict[str, Any]) -> Sent | None:
    data = row.get("data")
    if not isinstance(data, str) or not row.get("stream") or not row.get("type"):
        return None
    return _checked(str(row["stream"]), str(row["type"]), data.encode())


def _sent_by_message(message: Message) -> Sent:
    try:
        sent = msgspec.json.decode(message.content, type=ready(Sent))
        checked = _checked(sent.stream, sent.type, bytes(sent.data))
    except (msgspec.DecodeError, UnicodeDecodeError):
        checked = None
    if checked is not None:
        return checked
    text = message.content.decode(errors="replace")
    return Sent("messages", "UndeliveredMessage", msgspec.Raw(msgspec.json.encode({"content": text})))


def _checked(stream: str, type: str, data: bytes) -> Sent | None:
    """What was sent, if it can be an event: its data a JSON object, its names usable."""
    from ...errors import InvalidEvent, InvalidStreamName
    from ...log.staging import check_label, check_stream

    try:
        check_stream(stream)
        check_label(type, "type name")
        value = msgspec.json.decode(data)
    except (InvalidEvent, InvalidStreamName, msgspec.DecodeError):
        return None
    return Sent(stream, type, msgspec.Raw(msgspec.json.encode(value))) if isinstance(value, dict) else None


# --- parts -----------------------------------------------------------------------------------------------------


def _renamed(old: Shape, new: Shape) -> dict[str, str]:
    """Columns that have another name at the same place, of the same type, when nothing else was changed."""
    if len(old.columns) != len(new.columns):
        return {}
    pairs = [(a, b) for a, b in zip(old.columns, new.columns, strict=True) if a.name != b.name]
    gone = {a.name for a, _ in pairs} - set(new.names)
    if any(a.type != b.type or a.name not in gone for a, b in pairs):
        return {}
    return {a.name: b.name for a, b in pairs}


def _kept(part: Part, gone: set[int]) -> list[bytes]:
    """The rows of subtransactions that were not rolled back."""
    kept: list[bytes] = []
    ends = [start for start, _ in part.subs[1:]] + [len(part.lines)]
    for (start, sub), end in zip(part.subs, ends, strict=True):
        if sub not in gone:
            kept += part.lines[start:end]
    return kept


def _slice(ranges: list[list[int]], first: int, count: int) -> list[list[int]]:
    """The numbers of some rows of a part, from those of all of its rows."""
    found = []
    for low, high in ranges:
        size = high - low + 1
        if first < size and count > 0:
            start = low + max(first, 0)
            end = min(high, start + count - 1)
            found.append([start, end])
            count -= end - start + 1
            first = 0
        else:
            first -= size
    return found
