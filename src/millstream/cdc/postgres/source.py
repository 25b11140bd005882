"""A PostgreSQL database as a source: what it must be set to, and the opening of a visit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from ...conversion import ready
from ...errors import CaptureError
from ...storage.postgres.place import parse_url, quote_name
from ..findings import Backlog, Finding
from ..shape import Shape
from ..source import Options, Progress, State
from . import health, slots
from .catalog import Catalog, Connection, SourceTable, connect
from .faults import source_errors
from .reader import PostgresReader
from .replication import Replication, lsn_text, parse_lsn
from .session import PostgresSession


class PostgresSource:
    """A PostgreSQL database, captured by logical replication.

    A capture has a slot and a publication of its own, which it makes, unless they are given.
    """

    def __init__(self, url: str, options: Options) -> None:
        self.place = parse_url(url)
        self.url = self.place.location
        self.options = options

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """A connection for queries."""
        with source_errors(self.url):
            connection = connect(self.place)
            try:
                yield connection
            finally:
                connection.close()

    def identity(self) -> str:
        """The server's own number, and the database's name and number."""
        with self.connected() as connection:
            sql = "select system_identifier::text as id, oid::int8 as number from pg_control_system(), pg_database"
            row = connection.execute(f"{sql} where datname = current_database()").fetchone()
            assert row is not None
            return f"postgresql:{row['id']}:{row['number']}"

    def uninstall(self) -> None:
        """Drop the slots and publications that captures made in this database."""
        with self.connected() as connection:
            sql = "select slot_name from pg_replication_slots where slot_name ~ '^millstream_[0-9a-f]{12}$'"
            for row in connection.execute(f"{sql} and database = current_database()").fetchall():
                slots.drop_slot(connection, row["slot_name"])
            for name in slots.own_publications(connection):
                connection.execute(f"drop publication if exists {quote_name(name)}")

    @contextmanager
    def reader(self) -> Iterator[PostgresReader]:
        """The rows as they are now; see `Source`."""
        with self.connected() as connection:
            connection.execute("begin isolation level repeatable read read only")
            given = self.options.publication
            found = PostgresReader(connection, self.url, [given] if given else slots.own_publications(connection))
            try:
                yield found
            finally:
                found.close()

    def check(self) -> list[Finding]:
        """What in the server's settings, or about its tables, stands in a capture's way."""
        with self.connected() as connection:
            return health.check(connection, self.options.tables, self.options.publication)

    def backlog(self, state: State | None, position: int, seconds: float, room: int | None) -> Backlog | None:
        """What the capture's slot holds back."""
        slot = self.options.slot or (state and state.source.get("slot"))
        if slot is None:
            return None
        with self.connected() as connection:
            return health.backlog(connection, str(slot), seconds, room)

    @contextmanager
    def session(self, position: int, state: State, *, resync: bool) -> Iterator[tuple[PostgresSession, int, State]]:
        """Open it; see `Source`."""
        state = msgspec.convert(msgspec.to_builtins(state), ready(State))
        with self.connected() as connection:
            opening = _Opening(self, connection, state)
            position = opening.open(position, resync=resync)
            session = PostgresSession(self, opening.catalog, opening.about, state, opening.tables, opening.publications)
            try:
                yield session, position, session.state
            finally:
                session.close()


