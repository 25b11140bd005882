"""The slot and the publication of a capture: made, checked, and removed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...errors import CaptureError
from ...storage.postgres.place import quote_name
from .catalog import Connection, SourceTable
from .replication import Replication, parse_lsn

RESYNC = "Run the capture with resync=True, which makes a new slot and reads the tables again"

_SLOT = """
select slot_name, plugin, database, active, active_pid, wal_status, confirmed_flush_lsn::text as confirmed,
       restart_lsn::text as restart, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8 as retained,
       to_jsonb(s) ->> 'invalidation_reason' as reason
from pg_replication_slots s where slot_name = $1
"""

INSERTS = "_inserts"
"""Ends the name of the publication of tables that say of themselves that no update can be told (NOTHING)."""


def find_slot(connection: Connection, name: str) -> dict[str, Any] | None:
    """What the server says of a slot; None when there is none."""
    return connection.execute(_SLOT, (name,)).fetchone()


def check_slot(slot: dict[str, Any], location: str, database: str) -> None:
    """See that a slot can be read.

    Raises:
        CaptureError: It is of another kind or database, or the server has given it up.
    """
    name = slot["slot_name"]
    if slot["plugin"] != "pgoutput":
        raise CaptureError(
            f"{location}: slot {name!r} is not one of pgoutput ({slot['plugin'] or 'physical'})",
            hint="Give another name: slot=, or leave it out to have one made",
        )
    if slot["database"] != database:
        raise CaptureError(
            f"{location}: slot {name!r} belongs to database {slot['database']!r}", hint="Give another name: slot="
        )
    if slot["wal_status"] == "lost" or slot["reason"]:
        why = slot["reason"] or "its log was removed, since the slot was further behind than max_slot_wal_keep_size"
        raise CaptureError(f"{location}: slot {name!r} was invalidated ({why})", hint=RESYNC)


def make_slot(replication: Replication, name: str, *, failover: bool) -> int:
    """Make a slot; the position from which on it tells everything."""
    options = "(SNAPSHOT 'nothing', FAILOVER true)" if failover else "(SNAPSHOT 'nothing')"
    version = replication.pgconn.server_version
    if version < 150_000:
        options = "NOEXPORT_SNAPSHOT"
    elif version < 170_000:
        options = "(SNAPSHOT 'nothing')"
    [row] = replication.command(f"CREATE_REPLICATION_SLOT {quote_name(name)} LOGICAL pgoutput {options}")
    return parse_lsn(row["consistent_point"] or "0/0")


def drop_slot(connection: Connection, name: str) -> None:
    """Drop a slot, if it is there, ending whoever reads it."""
    slot = find_slot(connection, name)
    if slot is None:
        return
    if slot["active_pid"] is not None:
        end_reader(connection, name)
    connection.execute("select pg_drop_replication_slot($1)", (name,))


def end_reader(connection: Connection, name: str) -> None:
    """End the connection that reads a slot: an earlier visit's, or one that has not noticed that its client died."""
    for _ in range(100):
        slot = find_slot(connection, name)
        if slot is None or slot["active_pid"] is None:
            return
        connection.execute("select pg_terminate_backend($1)", (slot["active_pid"],))
        connection.execute("select pg_sleep(0.05)")


# --- publications ---------------------------------------------------------------------------------------------


def publish(connection: Connection, name: str, tables: Iterable[SourceTable]) -> list[str]:
    """Make the publications of some tables, or bring them up to date; their names.

    A table that has REPLICA IDENTITY NOTHING is published for its inserts alone, in a publication of its own:
    otherwise PostgreSQL would refuse its writers' updates.
    """
    whole = [table for table in tables if table.tells_rows]
    inserts = [table for table in tables if not table.tells_rows]
    names = []
    for each, some, actions in ((name, whole, None), (name + INSERTS, inserts, "insert, truncate")):
        if some or _published(connection, each) is not None or (each == name and not inserts):
            _publish(connection, each, some, actions)
            names.append(each)
    return names


def _published(connection: Connection, name: str) -> set[int] | None:
    """The tables of a publication; None when there is no such publication."""
    if connection.execute("select 1 from pg_publication where pubname = $1", (name,)).fetchone() is None:
        return None
    sql = "select prrelid::int8 as id from pg_publication_rel r join pg_publication p on p.oid = r.prpubid"
    return {row["id"] for row in connection.execute(f"{sql} where p.pubname = $1", (name,))}


def _publish(connection: Connection, name: str, tables: list[SourceTable], actions: str | None) -> None:
    quoted = quote_name(name)
    known = _published(connection, name)
    if known is None:
        options = ["publish_via_partition_root = true"]
        if actions is not None:
            options.append(f"publish = '{actions}'")
        if connection.info.server_version >= 180_000:
            options.append("publish_generated_columns = stored")
        only = f"for table {', '.join(table.quoted for table in tables)}" if tables else ""
        connection.execute(f"create publication {quoted} {only} with ({', '.join(options)})")
        return
    wanted = {table.id: table for table in tables}
    gone = known - wanted.keys()
    new = wanted.keys() - known
    if gone or new:
        if not wanted:
            for id in gone:
                connection.execute(f"alter publication {quoted} drop table {_by_id(connection, id)}")
        else:
            connection.execute(f"alter publication {quoted} set table {', '.join(t.quoted for t in wanted.values())}")


def _by_id(connection: Connection, id: int) -> str:
    row = connection.execute("select $1::oid::regclass::text as name", (id,)).fetchone()
    assert row is not None
    return str(row["name"])


def check_publication(connection: Connection, name: str, location: str, tables: Iterable[SourceTable]) -> None:
    """See that a publication that was given tells the tables.

    Raises:
        CaptureError: It is missing, or does not hold a table.
    """
    row = connection.execute("select puballtables from pg_publication where pubname = $1", (name,)).fetchone()
    if row is None:
        raise CaptureError(
            f"{location} has no publication {name!r}",
            hint=f"CREATE PUBLICATION {quote_name(name)} FOR TABLE … WITH (publish_via_partition_root = true)",
        )
    sql = "select c.oid::int8 as id from pg_publication_tables t join pg_namespace n on n.nspname = t.schemaname"
    sql += " join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename where t.pubname = $1"
    published = {row["id"] for row in connection.execute(sql, (name,))}
    for table in tables:
        if table.id not in published:
            raise CaptureError(
                f"{location}: publication {name!r} does not tell of table {table.name!r}",
                hint=f"ALTER PUBLICATION {quote_name(name)} ADD TABLE {table.quoted}",
            )


def own_publications(connection: Connection) -> list[str]:
    """The publications that captures have made in this database."""
    sql = "select pubname from pg_publication where pubname ~ '^millstream_[0-9a-f]{12}(_inserts)?$' order by 1"
    return [row["pubname"] for row in connection.execute(sql)]
