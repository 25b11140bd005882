"""What the server and its catalogue say: what it is set to, where its log ends, and what columns tables have."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pymysql

from ...errors import CaptureError
from .faults import RESYNC
from .layout import Layout, LayoutColumn
from .place import Connection, Place, connect, query, quote_name, quote_text, value
from .transaction import position_of


class Server(msgspec.Struct, frozen=True):
    """A server.

    Attributes:
        id: Its own, which no other one has.
        with_gtids: It numbers its transactions in a way that other servers of the same history understand.
        lower: Names of tables are the same in capitals.
    """

    mariadb: bool
    version: tuple[int, ...]
    id: str
    with_gtids: bool
    lower: bool


class End(msgspec.Struct, frozen=True):
    """Where the server's log ends."""

    file: str
    offset: int

    @property
    def position(self) -> int:
        """As one number."""
        return position_of(self.file, self.offset)


class Catalog:
    """A connection for questions to the server. Made anew when it is lost."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.connection: Connection = connect(place)
        self.server = self._server()

    def close(self) -> None:
        """End the connection."""
        self.connection._force_close()

    def query(self, statement: str) -> list[dict[str, Any]]:
        """A statement's rows."""
        return query(self.connection, statement)

    def value(self, expression: str) -> str | None:
        """One value; None when the server does not know of it."""
        return value(self.connection, expression)

    def _server(self) -> Server:
        text = self.value("@@version") or ""
        mariadb = "mariadb" in text.lower()
        numbers = tuple(int(n) for n in re.findall(r"\d+", text)[:3])
        id = self.value("@@server_uuid") or self.value("@@server_uid") or f"server {self.value('@@server_id')}"
        with_gtids = mariadb or (self.value("@@gtid_mode") or "OFF") == "ON"
        lower = (self.value("@@lower_case_table_names") or "0") != "0"
        return Server(mariadb, numbers, id, with_gtids, lower)

    # --- the log ------------------------------------------------------------------------------------------

    def end(self) -> End:
        """Where the server's log ends now.

        Raises:
            CaptureError: The server keeps none.
        """
        return end_of(self.connection, self.server, self.place.location)

    def end_with_gtids(self) -> tuple[End, str]:
        """The same, and the transactions up to there; empty where the server has no numbers for them."""
        [row] = self._status()
        end = End(row["file"], int(row["position"]))
        if not self.server.with_gtids:
            return end, ""
        if self.server.mariadb:
            # Not asked for by each look at the end: the server reads its log for it.
            return end, self.value(f"BINLOG_GTID_POS({quote_text(end.file)}, {end.offset})") or ""
        return end, (row.get("executed_gtid_set") or "").replace("\n", "")

    def leaves_out(self) -> bool:
        """Whether the server is set to keep nothing of the database in its log."""
        [row] = self._status()
        database = self.place.database
        only = [name.strip() for name in (row.get("binlog_do_db") or "").split(",") if name.strip()]
        never = [name.strip() for name in (row.get("binlog_ignore_db") or "").split(",")]
        return bool(only and database not in only) or database in never

    def _status(self) -> list[dict[str, Any]]:
        return _status_of(self.connection, self.server, self.place.location)

    def has_file(self, file: str) -> bool:
        """Whether the server still has a file of its log."""
        return position_of(file, 0) >> 32 in self.log_files()

    def log_files(self) -> dict[int, int]:
        """The bytes of each file of the server's log, by its number."""
        rows = self.query("SHOW BINARY LOGS")
        return {position_of(row["log_name"], 0) >> 32: int(row["file_size"]) for row in rows}

    # --- tables -------------------------------------------------------------------------------------------

    def tables(self) -> dict[str, str]:
        """The database's tables, and of what kind each is."""
        rows = self.query(
            "SELECT TABLE_NAME AS name, TABLE_TYPE AS kind FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_SCHEMA ="
            f" {quote_text(self.place.database)} AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY 1"
        )
        return {row["name"]: row["kind"] for row in rows}

    def charset(self) -> str:
        """Of text in the database for which nothing else is said."""
        return self.value("@@character_set_database") or "utf8mb4"

    def table_charset(self, table: str) -> str | None:
        """Of text in a table for which nothing else is said."""
        rows = self.query(
            "SELECT c.CHARACTER_SET_NAME AS charset FROM INFORMATION_SCHEMA.TABLES t JOIN"
            " INFORMATION_SCHEMA.COLLATIONS c ON c.COLLATION_NAME = t.TABLE_COLLATION"
            f" WHERE t.TABLE_SCHEMA = {quote_text(self.place.database)} AND t.TABLE_NAME = {quote_text(table)}"
        )
        return rows[0]["charset"] if rows else None

    def layout(self, table: str) -> Layout | None:
        """A table's columns and key as they are now; None when it is not there, or may not be read.

        What the server's log tells of a statement may come before the catalogue shows its outcome. So the table is
        asked for first, which waits until a statement that changes it is done.
        """
        try:
            self.check_readable(table)
        except pymysql.MySQLError as error:
            if error.args[0] not in (1146, 1142, 1051):  # it is not there, or not to be read
                raise
        where = f"TABLE_SCHEMA = {quote_text(self.place.database)} AND TABLE_NAME = {quote_text(table)}"
        rows = self.query(
            "SELECT COLUMN_NAME AS name, COLUMN_TYPE AS type, CHARACTER_SET_NAME AS charset, IS_NULLABLE AS nullable,"
            " COLUMN_DEFAULT AS preset, EXTRA AS extra FROM INFORMATION_SCHEMA.COLUMNS"
            f" WHERE {where} ORDER BY ORDINAL_POSITION"
        )
        if not rows:
            return None
        columns = tuple(
            LayoutColumn(
                row["name"], row["type"], row["charset"], row["nullable"] == "YES", row["preset"], row["extra"] or ""
            )
            for row in rows
        )
        return Layout(columns, self._key(where, {column.name: column for column in columns}))

    def _key(self, where: str, columns: dict[str, LayoutColumn]) -> tuple[str, ...]:
        rows = self.query(
            "SELECT INDEX_NAME AS name, COLUMN_NAME AS part, SUB_PART AS prefix FROM INFORMATION_SCHEMA.STATISTICS"
            f" WHERE {where} AND NON_UNIQUE = 0 ORDER BY INDEX_NAME <> 'PRIMARY', INDEX_NAME, SEQ_IN_INDEX"
        )
        indexes: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            indexes.setdefault(row["name"], []).append(row)
        for parts in indexes.values():
            if all(
                part["part"] in columns and not columns[part["part"]].nullable and part["prefix"] is None
                for part in parts
            ):
                return tuple(part["part"] for part in parts)
        return ()

    def average_row(self, table: str) -> int:
        """About how many bytes a row has."""
        return self._estimate(table, "AVG_ROW_LENGTH")

    def expected_rows(self, table: str) -> int:
        """About how many rows there are."""
        return self._estimate(table, "TABLE_ROWS")

    def _estimate(self, table: str, what: str) -> int:
        rows = self.query(
            f"SELECT {what} AS found FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_SCHEMA ="
            f" {quote_text(self.place.database)} AND TABLE_NAME = {quote_text(table)}"
        )
        return int(rows[0]["found"] or 0) if rows else 0

    def check_readable(self, table: str) -> None:
        """See that a table's rows may be read.

        Raises:
            pymysql.MySQLError: They may not.
        """
        self.query(f"SELECT 1 FROM {quote_name(self.place.database)}.{quote_name(table)} LIMIT 0")


def end_of(connection: Connection, server: Server, location: str) -> End:
    """Where a server's log ends, by a connection of one's own."""
    [row] = _status_of(connection, server, location)
    return End(row["file"], int(row["position"]))


def _status_of(connection: Connection, server: Server, location: str) -> list[dict[str, Any]]:
    renamed = not server.mariadb and server.version >= (8, 2)
    try:
        rows = query(connection, f"SHOW {'BINARY LOG' if renamed else 'MASTER'} STATUS")
    except pymysql.err.OperationalError as error:
        if error.args[0] != 1227:
            raise
        right = "BINLOG MONITOR" if server.mariadb and server.version >= (10, 5) else "REPLICATION CLIENT"
        raise CaptureError(
            f"{location}: the user may not ask where the server's log ends",
            hint=f"GRANT {right}, REPLICATION SLAVE ON *.* TO the user",
        ) from error
    if not rows:
        raise CaptureError(f"{location} keeps no binary log now", hint="Set log_bin in my.cnf, and restart. " + RESYNC)
    return rows
