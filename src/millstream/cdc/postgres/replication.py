"""A replication connection: what PostgreSQL streams, message by message, and what it is told in return."""

from __future__ import annotations

import re
import select
import struct
import time
from typing import Any

import psycopg
from psycopg import generators, waiting
from psycopg.conninfo import make_conninfo
from psycopg.pq import ConnStatus, ExecStatus, PGconn, PollingStatus, abc

from ...storage.postgres.place import Place
from .types import SETTINGS

EPOCH = 946_684_800_000_000
"""PostgreSQL's year 2000, in microseconds since 1970."""

_STATUS = struct.Struct(">cQQQQB")
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


def parse_lsn(text: str) -> int:
    """A place in the write-ahead log, from the server's text."""
    found = _LSN.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return int(found[1], 16) << 32 | int(found[2], 16)


def lsn_text(position: int) -> str:
    """A place in the write-ahead log as the server writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


class Replication:
    """A connection that streams a slot's changes. Used by one thread.

    Raises (all of its methods):
        psycopg.Error: What the server refuses, or that the connection is lost.
    """

    def __init__(self, place: Place) -> None:
        settings = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items() if name != "client_encoding")
        own = {key: value for key, value in place.conninfo.items() if key != "options"}
        given = str(place.conninfo.get("options", ""))
        conninfo = make_conninfo(**own, options=f"{given} {settings}".strip(), replication="database")
        self.pgconn = _connected(conninfo, float(place.conninfo["connect_timeout"]))
        self.get = self.pgconn.get_copy_data
        """``get(1)``: the size and bytes of the next message; size 0 when there is none yet, -1 at the end."""
        self._told = 0.0

    def command(self, text: str) -> list[dict[str, str | None]]:
        """Run a command of the replication protocol; its rows."""
        result = self._run(text)
        if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            raise _error(result)
        names = [(result.fname(i) or b"").decode() for i in range(result.nfields)]
        return [
            {name: _text(result.get_value(row, i)) for i, name in enumerate(names)} for row in range(result.ntuples)
        ]

    def start(self, slot: str, position: int, options: dict[str, str]) -> None:
        """Begin to stream what was committed after a position."""
        chosen = ", ".join(f"{name} {_literal(value)}" for name, value in options.items())
        result = self._run(f"START_REPLICATION SLOT {_identifier(slot)} LOGICAL {lsn_text(position)} ({chosen})")
        if result.status != ExecStatus.COPY_BOTH:
            raise _error(result)

    def _run(self, text: str) -> Any:
        self.pgconn.send_query(text.encode())
        return waiting.wait(generators.execute(self.pgconn), self.pgconn.socket, interval=0.1)[-1]

    def waiting(self, seconds: float) -> bool:
        """Whether there is something to read, within a time."""
        found, _, _ = select.select([self.pgconn.socket], [], [], seconds)
        return bool(found)

    def receive(self) -> None:
        """Take in what has arrived."""
        self.pgconn.consume_input()
        if self.pgconn.status != ConnStatus.OK:
            raise psycopg.OperationalError("the connection is lost")

    def ended(self) -> psycopg.Error:
        """Why the stream has ended."""
        result = self.pgconn.get_result()
        if result is not None and result.status == ExecStatus.FATAL_ERROR:
            return _error(result)
        return psycopg.OperationalError("the server has ended the stream")

    def tell(self, position: int, *, reply: bool = False) -> None:
        """Tell the server that all up to a position is durable here.

        Args:
            reply: Ask it how far its stream has come.
        """
        now = time.time_ns() // 1000 - EPOCH
        self.pgconn.put_copy_data(_STATUS.pack(b"r", position, position, position, now, reply))
        while self.pgconn.flush():
            select.select([], [self.pgconn.socket], [], 1.0)
        self._told = time.monotonic()

    @property
    def quiet_for(self) -> float:
        """Seconds since the server was last told something."""
        return time.monotonic() - self._told

    def close(self) -> None:
        """End the connection."""
        self.pgconn.finish()


def _connected(conninfo: str, patience: float) -> abc.PGconn:
    """A connection, made without the library's own waiting, during which no other thread of this process would run."""
    pgconn: abc.PGconn = PGconn.connect_start(conninfo.encode())
    deadline = time.monotonic() + patience
    status = PollingStatus.WRITING
    while pgconn.status != ConnStatus.BAD and time.monotonic() < deadline:
        ends, none = [pgconn.socket], list[int]()
        reads = status == PollingStatus.READING
        select.select(ends if reads else none, none if reads else ends, none, 0.5)
        status = PollingStatus(pgconn.connect_poll())
        if status == PollingStatus.OK:
            pgconn.nonblocking = 1
            return pgconn
        if status == PollingStatus.FAILED:
            break
    message = pgconn.get_error_message() or "the server does not answer"
    pgconn.finish()
    raise psycopg.OperationalError(message)


def _error(result: Any) -> psycopg.Error:
    return psycopg.errors.error_from_result(result)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
