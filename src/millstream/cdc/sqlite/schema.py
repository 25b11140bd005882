"""What a captured SQLite table looks like: columns, keys, and everything that can make two rows collide."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

import msgspec

from ...errors import CaptureError

OWN = "_millstream_"
"""What the names of all tables and triggers begin with that a capture makes in the source."""

MAX_COLUMNS = 990
"""The widest table that can be captured: before and after stand side by side in SQLite's 2,000 columns."""


def quote(name: str) -> str:
    """A name as an SQL identifier, whatever characters it holds."""
    return '"' + name.replace('"', '""') + '"'


class Term(msgspec.Struct, frozen=True):
    """One column of a unique index: what it is in a row of the table and in ``NEW``, and how it compares."""

    stored: str
    new: str
    old: str
    collation: str

    @property
    def equal(self) -> str:
        """The condition under which a row ``t`` has the same value as ``NEW``."""
        return f"{self.stored} COLLATE {quote(self.collation)} = {self.new}"

    @property
    def changed(self) -> str:
        """The condition under which an update gives the row another value."""
        return f"{self.new} COLLATE {quote(self.collation)} IS NOT {self.old}"


class Table(msgspec.Struct, frozen=True):
    """A table of the source.

    Attributes:
        columns: All columns that can be read, generated ones included, in table order.
        generated: Those that SQLite computes and nobody writes.
        key: The primary key's columns, in key order; empty when there is none.
        defaults: The constant default of each column, as SQL text; None when it has none.
        rowid: How a row's rowid is named in SQL; None for a WITHOUT ROWID table.
        stable: Whether a row's address (rowid or key) survives VACUUM.
        uniques: All unique indexes, the primary key's too, but not the rowid's.
        identity: Of a WITHOUT ROWID table: the terms of its key.
        loops: Foreign keys onto the table itself that follow an update: pairs of child and parent column.
        losses: Those that a delete sets to NULL or to a default.
    """

    name: str
    columns: tuple[str, ...]
    generated: tuple[str, ...]
    key: tuple[str, ...]
    defaults: tuple[str | None, ...]
    rowid: str | None
    stable: bool
    uniques: tuple[tuple[Term, ...], ...]
    identity: tuple[Term, ...]
    loops: tuple[tuple[tuple[str, str], ...], ...]
    losses: tuple[tuple[tuple[str, str], ...], ...] = ()

    @property
    def image(self) -> list[str]:
        """What a change keeps of a row, as SQL names: its columns, and without a key its rowid after them."""
        names = [quote(column) for column in self.columns]
        return names if self.key or self.rowid is None else [*names, self.rowid]

    @property
    def width(self) -> int:
        """How many values a row's image has."""
        return len(self.columns) + (not self.key)


def table_names(db: sqlite3.Connection) -> list[str]:
    """The ordinary tables of a source, without SQLite's and our own, by name."""
    rows = db.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"
    )
    return [name for (name,) in rows if not name.startswith((OWN, "sqlite_"))]


def inspect(db: sqlite3.Connection, name: str) -> Table:
    """Look at a table.

    Raises:
        CaptureError: It is not there, or is none that triggers can watch row by row.
    """
    found = db.execute(
        "SELECT name, type, sql FROM sqlite_master WHERE name = ? COLLATE NOCASE AND type IN ('table', 'view')",
        (name,),
    ).fetchone()
    if found is None:
        there = ", ".join(table_names(db)[:10]) or "none"
        raise CaptureError(f"there is no table {name!r} in the source", hint=f"It has these: {there}")
    actual, kind, sql = found
    if actual.startswith((OWN, "sqlite_")):
        raise CaptureError(f"{name!r} is not a table of yours", hint="Capture the tables that you write to")
    if kind == "view" or sql.upper().startswith("CREATE VIRTUAL"):
        raise CaptureError(
            f"{name!r} is a {'view' if kind == 'view' else 'virtual table'}, which SQLite cannot watch",
            hint="Capture the tables beneath it",
        )
    info = [row for row in db.execute("SELECT * FROM pragma_table_xinfo(?)", (actual,)) if row[6] != 1]
    columns = tuple(row[1] for row in info)
    if len(columns) > MAX_COLUMNS:
        raise CaptureError(
            f"table {name!r} has {len(columns)} columns; at most {MAX_COLUMNS} can be captured",
            hint="Split the table, or capture the others",
        )
    key = tuple(row[1] for row in sorted((r for r in info if r[5]), key=lambda r: r[5]))
    indexes = db.execute('SELECT name, "unique", origin FROM pragma_index_list(?)', (actual,)).fetchall()
    pk_index = next((index for index, _, origin in indexes if origin == "pk"), None)
    types = {row[1]: (row[2] or "").upper() for row in info}
    rowid_is_key = len(key) == 1 and types[key[0]] == "INTEGER" and pk_index is None
    rowid = _rowid(db, actual, columns, quote(key[0]) if rowid_is_key else None)
    uniques = tuple(_terms(db, index, columns) for index, unique, _ in indexes if unique)
    identity: tuple[Term, ...] = ()
    if rowid is None:
        assert pk_index is not None
        identity = _terms(db, pk_index, columns)
    return Table(
        name=actual,
        columns=columns,
        generated=tuple(row[1] for row in info if row[6] in (2, 3)),
        key=key,
        defaults=tuple(row[4] for row in info),
        rowid=rowid,
        stable=rowid is None or rowid_is_key,
        uniques=uniques,
        identity=identity,
        loops=_own_keys(db, actual, key, "on_update NOT IN ('NO ACTION', 'RESTRICT')"),
        losses=_own_keys(db, actual, key, "on_delete IN ('SET NULL', 'SET DEFAULT')"),
    )


