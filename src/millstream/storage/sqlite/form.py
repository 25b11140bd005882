"""What makes a SQLite file a log: its tables, and the marks by which it is known."""

from __future__ import annotations

import sqlite3
import uuid
from importlib import resources

from ...errors import NewerFormat, NotALog
from .database import statements

FORMAT = 1
APPLICATION_ID = 0x4D494C4C  # "MILL"


def _is_ours(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("pragma application_id").fetchone()[0] == APPLICATION_ID)


def has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("select 1 from sqlite_master limit 1").fetchone() is not None


def create(connection: sqlite3.Connection) -> None:
    script = resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
    connection.execute("begin immediate")
    try:
        for statement in statements(script):
            connection.execute(statement)
        connection.execute(f"pragma application_id = {APPLICATION_ID}")
        connection.execute(f"pragma user_version = {FORMAT}")
        connection.execute("insert into meta values ('log_id', ?)", (uuid.uuid4().hex,))
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


def check_format(connection: sqlite3.Connection, path: str, *, empty_will_do: bool = False) -> None:
    """Refuse what is not a log, or is one of a later version.

    Args:
        empty_will_do: A database without any table is no fault: it is to become a log.

    Raises:
        NotALog: Another application's database, or no database.
        NewerFormat: Written by a newer version of the library.
    """
    if not _is_ours(connection):
        if empty_will_do and not has_tables(connection):
            return
        # Another process may have made the log between the two looks: once its tables are seen, so is its mark.
        if not _is_ours(connection):
            raise NotALog(path, empty=not has_tables(connection))
    found = connection.execute("pragma user_version").fetchone()[0]
    if found > FORMAT:
        raise NewerFormat(path, found, FORMAT)
