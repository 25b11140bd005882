"""A transaction on its way from the binary log: its rows by table, and what its statements did."""

from __future__ import annotations

from typing import Any

import msgspec

from ...errors import CaptureError
from ..spill import Chunk, Spill
from .faults import RESYNC
from .layout import Layout
from .rows import Table
from .values import EPOCH_DAYS, SECONDS

SPILL_BYTES = 16 << 20
"""What a transaction may hold in memory; beyond, its rows go to a file."""


class Part(msgspec.Struct):
    """Rows of one table in one transaction."""

    table: Table
    lines: list[bytes] = []
    ranges: list[list[int]] = []
    """The rows' numbers within the transaction."""
    chunks: list[Chunk] = []
    """What went to the file before."""


class Note(msgspec.Struct):
    """What a statement did to a table.

    Attributes:
        layout: Its columns from here on; None when it was emptied or is gone.
        renamed: Old names of columns with the new ones.
    """

    table: str
    layout: Layout | None
    renamed: dict[str, str] = {}


class Open(msgspec.Struct):
    """A transaction whose end has not come yet.

    Attributes:
        begun: It ends with a commit; otherwise, with its only statement.
        ignored: Its statement is one half of an ALTER that is told in two.
    """

    gtid: str | None
    micros: int
    time: bytes
    begun: bool
    ignored: bool = False
    parts: dict[str, Part] = {}
    order: list[Part | Note] = []
    rows: int = 0
    size: int = 0
    last: Any = None
    spill: Spill | None = None
    marks: dict[str, int] = {}
    """Savepoints: how many rows there were."""


class Committed(msgspec.Struct):
    """A transaction that was committed.

    Attributes:
        position: Where it ends, as one number: the log file's and the offset.
        order: Its rows by table, and what its statements did to tables.
    """

    file: str
    offset: int
    position: int
    gtid: str | None
    micros: int
    order: list[Part | Note]
    rows: int
    spill: Spill | None


def position_of(file: str, offset: int) -> int:
    """A place in the binary log as one number, in the order of the log."""
    return int(file.rpartition(".")[2]) << 32 | min(offset, 0xFFFFFFFF)


def spill(tx: Open) -> None:
    """Write what a transaction holds to its file."""
    if tx.spill is None:
        tx.spill = Spill()
    for part in tx.order:
        if isinstance(part, Part) and part.lines:
            part.chunks += tx.spill.write(part.lines)
            part.lines = []
    tx.size = 0


def undo(tx: Open, rows: int, location: str) -> None:
    """Take back the rows of a transaction from a number on."""
    if tx.last is not None:
        tx.last.ranges[-1][1] = tx.rows - 1
    if tx.spill is not None and rows < tx.rows:
        raise CaptureError(f"{location}: a large transaction was taken back in part", hint=RESYNC)
    for part in tx.order:
        if isinstance(part, Part):
            part.ranges = [[low, min(high, rows - 1)] for low, high in part.ranges if low < rows]
            del part.lines[sum(high - low + 1 for low, high in part.ranges) :]
    tx.order = [part for part in tx.order if not isinstance(part, Part) or part.lines]
    tx.parts, tx.last, tx.rows = {}, None, rows


def time_text(micros: int) -> bytes:
    """A time as lines have it, always of one width."""
    seconds, micros = divmod(micros, 1_000_000)
    return b"%b%b.%06dZ" % (EPOCH_DAYS[seconds // 86_400], SECONDS[seconds % 86_400], micros)