class _Opening:
    """The checks and preparations of a visit."""

    def __init__(self, source: PostgresSource, connection: Connection, state: State) -> None:
        self.source = source
        self.connection = connection
        self.state = state
        self.catalog = Catalog(connection)
        own = f"millstream_{state.slot[:12]}"
        options = source.options
        self.slot = options.slot or str(state.source.get("slot") or own)
        self.own_slot = self.slot == own
        self.publication = options.publication or own
        self.tables: dict[str, SourceTable] = {}
        self.publications: list[str] = []
        self.about: dict[str, Any] = {}

    def open(self, position: int, *, resync: bool) -> int:
        state, location = self.state, self.source.url
        self._check_settings()
        self._find_tables()
        if self.source.options.publication is None:
            self.publications = slots.publish(self.connection, self.publication, list(self.tables.values()))
        else:
            slots.check_publication(self.connection, self.publication, location, self.tables.values())
            self.publications = [self.publication]
        replication = Replication(self.source.place)
        try:
            [system] = replication.command("IDENTIFY_SYSTEM")
            self.about = {"database": system["dbname"], "slot": self.slot}
            found = slots.find_slot(self.connection, self.slot)
            if state.opened and not resync:
                self._check_same(system, position)
                self._check_found(found, position)
            elif found is not None and (resync or self.own_slot):
                # Left over from a first visit that ended before it was in the log; or to be made anew.
                if not self.own_slot and not resync:
                    slots.check_slot(found, location, str(system["dbname"]))
                slots.drop_slot(self.connection, self.slot)
                found = None
            if found is None:
                position = slots.make_slot(replication, self.slot, failover=self.source.options.failover)
                self._read_again()
            elif not state.opened:
                slots.check_slot(found, location, str(system["dbname"]))
                position = parse_lsn(found["confirmed"])
            elif found["active_pid"] is not None:
                slots.end_reader(self.connection, self.slot)
        finally:
            replication.close()
        state.opened = True
        state.source.update(
            slot=self.slot,
            system=system["systemid"],
            timeline=int(system["timeline"] or 0),
            relations={str(table.id): name for name, table in self.tables.items()},
        )
        self._settle_progress()
        return position

    # --- checks -------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        row = self.connection.execute(
            "select current_setting('wal_level') as level, rolreplication or rolsuper as replicates, rolname as role,"
            " current_setting('server_version_num')::int as version,"
            " current_setting('server_encoding') as encoding"
            " from pg_roles where rolname = current_user"
        ).fetchone()
        assert row is not None
        location = self.source.url
        if row["version"] < 140_000:
            raise CaptureError(
                f"{location} is PostgreSQL {row['version'] // 10_000}", hint="Captures need PostgreSQL 14 or later"
            )
        if row["encoding"] == "SQL_ASCII":
            raise CaptureError(
                f"{location} has the encoding SQL_ASCII, so nobody knows what its text says",
                hint="Load it into a database of encoding UTF8, and capture that",
            )
        if row["level"] != "logical":
            raise CaptureError(
                f"{location}: wal_level is {row['level']!r}, and changes are only told at 'logical'",
                hint="ALTER SYSTEM SET wal_level = 'logical'; then restart the server",
            )
        if not row["replicates"]:
            raise CaptureError(
                f"{location}: role {row['role']!r} may not replicate",
                hint=f"ALTER ROLE {quote_name(row['role'])} REPLICATION",
            )

    def _find_tables(self) -> None:
        location = self.source.url
        if self.source.options.tables is None:
            found = [table for table in self.catalog.all_tables() if table.tells_rows or table.identity == "n"]
            if not found:
                raise CaptureError(f"{location} has no table to capture", hint="Make one first, or name it: tables=")
        else:
            found = []
            renamed = {name: int(id) for id, name in self.state.source.get("relations", {}).items()}
            for name in self.source.options.tables:
                table = self.catalog.find(name)
                if table is None and name in renamed and self.catalog.by_id(renamed[name]) is not None:
                    renamed_table = self.catalog.by_id(renamed[name])
                    assert renamed_table is not None
                    table = msgspec.structs.replace(renamed_table, captured=name)
                if table is None:
                    raise CaptureError(
                        f"{location} has no table {name!r}", hint="Check its name; write schema.table outside of public"
                    )
                found.append(table)
                self._check_table(table, name)
                self.tables[name] = table
            return
        for table in found:
            self._check_table(table, table.name)
            self.tables[table.name] = table

    def _check_table(self, table: SourceTable, name: str) -> None:
        location = self.source.url
        if not table.persistent:
            raise CaptureError(
                f"{location}: changes of table {name!r} are not in the server's log, since it is unlogged or temporary",
                hint=f"ALTER TABLE {table.quoted} SET LOGGED",
            )
        if not table.readable:
            raise CaptureError(
                f"{location}: table {name!r} may not be read", hint=f"GRANT SELECT ON {table.quoted} TO CURRENT_USER"
            )
        if not table.tells_rows and table.identity != "n":
            raise CaptureError(
                f"{location}: table {name!r} has no primary key, and PostgreSQL would refuse its updates and deletes"
                " once it is captured",
                hint=f"ALTER TABLE {table.quoted} REPLICA IDENTITY FULL; or … NOTHING, to capture its inserts alone",
            )

    def _check_same(self, system: dict[str, str | None], position: int) -> None:
        location, known = self.source.url, self.state.source
        if known.get("system") not in (None, system["systemid"]):
            raise CaptureError(
                f"{location} is another server than the one that was captured (system {system['systemid']}, not"
                f" {known['system']})",
                hint="Check the address; or run the capture with resync=True, if this server took the other's place",
            )
        here = parse_lsn(system["xlogpos"] or "0/0")
        if position > here:
            raise CaptureError(
                f"{location} ends at {lsn_text(here)}, and the log holds changes up to {lsn_text(position)}: a failover"
                " or a restored backup has lost some that were captured already",
                hint="Run the capture with resync=True, which reads the tables again as they are now",
            )
        timeline = int(system["timeline"] or 0)
        if known.get("timeline") not in (None, timeline):
            switched = self._left_timeline(int(known["timeline"]), timeline)
            if switched is not None and position > switched:
                raise CaptureError(
                    f"{location} was promoted at {lsn_text(switched)}, and the log holds changes up to"
                    f" {lsn_text(position)} of the server before: the failover has lost some of them",
                    hint="Run the capture with resync=True, which reads the tables again as they are now",
                )

    def _left_timeline(self, old: int, new: int) -> int | None:
        """Where the server's history left a timeline."""
        replication = Replication(self.source.place)
        try:
            [row] = replication.command(f"TIMELINE_HISTORY {new}")
        finally:
            replication.close()
        for line in (row["content"] or "").splitlines():
            parts = line.split("\t")
            if len(parts) >= 2 and parts[0].strip() == str(old):
                return parse_lsn(parts[1].strip())
        return None

    def _check_found(self, found: dict[str, Any] | None, position: int) -> None:
        location = self.source.url
        if found is None:
            raise CaptureError(
                f"{location}: slot {self.slot!r} is gone, and with it the changes after {lsn_text(position)}",
                hint=slots.RESYNC,
            )
        slots.check_slot(found, location, str(self.about["database"]))
        confirmed = parse_lsn(found["confirmed"])
        if confirmed > position:
            raise CaptureError(
                f"{location}: slot {self.slot!r} was read by another program up to {lsn_text(confirmed)}, and the log"
                f" holds changes up to {lsn_text(position)}: those between are lost to this capture",
                hint="Give this capture a slot of its own; then run it with resync=True",
            )

    # --- progress -----------------------------------------------------------------------------------------

    def _read_again(self) -> None:
        for progress in self.state.tables.values():
            progress.restart()
        self.state.source.pop("seen", None)

    def _settle_progress(self) -> None:
        state = self.state
        for name, progress in state.tables.items():
            if name not in self.tables:
                progress.restart()  # its changes are not followed now, so it must be read again if it comes back
        known = state.source.get("ids", {})
        for name, table in self.tables.items():
            progress = state.tables.setdefault(name, Progress())
            if known.get(name) not in (None, table.id):
                progress.restart()  # another table of the same name
                state.source.get("shapes", {}).pop(name, None)
            if not progress.done and progress.rows and not progress.cursor:
                progress.restart()
        state.source["ids"] = {name: table.id for name, table in self.tables.items()}

    def shapes(self) -> dict[str, Shape]:
        """The shape that each table's rows had in the log at last."""
        return msgspec.convert(self.state.source.get("shapes", {}), ready(dict[str, Shape]))
