"""What in a server's settings stands in a capture's way, with the statement that mends each; what its log holds."""

from __future__ import annotations

import time
from typing import Literal

import pymysql

from ...errors import CaptureError
from ..findings import Backlog, Finding
from .catalog import Catalog
from .faults import RESYNC, fault
from .layout import CODECS
from .place import quote_name
from .stream import Stream

_RECONNECT = "and reconnect the programs that write"


def obstacles(catalog: Catalog) -> list[Finding]:
    """What keeps changes from being told in the way that is needed."""
    found: list[Finding] = []
    server = catalog.server

    def error(about: str, mend: str) -> None:
        found.append(Finding("error", about, mend))

    if server.version < ((10, 2) if server.mariadb else (5, 7)):
        version = ".".join(map(str, server.version))
        error(f"the server is version {version}", "Upgrade it to MySQL 5.7 or MariaDB 10.2, or later")
    if catalog.value("@@log_bin") != "1":
        error(
            "the server keeps no binary log, and changes are told there alone",
            "Put log_bin = binlog and server_id = 1 under [mysqld] in the server's my.cnf, and restart it",
        )
        return found
    for name, wanted in (("binlog_format", "ROW"), ("binlog_row_image", "FULL")):
        value = catalog.value(f"@@global.{name}")
        if value != wanted:
            error(
                f"{name} is {value!r}, and rows are only told whole at {wanted!r}",
                f"SET GLOBAL {name} = '{wanted}'; put it into my.cnf, too, {_RECONNECT}",
            )
    if catalog.value("@@global.binlog_row_value_options"):
        error(
            "binlog_row_value_options is set, and JSON documents are only told in parts",
            f"SET GLOBAL binlog_row_value_options = ''; {_RECONNECT}",
        )
    if catalog.leaves_out():
        error(
            "the server is set to leave this database out of its log",
            "Change binlog_do_db or binlog_ignore_db in my.cnf, and restart the server",
        )
    return found


def check(catalog: Catalog, tables: tuple[str, ...] | None) -> list[Finding]:
    """What stands in a capture's way, and what may one day."""
    found = obstacles(catalog)

    def say(level: Literal["error", "warning", "note"], about: str, mend: str) -> None:
        found.append(Finding(level, about, mend))

    if not found:
        try:
            end = catalog.end()
            Stream(catalog.place, end.file, end.offset, None, None).close()
        except (pymysql.err.MySQLError, OSError) as error:
            reason = fault(error, catalog.place.location)
            say("error", reason.message, reason.hint)
        except CaptureError as error:
            say("error", error.message, error.hint)
    there = catalog.tables()
    for name in tables if tables is not None else there:
        if name not in there:
            say("error", f"there is no table {name} that may be read", "Check its name; or GRANT SELECT ON it")
            continue
        if there[name] == "SYSTEM VERSIONED":
            mend = f"ALTER TABLE {quote_name(name)} DROP SYSTEM VERSIONING, or leave it out of tables="
            say("error" if tables else "note", f"table {name} is versioned by the server", mend)
            continue
        layout = catalog.layout(name)
        for column in layout.columns if layout is not None else ():
            if not column.kind or (column.charset is not None and column.charset not in CODECS):
                what = column.charset or column.type
                say("error", f"column {name}.{column.name} is of {what}, which is not known", "Store it in another")
        if layout is not None and not layout.key:
            mend = f"ALTER TABLE {quote_name(name)} ADD PRIMARY KEY (…)"
            say("note", f"table {name} has no key: it is read whole while the stream waits", mend)
    _warn_of_expiry(catalog, found)
    metadata = catalog.value("@@global.binlog_row_metadata")
    if metadata is not None and metadata != "FULL":
        about = "the server's log tells no names of columns; they are followed by its statements"
        say("note", about, "SET GLOBAL binlog_row_metadata = 'FULL'")
    return found


def _warn_of_expiry(catalog: Catalog, found: list[Finding]) -> None:
    seconds = catalog.value("@@global.binlog_expire_logs_seconds")
    days = catalog.value("@@global.expire_logs_days")
    kept = int(float(seconds or 0)) or int(float(days or 0) * 86_400)
    if kept and kept < 86_400:
        about = f"the server removes its log after {kept / 3600:.1f} hours: a capture that pauses for longer is lost"
        found.append(Finding("warning", about, "SET GLOBAL binlog_expire_logs_seconds = 604800"))


def check_opening(catalog: Catalog) -> None:
    """See that the server tells changes in the way that is needed.

    Raises:
        CaptureError: It does not; the hint has the statement that mends it.
    """
    for finding in obstacles(catalog):
        hint = f"{finding.mend}. {RESYNC}" if "binlog_format" in finding.about else finding.mend
        raise CaptureError(f"{catalog.place.location}: {finding.about}", hint=hint)


def backlog(catalog: Catalog, position: int, seconds: float, room: int | None) -> Backlog:
    """What the server's log holds, and how much of that was not captured yet.

    The server keeps its log by its own rules, whether it was captured or not.
    """
    sizes = catalog.log_files()
    kept = sum(sizes.values())
    behind = sum(size for number, size in sizes.items() if number > position >> 32)
    behind += max(sizes.get(position >> 32, 0) - (position & 0xFFFFFFFF), 0)
    time.sleep(seconds)
    after = catalog.log_files()
    grown = sum(after.values()) - sum(after[number] for number in after if number not in sizes and number < min(sizes))
    rate = max(grown - kept, 0) / seconds if seconds else 0.0
    return Backlog("the server's binary log", None, kept, behind, "bytes", rate, room)
