"""Space on disk for what a flow holds beyond its limit: temporary files that have no name.

The system takes them back when the process ends, however it ends, so that a kill leaves nothing behind. They are read
through a map, so that of what is asked for only the pages that hold it are read.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections import deque
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from .errors import SpillFailed

_FILE = 1 << 28
"""Bytes that a file has room for; one that takes more is made as large as that."""

_ALIGNED = 64
"""What is put away begins at multiples of this, so that numbers may be read where they stand."""


class Span:
    """A stretch of a file. Its space is used again once nobody has the span any more."""

    __slots__ = ("_file", "offset", "size")

    def __init__(self, file: _File, offset: int, size: int) -> None:
        self._file = file
        self.offset = offset
        self.size = size

    def array(self, dtype: str, count: int, offset: int) -> np.ndarray[Any, Any]:
        """Numbers as they stand in the file: not to be kept beyond the span."""
        return np.frombuffer(self._file.map, dtype, count, self.offset + offset)

    def bytes(self, offset: int, size: int) -> bytes:
        """A copy of some bytes."""
        begin = self.offset + offset
        return self._file.map[begin : begin + size]

    def __del__(self) -> None:
        # May run on any thread and at any moment: appending to a deque is one step.
        self._file.freed.append((self.offset, self.size))


class _File:
    """A file, its map, and where it has room."""

    def __init__(self, handle: IO[bytes], size: int) -> None:
        self.handle = handle
        os.truncate(self.handle.fileno(), size)
        self.map = mmap.mmap(self.handle.fileno(), size, access=mmap.ACCESS_READ)
        self.size = size
        self.free = [(0, size)]
        self.freed: deque[tuple[int, int]] = deque()

    def __del__(self) -> None:
        self.handle.close()

    def take(self, size: int) -> int | None:
        """Where so many bytes have room; None when nowhere."""
        for number, (offset, room) in enumerate(self.free):
            if room >= size:
                self.free[number : number + 1] = [(offset + size, room - size)] if room > size else []
                return offset
        return None

    def tidy(self) -> bool:
        """Take back what is nobody's any more; whether nothing is held."""
        if self.freed:
            while self.freed:
                self.free.append(self.freed.popleft())
            joined: list[tuple[int, int]] = []
            for offset, size in sorted(self.free):
                if joined and sum(joined[-1]) == offset:
                    joined[-1] = (joined[-1][0], joined[-1][1] + size)
                else:
                    joined.append((offset, size))
            self.free = joined
        return self.free == [(0, self.size)]


class Room:
    """Temporary files in a folder.

    Args:
        folder: Where they are; where they stand, there must be room for what is held beyond the limit.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._files: list[_File] = []

    def put(self, pieces: Sequence[memoryview | bytes]) -> tuple[Span, list[int]]:
        """Put some bytes away; where they are, and where in there each piece begins.

        Raises:
            SpillFailed: There is no room for them, or the folder cannot be written to.
        """
        places, end = [], 0
        for piece in pieces:
            places.append(end)
            end += -(-len(piece) // _ALIGNED) * _ALIGNED
        try:
            span = self._span(max(end, _ALIGNED))
            handle = span._file.handle.fileno()
            for place, piece in zip(places, pieces, strict=True):
                _write(handle, memoryview(piece), span.offset + place)
        except OSError as error:
            raise SpillFailed(self.folder, end, error.strerror or str(error)) from error
        return span, places

    def _span(self, size: int) -> Span:
        self.tidy()
        for file in self._files:
            offset = file.take(size)
            if offset is not None:
                return Span(file, offset, size)
        file = _File(tempfile.TemporaryFile(dir=self.folder, prefix="millstream-"), max(size, _FILE))  # noqa: SIM115
        self._files.append(file)
        offset = file.take(size)
        assert offset is not None
        return Span(file, offset, size)

    def tidy(self) -> None:
        """Give files back that nothing is in any more."""
        self._files = [file for file in self._files if not file.tidy()]

    def let_go(self) -> None:
        """Have the pages that were read no longer count as this process's memory; they are read again when needed."""
        for file in self._files:
            if hasattr(mmap, "MADV_DONTNEED"):
                file.map.madvise(mmap.MADV_DONTNEED)


def _write(handle: int, data: memoryview, at: int) -> None:
    # Written, not stored into the map: of a disk that is full the one is told, and the other ends the process.
    while data:
        done = os.pwrite(handle, data, at)
        data, at = data[done:], at + done
