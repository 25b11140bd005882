"""A connection on which a server sends its binary log, as it does to a replica."""

from __future__ import annotations

import random
import time
from struct import pack

import pymysql

from .gtid import Domains, Intervals
from .place import Connection, Place, connect, query, value
from .wire import Packets, error_of

HEARTBEAT = 2.0
"""Seconds of silence after which the server says that it is still there."""

SILENCE = 30.0
"""Seconds of silence after which a connection is taken for dead."""

_REGISTER, _DUMP, _DUMP_GTID = 0x15, 0x12, 0x1E
_THROUGH_GTID = 4


class Stream:
    """An open binary log.

    Args:
        file, offset: Where to begin, if not by transaction ids.
        gtids: The transactions that were taken already.
        server_id: What the server knows this side as; by default any number, another one for each connection.

    Raises (all of its methods):
        pymysql.MySQLError, OSError: What the server refuses, or that the connection is lost.
    """

    def __init__(
        self, place: Place, file: str, offset: int, gtids: Domains | Intervals | None, server_id: int | None
    ) -> None:
        self.connection: Connection = connect(place)
        self.heard = time.monotonic()
        """When the server said something last."""
        try:
            self._start(file, offset, gtids, server_id or random.randrange(1 << 31, (1 << 32) - 1))
        except BaseException:
            self.close()
            raise

    def _start(self, file: str, offset: int, gtids: Domains | Intervals | None, server_id: int) -> None:
        connection = self.connection
        self.checksum = 4 if value(connection, "@@global.binlog_checksum") == "CRC32" else 0
        settings = {
            "binlog_checksum": "@@global.binlog_checksum",
            "heartbeat_period": str(int(HEARTBEAT * 1_000_000_000)),
        }
        named = [f"@{role}_{name} = {value}" for name, value in settings.items() for role in ("master", "source")]
        if isinstance(gtids, Domains):
            named += [f"@slave_connect_state = '{gtids}'", "@slave_gtid_strict_mode = 0"]
        named += ["@mariadb_slave_capability = 4"]
        query(connection, f"SET {', '.join(named)}")
        self._command(_REGISTER, pack("<IBBBHII", server_id, 0, 0, 0, 0, 0, 0))
        connection._read_ok_packet()
        if isinstance(gtids, Intervals):
            data = gtids.encoded()
            body = pack("<HIIQI", _THROUGH_GTID, server_id, 0, 4, len(data)) + data
            self._command(_DUMP_GTID, body)
        elif isinstance(gtids, Domains):
            self._command(_DUMP, pack("<IHI", 4, 0, server_id))
        else:
            self._command(_DUMP, pack("<IHI", offset, 0, server_id) + file.encode())
        self.packets = Packets(connection)
        self.packets.more(5)
        if self.packets.b[4] == 0xFF:
            raise error_of(self.packets.take())

    def _command(self, code: int, body: bytes) -> None:
        self.connection._next_seq_id = 0
        self.connection.write_packet(bytes([code]) + body)

    def ready(self, seconds: float = 0.0) -> bool:
        """Whether something has arrived, within a time."""
        if self.packets.ready(seconds):
            self.heard = time.monotonic()
            return True
        if time.monotonic() - self.heard > SILENCE:
            raise pymysql.err.OperationalError(2013, "the server has not been heard of")
        return False

    def close(self) -> None:
        """End the connection, without a word: the server would not read it."""
        self.connection._force_close()
