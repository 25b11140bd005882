"""A MySQL or MariaDB database as a source: what it must be set to, and the opening of a visit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from ...errors import CaptureError, SourceUnavailable
from ..findings import Backlog, Finding
from ..source import Options, State
from .catalog import Catalog, End
from .faults import RESYNC, source_errors
from .place import parse_url
from .session import MySQLSession


class MySQLSource:
    """A MySQL or MariaDB database, captured from its binary log. Nothing is installed in it.

    Its identity is its address, since that stays when another server takes the place of one that failed; where the
    address may change, give the capture a name.
    """

    def __init__(self, url: str, options: Options) -> None:
        self.place = parse_url(url)
        self.url = self.place.location
        self.options = options

    def identity(self) -> str:
        """Its address."""
        return self.url

    def uninstall(self) -> None:
        """Nothing: captures make nothing in the server."""

    def check(self) -> list[Finding]:
        """What in the server's settings, or about its tables, stands in a capture's way: the first thing that does."""
        with source_errors(self.url):
            catalog = Catalog(self.place)
            try:
                catalog.check_settings()
                known = catalog.tables()
                for name in self.options.tables or ():
                    if name not in known:
                        return [Finding("error", f"there is no table {name}", "Check its name")]
                    catalog.check_readable(name)
                found = [
                    Finding(
                        "note", f"table {name} has no key: its rows are told apart by all of their values", "Add one"
                    )
                    for name in self.options.tables or known
                    if (layout := catalog.layout(name)) is not None and not layout.key
                ]
            except SourceUnavailable:
                raise
            except CaptureError as error:
                return [Finding("error", str(error.args[0]), error.hint)]
            finally:
                catalog.close()
        return found

    def backlog(self, state: State | None, position: int, seconds: float, room: int | None) -> Backlog | None:
        """How far a capture is behind; the server keeps its log by its own rules, and nothing for a capture."""
        if state is None or "file" not in state.source:
            return None
        with source_errors(self.url):
            catalog = Catalog(self.place)
            try:
                files = {row["log_name"]: int(row["file_size"]) for row in catalog.query("SHOW BINARY LOGS")}
                before = catalog.end()
                time.sleep(seconds)
                grown = _bytes_between(files, before, catalog.end())
            finally:
                catalog.close()
        file, offset = str(state.source["file"]), int(state.source.get("offset", 0))
        behind = _bytes_between(files, End(file, offset), before)
        return Backlog(file, None, behind, behind, "bytes", grown / seconds if seconds else 0.0, room)

    @contextmanager
    def session(self, position: int, state: State, *, resync: bool) -> Iterator[tuple[MySQLSession, int, State]]:
        """Open it; see `Source`."""
        state = msgspec.convert(msgspec.to_builtins(state), State)
        with source_errors(self.url):
            catalog = Catalog(self.place)
            try:
                catalog.check_settings()
                position = self._begin(catalog, position, state, resync=resync)
                session = MySQLSession(self, catalog, state, position)
            except BaseException:
                catalog.close()
                raise
            try:
                session.open()
                yield session, position, session._copied()
            finally:
                session.close()

    def _begin(self, catalog: Catalog, position: int, state: State, *, resync: bool) -> int:
        """Where to go on."""
        server, known = catalog.server, state.source
        end, gtids = catalog.end_with_gtids()
        if state.opened and not resync:
            if known.get("server") == server.id:
                self._check_log(catalog, position, end, known["file"])
                return position
            self._check_other(catalog, known)
            # Positions of the server before mean nothing here: what is not complete is read again.
            for name, each in known.get("tables", {}).items():
                each["known"] = each["since"] = 0
                if not state.tables[name].done:
                    state.tables[name].restart()
            known.update(server=server.id, file=end.file, offset=0)
            return 0
        for progress in state.tables.values():
            progress.restart()
        told = {name: each.get("told") for name, each in known.get("tables", {}).items()}
        state.opened = True
        state.source = {
            "server": server.id, "file": end.file, "offset": end.offset,
            "gtids": gtids,
            "tables": {n: {"layout": None, "known": 0, "since": 0, "told": shape} for n, shape in told.items()},
        }  # fmt: skip
        return end.position

    def _check_log(self, catalog: Catalog, position: int, end: End, file: str) -> None:
        """See that the server's log still goes on from a position."""
        if end.position < position:
            raise CaptureError(
                f"{self.url}: the server's log ends before what was captured already: it was begun anew, or a backup"
                " was restored",
                hint=RESYNC,
            )
        if not catalog.has_file(file):
            raise CaptureError(
                f"{self.url}: the server has removed {file} of its log, and with it changes that were not captured",
                hint=RESYNC + "; and let the server keep its log for longer (binlog_expire_logs_seconds)",
            )

    def _check_other(self, catalog: Catalog, known: dict[str, str]) -> None:
        """See that another server has the history of the one before."""
        gtids = known.get("gtids")
        if not catalog.server.with_gtids or not gtids:
            raise CaptureError(
                f"{self.url} is another server than the one that was captured, and nothing tells which of its"
                " transactions were",
                hint="Check the address; or run the capture with resync=True, if this server took the other's place",
            )
        if not catalog.server.mariadb and catalog.value(f"GTID_SUBSET('{gtids}', @@global.gtid_executed)") != "1":
            raise CaptureError(
                f"{self.url} is another server, and lacks transactions that were captured from the one before",
                hint="Run the capture with resync=True, which reads the tables again as they are now",
            )


def _bytes_between(files: dict[str, int], start: End, end: End) -> int:
    """How much of the server's log lies between two places, by the sizes of its files."""
    if start.file == end.file:
        return max(end.offset - start.offset, 0)
    between = sum(size for name, size in files.items() if start.file < name < end.file)
    return max(files.get(start.file, 0) - start.offset, 0) + between + end.offset
