"""The versions of a read model: which of them answers, which is being built beside it, which it could go back to.

They stand in a table of the projection's home, one row each; to swap is to change two rows in one transaction.
"""

from __future__ import annotations

import hashlib
import sqlite3
from enum import StrEnum
from types import FunctionType
from typing import Any

import msgspec

from ..errors import NotFound
from ..log.handlers import handler_table
from ..marks import mark
from ..storage.database import Database
from ..storage.frames import quoted_column
from ..storage.sqlite.database import statements
from ..storage.sqlite.forks import opened
from .lockstep import tables_in
from .projection import PROJECTIONS, Placement, Projection
from .projection import TABLES as PROJECTION_TABLES

VERSIONS = "millstream_versions"
TABLES = {
    VERSIONS: "name text not null, number bigint not null, fingerprint text not null, place text not null,"
    " state text not null, withdrawn integer not null, tables text not null, primary key (name, number)"
}
"""The table of versions: its columns by its name."""


class VersionState(StrEnum):
    """What a version of a read model is."""

    LIVE = "live"
    BUILDING = "building"
    PREVIOUS = "previous"


class Version(msgspec.Struct, frozen=True):
    """A version of a read model.

    Attributes:
        name: The projection's.
        number: 1 for the first.
        fingerprint: What it was made by: the code and the schema, as a digest.
        place: Where it stands, beside the home; empty for the home itself.
        state: What it is.
        withdrawn: Whether it answered, and was rolled back.
        tables: The tables that its schema made.
    """

    name: str
    number: int
    fingerprint: str
    place: str
    state: VersionState
    withdrawn: bool = False
    tables: tuple[str, ...] = ()


def fingerprint(projection: type[Projection]) -> str:
    """What makes a read model, as a digest: the schema, and the code of the class or what its author says.

    The code counts, not its text, of the class and its bases below `Projection`. What a handler calls outside them is
    beyond it: that is what ``version`` is for, which stands for all code where it is given.
    """
    parts = [projection.schema, *projection._made_of()]
    if projection.version is not None:
        parts.append(f"version {projection.version!r}")
    else:
        for name, handler in sorted(handler_table(projection, batches=True).items()):
            parts.append(f"{name} {handler.event.__qualname__} {handler.method} {handler.batch}")
        for base in projection.__mro__:
            if base is Projection:
                break
            if "_is_base" in vars(base):
                continue
            parts += [f"{name} = {mark(value)}" for name, value in sorted(vars(base).items()) if _counts(name, value)]
    parts += [fingerprint(each) for each in projection.reads]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


_SAID = frozenset({"schema", "name", "version", "on_failure", "reads", "partitions", "partition_by", "_form", "_more"})


def _counts(name: str, value: Any) -> bool:
    if name.startswith("__") and name.endswith("__"):
        return isinstance(value, FunctionType | classmethod | staticmethod | property)
    return name not in _SAID and not name.startswith("_abc_")


def all_of(db: Database, name: str) -> list[Version]:
    """The versions of a projection, the oldest first."""
    if not db.has_table(VERSIONS):
        return []
    rows = db.query(
        f"select name, number, fingerprint, place, state, withdrawn, tables from {db.own(VERSIONS)} where name = ?"
        " order by number",
        (name,),
    )
    return [
        Version(
            **{
                **row,
                "state": VersionState(row["state"]),
                "withdrawn": bool(row["withdrawn"]),
                "tables": tuple(msgspec.json.decode(row["tables"])),
            }
        )
        for row in rows
    ]


def live_of(db: Database, name: str) -> Version | None:
    """The version that answers; None before there is one."""
    return next((each for each in all_of(db, name) if each.state is VersionState.LIVE), None)


