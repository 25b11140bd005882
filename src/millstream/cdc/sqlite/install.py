"""Making, mending and removing what a capture keeps in a SQLite source."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

import msgspec

from ...conversion import ready
from ...errors import CaptureError
from .schema import OWN, Table, inspect, quote, table_names
from .triggers import (
    CHANGES,
    INSERT,
    LAYOUTS,
    NOW,
    RESHAPED,
    SAVED,
    SLOTS,
    SOURCE,
    STARTED,
    TABLES,
    UPDATE,
    trigger_names,
    triggers,
)

FORMAT = 1


class Layout(msgspec.Struct, frozen=True):
    """What the value columns of a change mean."""

    id: int
    name: str
    """The table's name as its captures give it."""
    table: Table


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """A write transaction."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def installed(db: sqlite3.Connection) -> bool:
    """Whether a capture has set up this source."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (SOURCE,)).fetchone() is not None


def identity(db: sqlite3.Connection) -> str:
    """The source's own id, given at the first visit."""
    if not installed(db):
        with writing(db):
            for statement in TABLES:
                db.execute(statement)
            if db.execute(f"SELECT 1 FROM {SOURCE}").fetchone() is None:
                db.execute(f"INSERT INTO {SOURCE} (id, format) VALUES (?, ?)", (uuid4().hex, FORMAT))
    id, format = db.execute(f"SELECT id, format FROM {SOURCE}").fetchone()
    if format > FORMAT:
        raise CaptureError(
            f"a newer version set up the capture of this source (format {format})", hint="Upgrade millstream"
        )
    return str(id)


def newest(db: sqlite3.Connection) -> int:
    """The id of the last change; 0 when there never was one."""
    return int(db.execute(f"SELECT coalesce(max(id), 0) FROM {CHANGES}").fetchone()[0])


def open_slot(db: sqlite3.Connection, slot: str, tables: Sequence[str]) -> tuple[int, bool]:
    """Hold a place in the changes: nothing after it is pruned until acknowledged. Inside `writing`.

    Returns:
        What is acknowledged, and whether the slot is new.
    """
    names = msgspec.json.encode(list(tables)).decode()
    found = db.execute(f"SELECT acknowledged FROM {SLOTS} WHERE name = ?", (slot,)).fetchone()
    if found is None:
        start = newest(db)
        db.execute(f"INSERT INTO {SLOTS} (name, acknowledged, tables) VALUES (?, ?, ?)", (slot, start, names))
        return start, True
    db.execute(f"UPDATE {SLOTS} SET tables = ? WHERE name = ?", (names, slot))
    return int(found[0]), False


def layouts(db: sqlite3.Connection) -> dict[int, Layout]:
    """All layouts that changes may still be written in."""
    rows = db.execute(f"SELECT id, name, shape FROM {LAYOUTS} ORDER BY id")
    return {id: Layout(id, name, msgspec.json.decode(shape, type=ready(Table))) for id, name, shape in rows}


def refresh(db: sqlite3.Connection, mine: Sequence[str], position: int) -> None:
    """Bring the triggers of all captured tables up to what the tables look like now. Inside `writing`.

    Added columns are followed. Whatever else happened to a table (rebuilt, a column renamed, a new unique index,
    a new trigger that may have run before ours) could have hidden or reordered changes, so the table starts
    anew: a STARTED mark, upon which captures read it again.

    Args:
        mine: The tables that must be there; others' tables are left alone when they are gone.
        position: What the caller has read: later changes may lack a column that was just added.
    """
    wanted = dict.fromkeys(mine)
    for (names,) in db.execute(f"SELECT tables FROM {SLOTS}"):
        wanted.update(dict.fromkeys(msgspec.json.decode(names, type=list[str])))
    latest = {layout.name: layout for layout in layouts(db).values()}
    there = {name.lower() for name in table_names(db)}
    for name in wanted:
        if name in mine or name.lower() in there:
            _refresh(db, name, inspect(db, name), latest.get(name), position)
    kept = {trigger for name in wanted if name in mine or name.lower() in there for trigger in _names(db, name)}
    for trigger in _own_triggers(db):
        if trigger not in kept:
            db.execute(f"DROP TRIGGER {quote(trigger)}")


def _names(db: sqlite3.Connection, name: str) -> list[str]:
    return trigger_names(inspect(db, name).name)


def _own_triggers(db: sqlite3.Connection) -> list[str]:
    rows = db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    return [name for (name,) in rows if name.startswith(OWN)]


