"""Reading what is in an archive: the rows of its files, fetched when they are first asked for, and kept for a while."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import polars as pl

from ...conversion import ready
from ...errors import DamagedLog, DepotError, DepotFileChanged
from ...frames import MAX_ROWS, decode_frame
from ...storage.contract import Store
from ...storage.forked import check_frames, lock
from ..depots import TIMEOUT, open_depot
from ..framing import ENVELOPE
from .fetched import Fetched
from .ledger import Ledger

WINDOW = MAX_ROWS
"""Rows of a file that are read at once: its row groups have so many."""
COLUMNS, OBJECTS, BODIES = "columns", "objects", "bodies"
"""How the rows of a file are laid out: a column for each field; JSON objects in `_data`; Arrow bodies in `_body`."""

_KEPT_BYTES = 64_000_000
_LOCKS = 16
_Result = TypeVar("_Result")


class Pointer(msgspec.Struct, frozen=True):
    """What stands in the log in the place of bodies that were archived: rows of a file of an archive."""

    archive: str
    file: str
    sha256: str
    """Of the whole file."""
    layout: str
    row: int
    """The row of its first event; the first of the file is 0."""
    rows: int


def pointer_of(data: bytes, position: int) -> Pointer:
    """The pointer that a body is.

    Raises:
        DamagedLog: It cannot be read.
    """
    try:
        return msgspec.json.decode(data, type=ready(Pointer))
    except msgspec.MsgspecError as error:
        raise DamagedLog(position, f"what points to its archived body cannot be read ({error})") from error


class ArchiveReader:
    """The archives of one log, to be read."""

    def __init__(self, store: Store) -> None:
        self.ledger = Ledger(store)
        self._timeout = TIMEOUT
        self._mutex = lock()
        self._locks = [lock() for _ in range(_LOCKS)]
        self._open: dict[str, Fetched] = {}
        self._checked: dict[tuple[str, str], tuple[object, ...]] = {}
        """What the files whose checksums were found right look like."""
        self._windows: OrderedDict[tuple[object, ...], tuple[int, pl.DataFrame]] = OrderedDict()
        self._bytes = 0

    def text(self, data: bytes, position: int) -> bytes:
        """The JSON objects of a body, joined by newlines."""
        pointer = pointer_of(data, position)
        lines: list[str] = self._rows(pointer, ["_data"])["_data"].to_list()
        return "\n".join(lines).encode()

    def frame(self, data: bytes, position: int, columns: list[str] | None) -> pl.DataFrame:
        """The frame of a body, or only some of its columns."""
        return self._rows(pointer_of(data, position), columns)

    def _rows(self, pointer: Pointer, columns: list[str] | None) -> pl.DataFrame:
        end = pointer.row + pointer.rows
        if pointer.layout == BODIES:
            frame = self._window(pointer, None, None).slice(pointer.row, pointer.rows)
            return frame if columns is None else frame.select(columns)
        parts = []
        for number in range(pointer.row // WINDOW, (end - 1) // WINDOW + 1):
            begin = number * WINDOW
            low = max(pointer.row - begin, 0)
            parts.append(self._window(pointer, number, columns).slice(low, min(end - begin, WINDOW) - low))
        return parts[0] if len(parts) == 1 else pl.concat(parts)

    def _window(self, pointer: Pointer, number: int | None, columns: list[str] | None) -> pl.DataFrame:
        """Some rows of a file, read by one thread for all that want them."""
        check_frames()
        key = (pointer.archive, pointer.file, number, None if columns is None else tuple(columns))
        with self._locks[hash(key) % _LOCKS]:
            with self._mutex:
                found = self._windows.get(key)
                if found is not None:
                    self._windows.move_to_end(key)
                    return found[1]
            frame = self._with(pointer.archive, lambda files: self._read(files, pointer, number, columns))
            size = int(frame.estimated_size())
            with self._mutex:
                self._windows[key] = (size, frame)
                self._bytes += size
                while self._bytes > _KEPT_BYTES and len(self._windows) > 1:
                    self._bytes -= self._windows.popitem(last=False)[1][0]
            return frame

    def _read(self, files: Fetched, pointer: Pointer, number: int | None, columns: list[str] | None) -> pl.DataFrame:
        name = name_of(pointer.archive, pointer.file)
        for last in (False, True):
            path = self.checked(files, pointer)
            try:
                return read_rows(path, pointer.layout, number, columns)
            except (Exception, pl.exceptions.PanicException) as error:
                if last or path.exists():
                    raise DepotFileChanged(files.depot.location, name, f"it cannot be read ({error})") from error
        raise AssertionError

    def checked(self, files: Fetched, pointer: Pointer) -> Path:
        """A local file with the content of an archive's, its checksum compared unless it was before.

        Raises:
            DepotError: It is not as the log has put it there, or cannot be had.
        """
        key = (pointer.archive, pointer.file)
        name = name_of(pointer.archive, pointer.file)
        path = files.file(name)
        stat = path.stat()
        looks = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if self._checked.get(key) != looks:
            if checksum(path) != pointer.sha256:
                raise DepotFileChanged(files.depot.location, name)
            self._checked[key] = looks
        return path

    # --- depots -------------------------------------------------------------------------------------

    @property
    def timeout(self) -> float:
        """The longest wait for an object store, in seconds."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout = seconds
        self.close()

    def files(self, archive: str) -> Fetched:
        """The files of the depot that an archive is in, as it is known so far.

        Raises:
            DepotError: The log does not say where it is.
        """
        with self._mutex:
            found = self._open.get(archive)
            if found is None:
                location = self.ledger.archives.get(archive) or self.ledger.refresh().archives.get(archive)
                if location is None:
                    raise DepotError(
                        f"archive {archive}", "the log does not say where it is", hint="Run `millstream verify`"
                    )
                found = self._open[archive] = Fetched(open_depot(location, timeout=self._timeout))
            return found

    def _with(self, archive: str, work: Callable[[Fetched], _Result]) -> _Result:
        """Do something with an archive's files; once more, if they turn out to have moved."""
        files = self.files(archive)
        try:
            return work(files)
        except DepotFileChanged:
            raise
        except DepotError:
            if self.ledger.refresh().archives.get(archive) in (None, files.depot.location):
                raise
        self.close()
        return work(self.files(archive))

    def close(self) -> None:
        """Let go of all that was fetched."""
        with self._mutex:
            found = list(self._open.values())
            self._open.clear()
            self._checked.clear()
            self._windows.clear()
            self._bytes = 0
        for files in found:
            files.close()


def name_of(archive: str, file: str) -> str:
    """The name of an archive's file in its depot, which may hold the archives of several logs."""
    return f"{archive}/{file}"


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_rows(path: Path, layout: str, number: int | None, columns: list[str] | None) -> pl.DataFrame:
    """A window of a file's rows, or all that it holds; without the envelope's columns unless they are named."""
    if layout == BODIES:
        bodies = pl.read_parquet(path, columns=["_body"], glob=False, hive_partitioning=False)["_body"]
        return pl.concat([decode_frame(body) for body in bodies]).rechunk()
    lazy = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    if columns is None:
        columns = [name for name in pl.read_parquet_schema(path) if name not in ENVELOPE]
    if number is not None:
        lazy = lazy.slice(number * WINDOW, WINDOW)
    return lazy.select(columns).collect()
