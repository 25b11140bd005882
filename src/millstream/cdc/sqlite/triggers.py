"""The triggers that write each change into the change table, inside the writer's own transaction.

How images are kept. The change table has untyped columns ``v0, v1, …``, and a trigger copies each value of a
row into one of them as it is: integers, reals with infinities, text with NULs or bytes that are no UTF-8, and
blobs keep their storage class and their bytes, because no function touches them. (Text forms such as JSON or
``quote()`` lose some of these, cost two to four times as much, and need functions that an old writer may not
have.) What the columns mean stands beside them under a *layout* number, so that rows written before an
``ALTER TABLE`` are read by the shape that they were written in.

What REPLACE hides. ``INSERT OR REPLACE`` and ``UPDATE OR REPLACE`` delete the rows in their way without firing
a DELETE trigger, unless the writer's connection has ``recursive_triggers`` on. So the BEFORE trigger saves the
rows that collide with the new one, and the AFTER trigger writes a DELETE for each saved row that is gone. The
saved rows of an insert that was ignored, or became an upsert's update, are still there afterwards and leave no
change. Every visible update or delete of a saved row keeps its copy true, hence: *a saved row that is gone was
deleted by REPLACE and has not been reported yet*. Between a row's change and its AFTER trigger its foreign keys act,
on rows of the same table too, and their triggers must not take it for gone: so a visible delete drops the row's copy
BEFORE, and an update that moves it hides the copy (its layout is negative) until AFTER.

Order. SQLite fires the trigger created last first. Ours are created last, and again when others come after
them, so that the change of an INSERT stands before those of a user's own AFTER INSERT trigger.
"""

from __future__ import annotations

from .schema import OWN, Table, Term, quote

CHANGES = OWN + "changes"
SAVED = OWN + "saved"
LAYOUTS = OWN + "layouts"
SLOTS = OWN + "slots"
SOURCE = OWN + "source"

STARTED, INSERT, UPDATE, DELETE, RESHAPED = range(5)
"""What a row of the change table says; STARTED and RESHAPED are marks of the capture's own."""

NOW = "julianday('now')"
# The cheapest clock that every SQLite has: milliseconds, constant within a statement, 8 bytes.

TABLES = (
    f"CREATE TABLE IF NOT EXISTS {CHANGES} "
    "(id INTEGER PRIMARY KEY, layout INTEGER NOT NULL, op INTEGER NOT NULL, at REAL NOT NULL)",
    f"CREATE TABLE IF NOT EXISTS {SAVED} (layout INTEGER NOT NULL, rid INTEGER)",
    f"CREATE TABLE IF NOT EXISTS {LAYOUTS} (id INTEGER PRIMARY KEY, name TEXT NOT NULL, shape TEXT NOT NULL)",
    f"CREATE TABLE IF NOT EXISTS {SLOTS} (name TEXT PRIMARY KEY, acknowledged INTEGER NOT NULL, tables TEXT NOT NULL)",
    f"CREATE TABLE IF NOT EXISTS {SOURCE} (id TEXT NOT NULL, format INTEGER NOT NULL)",
)
# Ids come without AUTOINCREMENT, which would write sqlite_sequence for every change: pruning always leaves the
# newest row, so the largest id never goes backwards.


def trigger_names(table: str) -> list[str]:
    """The names of a table's triggers, in the order in which they are created."""
    kinds = (
        "after_delete", "gone_delete", "before_delete", "after_update", "before_move", "before_update", "after_insert",
        "before_insert",
    )  # fmt: skip
    return [f"{OWN}{kind}_{table}" for kind in kinds]


