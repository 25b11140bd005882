"""Lines of a file or of a pipe, in batches: large ones while they are at hand, small ones while they trickle."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO

from ..errors import NotFound, UsageError

BATCH = 10_000
_PAUSE = 0.05
_PIECE = 1 << 18
_MARK = b"\xef\xbb\xbf"


@contextmanager
def opened(path: str | None) -> Iterator[IO[bytes]]:
    """A file to read from; stdin for ``-`` or none.

    Raises:
        NotFound: There is no such file.
        UsageError: It cannot be read.
    """
    if path is None or path == "-":
        if sys.stdin.isatty():
            print("reading from the terminal, one event a line; Ctrl-D ends", file=sys.stderr)
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}", hint="Check the path, or give - for stdin") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="Give a file of NDJSON") from error
    with file:
        yield file


def batches(source: IO[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Lines in batches, each with the number of its first line.

    A batch is full at 10,000 lines, or ends where the source pauses: what comes slowly through a pipe is not kept
    waiting for more.
    """
    first = 1
    for lines in _batches(source):
        if first == 1 and lines and lines[0].startswith(_MARK):
            lines[0] = lines[0].removeprefix(_MARK)
        yield first, lines
        first += len(lines)


def _batches(source: IO[bytes]) -> Iterator[list[bytes]]:
    try:
        descriptor = source.fileno()
    except OSError:
        while lines := list(islice(source, BATCH)):
            yield lines
        return
    pending: list[bytes] = []
    rest = bytearray()
    while piece := os.read(descriptor, _PIECE):
        rest += piece
        if b"\n" in piece:
            *lines, tail = bytes(rest).split(b"\n")
            rest = bytearray(tail)
            pending.extend(lines)
        while len(pending) >= BATCH:
            yield pending[:BATCH]
            pending = pending[BATCH:]
        if pending and not select.select([descriptor], [], [], _PAUSE)[0]:
            yield pending
            pending = []
    if rest:
        pending.append(bytes(rest))
    while pending:
        yield pending[:BATCH]
        pending = pending[BATCH:]