def _own_keys(
    db: sqlite3.Connection, table: str, key: tuple[str, ...], which: str
) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Foreign keys of a table onto itself."""
    found: dict[int, list[tuple[str, str]]] = {}
    rows = db.execute(
        'SELECT id, seq, "from", "to" FROM pragma_foreign_key_list(?)'
        f' WHERE "table" = ? COLLATE NOCASE AND {which} ORDER BY id, seq',
        (table, table),
    )
    for id, seq, child, parent in rows:
        # Without a named parent column, the key is meant.
        found.setdefault(id, []).append((child, parent if parent is not None else key[seq]))
    return tuple(tuple(pairs) for pairs in found.values())


def _rowid(db: sqlite3.Connection, table: str, columns: tuple[str, ...], alias: str | None) -> str | None:
    """A name for the rowid that no column hides; None when the table has no rowid."""
    taken = {column.lower() for column in columns}
    free = [name for name in ("rowid", "_rowid_", "oid") if name not in taken]
    if not free:
        if alias is None:
            raise CaptureError(
                f"the columns of table {table!r} hide every name of its rowid",
                hint="Rename one of the columns rowid, _rowid_ and oid",
            )
        return alias
    try:
        db.execute(f"SELECT {free[0]} FROM {quote(table)} LIMIT 0")
    except sqlite3.OperationalError as error:
        if "no such column" in str(error):
            return None
        raise
    return free[0]


def _terms(db: sqlite3.Connection, index: str, columns: tuple[str, ...]) -> tuple[Term, ...]:
    rows = db.execute(
        'SELECT seqno, cid, name, coll FROM pragma_index_xinfo(?) WHERE "key" ORDER BY seqno', (index,)
    ).fetchall()
    expressions: list[str] = []
    if any(cid == -2 for _, cid, _, _ in rows):
        (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ?", (index,)).fetchone()
        expressions = list(_indexed(sql))
    terms = []
    for seqno, cid, name, collation in rows:
        if cid == -2:
            terms.append(_expression(columns, expressions[seqno], collation))
        else:
            terms.append(Term(f"t.{quote(name)}", f"NEW.{quote(name)}", f"OLD.{quote(name)}", collation))
    return tuple(terms)


def _expression(columns: tuple[str, ...], expression: str, collation: str) -> Term:
    """An indexed expression. It names columns without their table (SQLite wants it so), hence it can be
    evaluated over any one row; over the table's it stands as it is written, to be looked up in the index."""

    def over(row: str) -> str:
        values = ", ".join(f"{row}.{quote(c)} AS {quote(c)}" for c in columns)
        return f"(SELECT {expression} FROM (SELECT {values}))"

    return Term(f"({expression})", over("NEW"), over("OLD"), collation)


_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]  # strings and quoted names
    | --[^\n]* | /\*.*?\*/ | [(),] | [^'"`\[(),/-]+ | .""",
    re.VERBOSE | re.DOTALL,
)
_ORDER = re.compile(r"\s+(?:ASC|DESC)\s*$", re.IGNORECASE)
_COLLATE = re.compile(r"""\s+COLLATE\s+(?:\w+|"(?:[^"]|"")*"|'[^']*'|`[^`]*`|\[[^\]]*\])\s*$""", re.IGNORECASE)


def _indexed(sql: str) -> Iterator[str]:
    """The indexed expressions of a CREATE INDEX statement."""
    depth, current = 0, ""
    for token in _TOKEN.findall(sql):
        if token.startswith(("--", "/*")):
            current += " "
            continue
        if token == "(":
            depth += 1
            if depth == 1:
                current = ""
                continue
        elif token == ")":
            depth -= 1
        if (depth == 1 and token == ",") or (depth == 0 and token == ")"):
            yield _COLLATE.sub("", _ORDER.sub("", current)).strip()
            current = ""
            if depth == 0:
                return
        else:
            current += token