def _refresh(db: sqlite3.Connection, name: str, table: Table, old: Layout | None, position: int) -> None:
    intact = old is not None and _intact(db, old)
    if old is not None and intact and old.table == table:
        return
    grown = old is not None and intact and _grown(old.table, table)
    (last,) = db.execute(f"SELECT coalesce(max(id), 0) FROM {LAYOUTS}").fetchone()
    layout = Layout(last + 1, name, table)
    db.execute(
        f"INSERT INTO {LAYOUTS} (id, name, shape) VALUES (?, ?, ?)",
        (layout.id, name, msgspec.json.encode(table).decode()),
    )
    _widen(db, table.width)
    for trigger in trigger_names(table.name):
        db.execute(f"DROP TRIGGER IF EXISTS {quote(trigger)}")
    for statement in triggers(table, layout.id).values():
        db.execute(statement)
    if old is not None:
        db.execute(f"DELETE FROM {SAVED} WHERE abs(layout) = ?", (old.id,))
    if grown and old is not None:
        _mark_reshaped(db, old, layout)
        _heal(db, old, layout, position)
    else:
        db.execute(f"INSERT INTO {CHANGES} (layout, op, at) VALUES (?, {STARTED}, {NOW})", (layout.id,))


def _intact(db: sqlite3.Connection, layout: Layout) -> bool:
    """Whether a layout's triggers are all there, as they were made, and none of the user's is newer."""
    table = layout.table
    stored = {
        name: (rowid, sql)
        for rowid, name, sql in db.execute(
            "SELECT rowid, name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE",
            (table.name,),
        )
    }
    ours = triggers(table, layout.id)
    if any(stored.get(name, (0, ""))[1] != sql for name, sql in ours.items()):
        return False
    first = min(stored[name][0] for name in ours)
    return all(rowid < first for name, (rowid, _) in stored.items() if name not in ours)


def _grown(old: Table, new: Table) -> bool:
    """Whether columns were added, and nothing else happened."""
    n = len(old.columns)

    def rest(table: Table) -> object:
        indexes = [[(term.stored, term.collation) for term in terms] for terms in table.uniques]
        return table.name, table.columns[:n], table.defaults[:n], table.key, table.rowid, indexes

    return rest(old) == rest(new) and set(old.generated) == set(new.generated) & set(old.columns)


def _widen(db: sqlite3.Connection, columns: int) -> None:
    for table, needed in ((CHANGES, 2 * columns), (SAVED, columns)):
        have = {row[0] for row in db.execute("SELECT name FROM pragma_table_info(?)", (table,))}
        for i in range(needed):
            if f"v{i}" not in have:
                db.execute(f"ALTER TABLE {table} ADD COLUMN v{i}")


def _mark_reshaped(db: sqlite3.Connection, old: Layout, new: Layout) -> None:
    """Say in the changes that columns were added: their defaults, and how many columns there were before."""
    known, n = len(old.table.columns), len(new.table.columns)
    into = ", ".join(f"v{i}" for i in range(known, n + 1))
    values = ", ".join(f"({default or 'NULL'})" for default in new.table.defaults[known:])
    db.execute(
        f"INSERT INTO {CHANGES} (layout, op, at, {into}) VALUES (?, {RESHAPED}, {NOW}, {values}, ?)",
        (new.id, known),
    )


def _heal(db: sqlite3.Connection, old: Layout, new: Layout, position: int) -> None:
    """Report what rows hold in added columns that were written before the triggers knew of them.

    Every write to such a row left a change by the old layout, so those rows are known; their present values are
    written as an update. Rows without a primary key, or with a NULL in it, cannot be healed so.
    """
    n, table = len(old.table.columns), new.table
    if not table.key:
        return
    added = range(n, len(table.columns))
    keys = [table.columns.index(column) for column in table.key]
    # The row after an insert stands in the first values, after an update in the second.
    pending = ", ".join(f"CASE op WHEN {INSERT} THEN v{i} ELSE v{n + i} END AS k{i}" for i in keys)
    join = " AND ".join(f"t.{quote(table.columns[i])} = p.k{i}" for i in keys)
    default = [table.defaults[i] or "NULL" for i in range(len(table.columns))]
    differs = " OR ".join(f"t.{quote(table.columns[i])} IS NOT ({default[i]})" for i in added)
    before = [f"t.{quote(c)}" if i < n else f"({default[i]})" for i, c in enumerate(table.columns)]
    after = [f"t.{quote(c)}" for c in table.columns]
    into = ", ".join(f"v{i}" for i in range(2 * len(table.columns)))
    db.execute(
        f"INSERT INTO {CHANGES} (layout, op, at, {into}) "
        f"SELECT {new.id}, {UPDATE}, {NOW}, {', '.join(before + after)} "
        f"FROM (SELECT DISTINCT {pending} FROM {CHANGES} WHERE id > ? AND layout = ? AND op IN ({INSERT}, {UPDATE})) p "
        f"CROSS JOIN {quote(table.name)} AS t ON {join} WHERE {differs}",
        (position, old.id),
    )


def uninstall(db: sqlite3.Connection) -> None:
    """Remove every trigger and table that captures made."""
    with writing(db):
        for trigger in _own_triggers(db):
            db.execute(f"DROP TRIGGER {quote(trigger)}")
        for table in (CHANGES, SAVED, LAYOUTS, SLOTS, SOURCE):
            db.execute(f"DROP TABLE IF EXISTS {table}")
