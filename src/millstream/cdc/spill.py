"""A large transaction's rows on their way: in a file that has no name, so that nothing is left of it after a crash."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from .source import MAX_EVENTS

CHUNK_BYTES = 4 << 20
"""About how large a piece of a spilled transaction is: what one short commit of the log takes."""


class Chunk(NamedTuple):
    """Neighbouring rows of one table in the file.

    Attributes:
        sub: The subtransaction that they belong to; 0 when the transaction was not streamed.
    """

    offset: int
    size: int
    rows: int
    sub: int


class Spill:
    """A file of rows; gone when it is closed."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="millstream-transaction-")  # noqa: SIM115 - closed by `close`
        self._end = 0

    def write(self, lines: Sequence[bytes], subs: Sequence[tuple[int, int]] = ()) -> list[Chunk]:
        """Add rows of one table.

        Args:
            subs: Where each stretch of one subtransaction begins, and the subtransaction.
        """
        found = []
        self._file.seek(self._end)
        stretches = list(subs) or [(0, 0)]
        ends = [start for start, _ in stretches[1:]] + [len(lines)]
        for (start, sub), end in zip(stretches, ends, strict=True):
            first = start
            while first < end:
                last, size = first, 0
                while last < end and last - first < MAX_EVENTS and size < CHUNK_BYTES:
                    size += len(lines[last]) + 1
                    last += 1
                body = b"\n".join(lines[first:last])
                self._file.write(body)
                found.append(Chunk(self._end, len(body), last - first, sub))
                self._end += len(body)
                first = last
        return found

    def read(self, chunk: Chunk) -> bytes:
        """A chunk's rows, each a line, without a last newline."""
        self._file.seek(chunk.offset)
        return self._file.read(chunk.size)

    def close(self) -> None:
        """Remove it."""
        self._file.close()