def triggers(table: Table, layout: int) -> dict[str, str]:
    """The statements that create a table's triggers, by trigger name."""
    name, n = quote(table.name), table.width
    new, old = _values(table, "NEW"), _values(table, "OLD")
    saved = ", ".join(f"{SAVED}.v{i}" for i in range(n))

    def change(op: int, values: str, count: int, source: str = "") -> str:
        into = ", ".join(f"v{i}" for i in range(count))
        head = f"INSERT INTO {CHANGES} (layout, op, at, {into})"
        if source:
            return f"{head} SELECT {layout}, {op}, {NOW}, {values} {source}"
        return f"{head} VALUES ({layout}, {op}, {NOW}, {values})"

    def report(which: str) -> list[str]:
        """Say of saved rows that they are deleted, and have them saved no more."""
        return [change(DELETE, saved, n, f"FROM {SAVED} WHERE {which}"), f"DELETE FROM {SAVED} WHERE {which}"]

    mine = f"{SAVED}.layout = {layout}"
    # A trigger may not give the table that it changes another name, so the saved row goes by its full name.
    live = f"EXISTS (SELECT 1 FROM {name} AS t WHERE {_row_of_saved(table)})"
    collisions = [_collision(table, terms) for terms in ((), *table.uniques)]
    collisions = [c for c in collisions if c]
    taken = " OR ".join(f"EXISTS (SELECT 1 FROM {name} AS t WHERE {c})" for c in collisions)
    # Without the rid column a WITHOUT ROWID table's rows are told apart by their key, which stands in v….
    rid = f"t.{table.rowid}" if table.rowid else "NULL"
    columns = ", ".join(f"t.{c}" for c in table.image)
    save = (
        f"INSERT INTO {SAVED} (layout, rid, {', '.join(f'v{i}' for i in range(n))}) "
        f"SELECT {layout}, {rid}, {columns} FROM {name} AS t WHERE ({' OR '.join(f'({c})' for c in collisions)})"
    )
    mine_or_hidden = f"{SAVED}.layout IN ({layout}, {-layout})"
    forget_live = f"DELETE FROM {SAVED} WHERE {mine_or_hidden} AND {live}"
    old_saved, new_saved = _same(table, "OLD"), _same(table, "NEW")
    gone = f"{mine} AND NOT {live}"
    gone_insert = f"{mine} AND ({new_saved} OR NOT {live})"
    gone_update = f"{mine} AND NOT {old_saved} AND ({new_saved} OR NOT {live})"
    refresh = ", ".join(
        [f"rid = NEW.{table.rowid}" if table.rowid else "rid = NULL"]
        + [f"v{i} = NEW.{c}" for i, c in enumerate(table.image)]
    )
    moved = _moved(table)
    bodies = [
        ("AFTER DELETE", "", [change(DELETE, old, n)]),
        # A foreign key may delete the very row that takes the place of the one that it followed.
        ("AFTER DELETE", f"WHEN EXISTS (SELECT 1 FROM {SAVED} WHERE {gone})", report(gone)),
        ("BEFORE DELETE", "", [f"DELETE FROM {SAVED} WHERE {mine_or_hidden} AND {old_saved}"]),
        (
            "AFTER UPDATE",
            "",
            [
                *report(gone_update),
                f"UPDATE {SAVED} SET layout = {layout}, {refresh} WHERE {mine_or_hidden} AND {old_saved}",
                change(UPDATE, f"{old}, {new}", 2 * n),
                *_loops(table, layout),
            ],
        ),
        (
            "BEFORE UPDATE",
            f"WHEN {_rekeyed(table)}",
            [f"UPDATE {SAVED} SET layout = {-layout} WHERE {mine} AND {old_saved}"],
        ),
        (
            "BEFORE UPDATE",
            f"WHEN ({moved}) AND ({taken})",
            [
                forget_live,
                f"{save} AND NOT ({_row_of(table, 'OLD')})",
                *_losses(table, layout, f"EXISTS (SELECT 1 FROM {SAVED} WHERE {mine} AND NOT {old_saved})"),
            ],
        ),
        (
            "AFTER INSERT",
            "",
            [*report(gone_insert), change(INSERT, new, n)],
        ),
        ("BEFORE INSERT", f"WHEN {taken}", [forget_live, save]),
    ]
    return {
        trigger: f"CREATE TRIGGER {quote(trigger)} {event} ON {name} FOR EACH ROW {when} BEGIN "
        + " ".join(statement + ";" for statement in statements)
        + " END"
        for trigger, (event, when, statements) in zip(trigger_names(table.name), bodies, strict=True)
    }


