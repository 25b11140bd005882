"""Global transaction ids: which transactions were taken, so that another server of the same history can go on.

MariaDB numbers the transactions of each domain, and the last one of each says all. MySQL has a set of them: of each
server, in intervals.
"""

from __future__ import annotations

from struct import pack
from uuid import UUID

import msgspec


class Domains(msgspec.Struct):
    """MariaDB: the last transaction of each domain."""

    last: dict[int, str] = {}

    @classmethod
    def parse(cls, text: str) -> Domains:
        """From the server's text, such as ``0-1-100,1-2-7``."""
        return cls({int(each.partition("-")[0]): each.strip() for each in text.split(",") if each.strip()})

    def add(self, gtid: str) -> None:
        """A transaction was taken."""
        self.last[int(gtid.partition("-")[0])] = gtid

    def __str__(self) -> str:
        return ",".join(self.last[domain] for domain in sorted(self.last))


class Intervals(msgspec.Struct):
    """MySQL: the transactions of each server, first and last of each stretch."""

    servers: dict[str, list[list[int]]] = {}

    @classmethod
    def parse(cls, text: str) -> Intervals:
        """From the server's text, such as ``3e11fa47-…:1-5:7``."""
        found = cls({})
        for each in text.replace("\n", "").split(","):
            server, *stretches = each.strip().split(":")
            for stretch in stretches:
                first, _, last = stretch.partition("-")
                found.servers.setdefault(server.lower(), []).append([int(first), int(last or first)])
        return found

    def add(self, gtid: str) -> None:
        """A transaction was taken."""
        server, _, text = gtid.partition(":")
        number = int(text)
        stretches = self.servers.setdefault(server, [])
        if stretches and stretches[-1][1] == number - 1:
            stretches[-1][1] = number
            return
        stretches.append([number, number])
        stretches.sort()
        merged = stretches[:1]
        for first, last in stretches[1:]:
            if first <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        self.servers[server] = merged

    def __str__(self) -> str:
        return ",".join(
            server + "".join(f":{first}-{last}" if first != last else f":{first}" for first, last in stretches)
            for server, stretches in sorted(self.servers.items())
        )

    def encoded(self) -> bytes:
        """As the request for a binary log has it."""
        found = pack("<Q", len(self.servers))
        for server, stretches in self.servers.items():
            found += UUID(server).bytes + pack("<Q", len(stretches))
            found += b"".join(pack("<QQ", first, last + 1) for first, last in stretches)
        return found
