"""A MySQL or MariaDB database as a source: what it must be set to, and the opening of a visit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from ...conversion import ready
from ...errors import CaptureError
from ..findings import Backlog, Finding
from ..source import Options, State
from .catalog import Catalog, End
from .faults import RESYNC, source_errors
from .health import backlog, check, check_opening
from .place import parse_url
from .reader import MySQLReader
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

    @contextmanager
    def _asking(self) -> Iterator[Catalog]:
        with source_errors(self.url):
            catalog = Catalog(self.place)
            try:
                yield catalog
            finally:
                catalog.close()

    def check(self) -> list[Finding]:
        """What in the server's settings, or about its tables, stands in a capture's way."""
        with self._asking() as catalog:
            return check(catalog, self.options.tables)

    def backlog(self, state: State | None, position: int, seconds: float, room: int | None) -> Backlog | None:
        """What the server's log holds, and how much of it was not captured yet."""
        with self._asking() as catalog:
            return backlog(catalog, position, seconds, room)

    @contextmanager
    def reader(self) -> Iterator[MySQLReader]:
        """The rows as they are now; see `Source`."""
        with self._asking() as catalog:
            yield MySQLReader(catalog)

    @contextmanager
    def session(self, position: int, state: State, *, resync: bool) -> Iterator[tuple[MySQLSession, int, State]]:
        """Open it; see `Source`."""
        state = msgspec.convert(msgspec.to_builtins(state), ready(State))
        with source_errors(self.url):
            catalog = Catalog(self.place)
            try:
                check_opening(catalog)
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
            known.update(server=server.id, file=end.file, offset=0, born=None, origin=0)
            return 0
        for progress in state.tables.values():
            progress.restart()
        told = {name: each.get("told") for name, each in known.get("tables", {}).items()}
        state.opened = True
        state.source = {
            "server": server.id, "file": end.file, "offset": end.offset,
            "gtids": gtids,
            "origin": end.position,
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