def _loops(table: Table, layout: int) -> list[str]:
    """Start anew when an update leaves a row that refers to its own old key: its own foreign key then updates it a
    second time *before* the AFTER trigger of the first, and the two changes stand in the wrong order."""
    statements = []
    for pairs in table.loops:
        own = " AND ".join(f"NEW.{quote(child)} = OLD.{quote(parent)}" for child, parent in pairs)
        moved = " OR ".join(f"NEW.{quote(parent)} IS NOT OLD.{quote(parent)}" for _, parent in pairs)
        statements.append(_start(layout, f"{own} AND ({moved})"))
    return statements


def _losses(table: Table, layout: int, replaces: str) -> list[str]:
    """Start anew when an update may replace the row that it refers to: the foreign key then updates this row, too."""
    return [
        _start(layout, " AND ".join([*(f"OLD.{quote(child)} IS NOT NULL" for child, _ in pairs), replaces]))
        for pairs in table.losses
    ]


def _start(layout: int, condition: str) -> str:
    return f"INSERT INTO {CHANGES} (layout, op, at) SELECT {layout}, {STARTED}, {NOW} WHERE {condition}"


def _values(table: Table, row: str) -> str:
    return ", ".join(f"{row}.{c}" for c in table.image)


def _slot(table: Table, column: str) -> str:
    return f"{SAVED}.v{table.columns.index(column)}"


def _key_slots(table: Table) -> list[tuple[str, str]]:
    """Of a WITHOUT ROWID table: each key column's value in a saved row, and the key's collation."""
    return [(_slot(table, c), t.collation) for c, t in zip(table.key, table.identity, strict=True)]


def _row_of_saved(table: Table) -> str:
    """The row ``t`` stands where the saved row stood."""
    if table.rowid:
        return f"t.{table.rowid} = {SAVED}.rid"
    pairs = zip(table.identity, _key_slots(table), strict=True)
    return " AND ".join(f"{term.stored} COLLATE {quote(term.collation)} = {slot}" for term, (slot, _) in pairs)


def _same(table: Table, row: str) -> str:
    """The saved row is where OLD was, or NEW is."""
    if table.rowid:
        return f"({SAVED}.rid = {row}.{table.rowid})"
    pairs = zip(table.key, _key_slots(table), strict=True)
    tests = (f"{row}.{quote(c)} COLLATE {quote(collation)} = {slot}" for c, (slot, collation) in pairs)
    return f"({' AND '.join(tests)})"


def _row_of(table: Table, row: str) -> str:
    """The row ``t`` is OLD, or NEW."""
    if table.rowid:
        return f"t.{table.rowid} = {row}.{table.rowid}"
    return " AND ".join(
        f"{t.stored} COLLATE {quote(t.collation)} = {row}.{quote(c)}"
        for c, t in zip(table.key, table.identity, strict=True)
    )


def _collision(table: Table, terms: tuple[Term, ...]) -> str:
    """A row ``t`` is in the way of NEW: by its rowid (no terms), or by a unique index.

    A partial index is taken as a whole one: that saves too many rows, and those are found still there.
    """
    if not terms:
        return f"t.{table.rowid} = NEW.{table.rowid}" if table.rowid else ""
    return " AND ".join(term.equal for term in terms)


def _rekeyed(table: Table) -> str:
    """An update gives the row another address."""
    if table.rowid:
        return f"NEW.{table.rowid} IS NOT OLD.{table.rowid}"
    return " OR ".join(term.changed for term in table.identity)


def _moved(table: Table) -> str:
    """An update gives the row another address or another value in a unique index."""
    tests = [term.changed for terms in table.uniques for term in terms]
    return " OR ".join([_rekeyed(table), *tests] if table.rowid else tests)