def ensure(db: Database, placement: Placement, made_by: str) -> Version:
    """The version that answers, made the first one where there was none. Call inside a transaction."""
    db.ensure_table(VERSIONS, TABLES[VERSIONS])
    live = live_of(db, placement.name)
    if live is None:
        db.make_alone()  # of two processes that begin at once, one makes the first version
        live = live_of(db, placement.name)
    if live is not None:
        return live
    schema = hashlib.sha256(placement.schema.encode()).hexdigest()
    tables = tuple(tables_of(placement.schema, db.dialect))
    db.ensure_table(PROJECTIONS, PROJECTION_TABLES[PROJECTIONS])
    kept = db.one(f"select schema_hash from {db.own(PROJECTIONS)} where name = ?", (placement.name,))
    # Tables from before there were versions are taken for those of this code, if they are of its schema.
    if kept is not None and (kept["schema_hash"] != schema or placement.share is not None):
        made_by, tables = f"schema {kept['schema_hash']}", ()
    live = Version(placement.name, 1, made_by, "", VersionState.LIVE, tables=tables)
    _insert(db, live)
    return live


def adopt(db: Database, version: Version, made_by: str) -> Version:
    """Say that a version is of other code from here on: what it has stays. Call inside a transaction."""
    db.execute(
        f"update {db.own(VERSIONS)} set fingerprint = ? where name = ? and number = ?",
        (made_by, version.name, version.number),
    )
    return msgspec.structs.replace(version, fingerprint=made_by)


def begin(db: Database, version: Version) -> None:
    """Note a version that is to be built. Call inside a transaction."""
    _insert(db, version)


def _insert(db: Database, version: Version) -> None:
    db.execute(
        f"insert into {db.own(VERSIONS)} values (?, ?, ?, ?, ?, ?, ?)",
        (
            version.name,
            version.number,
            version.fingerprint,
            version.place,
            str(version.state),
            int(version.withdrawn),
            msgspec.json.encode(version.tables).decode(),
        ),
    )


def forget(db: Database, version: Version) -> None:
    """Forget a version. Call inside a transaction."""
    db.execute(f"delete from {db.own(VERSIONS)} where name = ? and number = ?", (version.name, version.number))


def swap(db: Database, old: Version, new: Version, *, withdrawn: bool) -> bool:
    """Have another version answer. Call inside a transaction of the home.

    The tables of a version that stand in the home itself get other names while it does not answer: nothing that reads
    them by their names takes what is no longer kept for what is.

    Args:
        withdrawn: Whether the old one is rolled back.

    Returns:
        False when the old one does not answer any more, or the new one is gone.
    """
    states = {each.number: each.state for each in all_of(db, old.name)}
    if states.get(old.number) is not VersionState.LIVE or new.number not in states:
        return False
    change = f"update {db.own(VERSIONS)} set state = ?, withdrawn = ? where name = ? and number = ?"
    db.execute(change, (str(VersionState.PREVIOUS), int(withdrawn), old.name, old.number))
    db.execute(change, (str(VersionState.LIVE), 0, new.name, new.number))
    if not old.place:
        for table in old.tables:
            _rename(db, table, _aside(table))
    elif not new.place:
        for table in new.tables:
            _rename(db, _aside(table), table)
    return True


def drop_aside(db: Database, version: Version) -> None:
    """Drop the tables that a version had in the home itself. Call inside a transaction."""
    for table in version.tables:
        db.execute(f"drop table if exists {quoted_column(_aside(table))}")


def _aside(table: str) -> str:
    return f"{table}__previous"


def _rename(db: Database, table: str, name: str) -> None:
    if db.find_table(table) is not None:
        db.execute(f"alter table {quoted_column(table)} rename to {quoted_column(name)}")


def previous_of(db: Database, name: str) -> Version:
    """The version to go back to.

    Raises:
        NotFound: There is none.
    """
    for each in reversed(all_of(db, name)):
        if each.state is VersionState.PREVIOUS:
            return each
    raise NotFound(f"projection {name!r} has no version to go back to", hint="A version is kept when another is built")


def tables_of(schema: str, dialect: str) -> list[str]:
    """The names of the tables that a schema makes."""
    if dialect != "sqlite":
        return tables_in(schema)
    connection = opened(":memory:", isolation_level=None)
    try:
        for statement in statements(schema):
            connection.execute(statement)
        rows = connection.execute(
            "select name from sqlite_master where type = 'table' and name not like 'sqlite!_%' escape '!'"
        )
        return [name for (name,) in rows]
    except sqlite3.Error:
        return []  # what does not stand alone is told when it is run
    finally:
        connection.close()
