"""The schema of a log in PostgreSQL: numbered migrations, run under a lock."""

from __future__ import annotations

import uuid
from importlib import resources

import psycopg

from ...errors import NewerFormat, NotALog, NotFound, StorageError
from .database import Connection
from .place import Place

_OLDEST_SERVER = 140_000
_LOCK = 1296649293


def migrations() -> list[tuple[int, str]]:
    """The migrations in order: number and SQL."""
    folder = resources.files(__package__).joinpath("migrations")
    found = [
        (int(file.name.split("_")[0]), file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    ]
    return sorted(found)


def version_of(connection: Connection, place: Place) -> int | None:
    """The number of the last migration of the log that is there; None when there is no log.

    Raises:
        NotALog: The schema holds tables of our names that are not a log's.
    """
    # Not by to_regclass: a name that was not there a moment ago is remembered as such.
    found = {
        name
        for (name,) in connection.execute(
            "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname = $1 and c.relname in ('meta', 'runs')",
            (place.schema,),
        )
    }
    if not found:
        return None
    if found == {"meta", "runs"}:
        try:
            row = connection.execute(f"select value from {place.quoted}.meta where key = 'millstream'").fetchone()
        except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedFunction):
            row = None
        if row is not None:
            return int(row[0])
    raise NotALog(place.location)


def check(connection: Connection, place: Place) -> None:
    """Look whether this version can read the log that is there.

    Raises:
        NotFound: There is none.
        NotALog: It is something else.
        NewerFormat: It was made by a newer version.
        StorageError: It needs a migration first, or the server cannot hold a log.
    """
    found = version_of(connection, place)
    if found is None:
        raise NotFound(f"there is no log at {place.location}", hint="Open it for writing to create it")
    latest = migrations()[-1][0]
    if found > latest:
        raise NewerFormat(place.location, found, latest)
    if found < latest:
        raise _older(place, found, latest)


def _older(place: Place, found: int, latest: int) -> StorageError:
    return StorageError(
        f"{place.location} has schema {found}, and this version needs {latest}",
        hint="Open it once for writing, as its owner, to migrate it",
    )


def migrate(connection: Connection, place: Place) -> None:
    """Bring the schema to what this version needs: all of it, or nothing.

    Raises:
        NotALog, NewerFormat, StorageError: As `check` does.
    """
    _check_server(connection, place)
    steps = migrations()
    there = version_of(connection, place)
    if there == steps[-1][0]:
        return
    try:
        _migrate(connection, place, steps)
    except psycopg.errors.InsufficientPrivilege as error:
        if there is None:
            raise
        # No grant would help: what is there belongs to another role.
        raise _older(place, there, steps[-1][0]) from error


def _migrate(connection: Connection, place: Place, steps: list[tuple[int, str]]) -> None:
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock($1, hashtext($2))", (_LOCK, place.schema))
        found = version_of(connection, place) or 0
        if found > steps[-1][0]:
            raise NewerFormat(place.location, found, steps[-1][0])
        if found == 0:
            connection.execute(f"create schema if not exists {place.quoted}")
        for number, sql in steps:
            if number <= found:
                continue
            text = sql.replace("{schema}", place.quoted)
            connection.execute(text)
            connection.execute(
                f"insert into {place.quoted}.meta as m values ('millstream', $1)"
                " on conflict (key) do update set value = excluded.value",
                (str(number),),
            )
        if found == 0:
            connection.execute(
                f"insert into {place.quoted}.meta values ('log_id', $1)",
                (uuid.uuid4().hex,),
            )
            connection.execute(f"revoke all on all functions in schema {place.quoted} from public")


def may_append(connection: Connection, place: Place) -> bool:
    """Whether the role that is connected may append."""
    row = connection.execute(
        "select bool_or(has_function_privilege(p.oid, 'execute')) from pg_proc p"
        " join pg_namespace n on n.oid = p.pronamespace where n.nspname = $1 and p.proname = 'append'",
        (place.schema,),
    ).fetchone()
    return row is not None and bool(row[0])


def _check_server(connection: Connection, place: Place) -> None:
    if connection.info.server_version < _OLDEST_SERVER:
        raise StorageError(
            f"{place.location}: the server is PostgreSQL {connection.info.server_version // 10_000}",
            hint="Use PostgreSQL 14 or later",
        )
    encoding = connection.execute("show server_encoding").fetchone()
    if encoding is None or encoding[0] != "UTF8":
        raise StorageError(
            f"{place.location}: the database's encoding is {encoding and encoding[0]}",
            hint="Create the database with encoding UTF8",
        )
