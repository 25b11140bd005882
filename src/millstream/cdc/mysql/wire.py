"""Packets of MySQL's protocol, from a large buffer: many are taken apart at the place where they arrived."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from struct import Struct

import pymysql
from pymysql.constants import COMMAND

from .place import Connection

RECEIVE = 1 << 18
"""How much is asked of the socket at once."""

_u16 = Struct("<H").unpack_from
_u32 = Struct("<I").unpack_from
_u64 = Struct("<Q").unpack_from

FULL = 0xFFFFFF
"""The size of a packet that is gone on with in the next one."""


def lost(why: str = "the server has ended the connection") -> pymysql.err.OperationalError:
    """The error of a connection that broke."""
    return pymysql.err.OperationalError(2013, why)


def length(b: bytes, p: int) -> tuple[int, int]:
    """A length-encoded number, and the place after it."""
    first = b[p]
    if first < 251:
        return first, p + 1
    if first == 252:
        return _u16(b, p + 1)[0], p + 3
    if first == 253:
        return _u32(b, p)[0] >> 8, p + 4
    return _u64(b, p + 1)[0], p + 9


class Packets:
    """What a server sends on a connection.

    Attributes:
        b: What has arrived.
        at: Where in it the next packet begins.
    """

    def __init__(self, connection: Connection) -> None:
        self.sock: socket.socket = connection._sock
        self.b = b""
        self.at = 0

    def ready(self, seconds: float = 0.0) -> bool:
        """Whether more has arrived, within a time."""
        pending = getattr(self.sock, "pending", None)  # of TLS: bytes that were decrypted already
        if pending is not None and pending():
            return True
        return bool(select.select([self.sock], [], [], seconds)[0])

    def more(self, need: int = 0) -> None:
        """Receive, until so many bytes are there from ``at`` on.

        Raises:
            pymysql.MySQLError, OSError: The connection is lost.
        """
        parts = [self.b[self.at :]]
        have = len(parts[0])
        while True:
            data = self.sock.recv(RECEIVE)
            if not data:
                raise lost()
            parts.append(data)
            have += len(data)
            if have >= need:
                break
        self.b, self.at = b"".join(parts), 0

    def take(self) -> bytes:
        """The next packet, which may have come in several parts."""
        parts = []
        while True:
            if len(self.b) - self.at < 4:
                self.more(4)
            size = _u32(self.b, self.at)[0] & FULL
            end = self.at + 4 + size
            if end > len(self.b):
                self.more(4 + size)
                end = 4 + size
            parts.append(self.b[self.at + 4 : end])
            self.at = end
            if size < FULL:
                return parts[0] if len(parts) == 1 else b"".join(parts)


def error_of(packet: bytes) -> pymysql.err.MySQLError:
    """The error that a packet tells."""
    try:
        pymysql.err.raise_mysql_exception(packet)
    except pymysql.err.MySQLError as error:
        return error
    return lost()


def text_rows(connection: Connection, statement: str) -> Iterator[bytes]:
    """A query's rows as the server sends them: each value with its length before it, 0xFB for NULL.

    All of them must be taken, or the connection be closed.
    """
    connection._execute_command(COMMAND.COM_QUERY, statement)
    packets = Packets(connection)
    first = packets.take()
    if first[0] == 0xFF:
        raise error_of(first)
    width, _ = length(first, 0)
    for _ in range(width + 1):  # what the columns are, and an end of that
        packets.take()
    while True:
        row = packets.take()
        if row[0] == 0xFE and len(row) < 9:
            return
        if row[0] == 0xFF:
            raise error_of(row)
        yield row
