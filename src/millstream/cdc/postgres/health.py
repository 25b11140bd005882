"""How a PostgreSQL source is: its settings, with the statement that mends each, and what its slot holds back."""

from __future__ import annotations

import os
import shutil
from typing import Any

from ...storage.postgres.place import quote_name
from ..findings import Backlog, Finding
from .catalog import Catalog, Connection, SourceTable
from .slots import find_slot

_SETTINGS = """
select current_setting('wal_level') as level, current_setting('server_version_num')::int as version,
       current_setting('server_encoding') as encoding,
       current_setting('max_replication_slots')::int as slots, current_setting('max_wal_senders')::int as senders,
       (select count(*) from pg_replication_slots)::int as used_slots,
       (select count(*) from pg_stat_replication)::int as used_senders,
       current_setting('max_slot_wal_keep_size') as keep,
       coalesce(current_setting('idle_replication_slot_timeout', true), '0') as idle,
       r.rolreplication or r.rolsuper as replicates, r.rolname as role,
       has_database_privilege(current_database(), 'CREATE') as creates, current_database() as database
from pg_roles r where r.rolname = current_user
"""


def check(connection: Connection, names: tuple[str, ...] | None, publication: str | None) -> list[Finding]:
    """What stands in a capture's way, and what may one day."""
    row = connection.execute(_SETTINGS).fetchone()
    assert row is not None
    found: list[Finding] = []

    def say(level: Any, about: str, mend: str) -> None:
        found.append(Finding(level, about, mend))

    if row["version"] < 140_000:
        say("error", f"the server is PostgreSQL {row['version'] // 10_000}", "Upgrade it to 14 or later")
    if row["encoding"] == "SQL_ASCII":
        say("error", "the database has no encoding (SQL_ASCII)", "Load it into a database of encoding UTF8")
    if row["level"] != "logical":
        say("error", f"wal_level is {row['level']}", "ALTER SYSTEM SET wal_level = 'logical'; then restart the server")
    if not row["replicates"]:
        say("error", f"role {row['role']} may not replicate", f"ALTER ROLE {quote_name(row['role'])} REPLICATION")
    if not row["creates"] and publication is None:
        say(
            "error",
            f"role {row['role']} may not create a publication",
            f"GRANT CREATE ON DATABASE {quote_name(row['database'])} TO {quote_name(row['role'])}; or publication=",
        )
    if row["used_slots"] >= row["slots"]:
        mend = f"ALTER SYSTEM SET max_replication_slots = {row['slots'] + 5}; then restart the server"
        say("warning", f"all {row['slots']} replication slots are in use", mend)
    if row["used_senders"] >= row["senders"]:
        mend = f"ALTER SYSTEM SET max_wal_senders = {row['senders'] + 5}; then restart the server"
        say("warning", f"all {row['senders']} WAL senders are in use", mend)
    if row["keep"] == "-1":
        say(
            "warning",
            "nothing limits how much of the server's log a slot holds back: an abandoned one fills the disk",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf()",
        )
    if row["idle"] not in ("0", "0s", "0min"):
        say(
            "warning",
            f"a slot that nobody reads for {row['idle']} is invalidated",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf()",
        )
    catalog = Catalog(connection)
    tables = catalog.all_tables() if names is None else []
    for name in names or ():
        table = catalog.find(name)
        if table is None:
            say("error", f"there is no table {name}", "Check its name; write schema.table outside of public")
        else:
            tables.append(table)
    for table in tables:
        found += _of_table(table)
    return found


def _of_table(table: SourceTable) -> list[Finding]:
    full = f"ALTER TABLE {table.quoted} REPLICA IDENTITY FULL"
    if not table.persistent:
        return [
            Finding("error", f"table {table.name} is not in the server's log", f"ALTER TABLE {table.quoted} SET LOGGED")
        ]
    found = []
    if not table.readable:
        found.append(
            Finding("error", f"table {table.name} may not be read", f"GRANT SELECT ON {table.quoted} TO CURRENT_USER")
        )
    if table.identity == "n":
        found.append(Finding("note", f"of table {table.name} only inserts are told (REPLICA IDENTITY NOTHING)", full))
    elif not table.tells_rows:
        about = f"table {table.name} has no primary key: once captured, PostgreSQL would refuse its updates"
        found.append(Finding("error", about, full))
    elif table.identity != "f":
        about = f"of a row of {table.name} before an update only the key is told (REPLICA IDENTITY DEFAULT)"
        found.append(Finding("note", about, f"{full}, if the whole row before is wanted"))
    return found


def backlog(connection: Connection, slot: str, seconds: float, room: int | None) -> Backlog | None:
    """What a slot holds back, and how fast the server's log grows."""
    found = find_slot(connection, slot)
    if found is None:
        return None
    sql = """
        select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8 as behind,
               to_jsonb(s) ->> 'safe_wal_size' as safe, pg_current_wal_lsn()::text as now
        from pg_replication_slots s where slot_name = $1
    """
    row = connection.execute(sql, (slot,)).fetchone()
    assert row is not None
    connection.execute("select pg_sleep($1)", (seconds,))
    grown = connection.execute("select pg_wal_lsn_diff(pg_current_wal_lsn(), $1::pg_lsn)::int8 as n", (row["now"],))
    [after] = grown.fetchall()
    left = int(row["safe"]) if row["safe"] is not None else None
    for free in (room, _free(connection)):
        if free is not None:
            left = free if left is None else min(left, free)
            break
    return Backlog(
        slot,
        bool(found["active"]),
        int(found["retained"] or 0),
        int(row["behind"] or 0),
        "bytes",
        after["n"] / seconds if seconds else 0.0,
        left,
    )


def _free(connection: Connection) -> int | None:
    """What the server's disk has free, if that is this machine's and its folder can be seen."""
    try:
        row = connection.execute(
            "select current_setting('data_directory') as folder, inet_server_addr() as host"
        ).fetchone()
        assert row is not None
        folder = str(row["folder"])
        if row["host"] is not None and not str(row["host"]).startswith("127."):
            return None
        return shutil.disk_usage(folder).free if os.path.exists(os.path.join(folder, "PG_VERSION")) else None
    except Exception:  # a role may not see the setting, nor this user the folder
        return None
