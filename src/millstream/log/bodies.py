"""Bodies decoded once: a run asks here for its lines or its frame, and neighbours share the answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from ..conversion import ready
from ..errors import DamagedLog, Trimmed
from ..frames import decode_frame
from ..storage.base import Encoding, Scope
from ..storage.contract import Store
from ..storage.forked import lock
from ..time import iso

if TYPE_CHECKING:
    from .retention.reader import ArchiveReader

_KEPT = 2_048
_KEPT_BYTES = 16_000_000
_LINE = 60
"""Bytes that a line takes in memory beyond its text."""
_KNOWN = 100_000


class Trim(msgspec.Struct, frozen=True):
    """What stands in the place of bodies that were trimmed."""

    at: int
    """When, in microseconds since 1970."""
    by: str
    rule: str
    """What was to be kept, in words: ``keep 30d``."""


class Bodies:
    """The bodies of one log that were read last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._mutex = lock()
        self._kept: OrderedDict[int, tuple[int, Any]] = OrderedDict()
        self._bytes = 0
        self._encodings: dict[int, int] = {}
        """How merged bodies are written: their numbers are never used twice."""
        self._archived: ArchiveReader | None = None

    def text(self, ref: int, position: int) -> bytes:
        """The JSON objects of a body, joined by newlines."""
        encoding, data = self._store.body(ref)
        if encoding > Encoding.ARROW:
            return self._elsewhere(encoding, data, position).text(data, position)
        if encoding == Encoding.ARROW:
            raise DamagedLog(position, "a frame stands where JSON should")
        return data

    def lines(self, ref: int, position: int) -> list[bytes]:
        """The JSON objects of a body, one an event."""
        kept = self._recall(ref)
        if kept is None:
            data = self.text(ref, position)
            kept = data.split(b"\n")
            self._keep(ref, kept, len(data) + _LINE * len(kept))
        return kept  # type: ignore[no-any-return]

    def frame(self, ref: int, position: int, columns: list[str] | None = None) -> pl.DataFrame:
        """The frame of a body, or only some of its columns."""
        kept = self._recall(ref)
        if kept is not None:
            # A clone shares the data, not the object: one frame in two threads can lock both.
            return kept.select(columns) if columns is not None else kept.clone()  # type: ignore[no-any-return]
        encoding, data = self._store.body(ref)
        if encoding > Encoding.ARROW:
            # What the archive's reader keeps is shared by all bodies of a file.
            return self._elsewhere(encoding, data, position).frame(data, position, columns)
        if encoding != Encoding.ARROW:
            raise DamagedLog(position, "JSON stands where a frame should")
        try:
            frame = decode_frame(data, columns)
        except (Exception, pl.exceptions.PanicException) as error:
            raise DamagedLog(position, f"its frame cannot be decoded ({error})") from error
        if columns is None:
            self._keep(ref, frame.clone(), int(frame.estimated_size()))
        return frame

    # --- bodies that are not in the log -------------------------------------------------------------

    def archived(self) -> ArchiveReader:
        """The reader of the log's archives."""
        with self._mutex:
            if self._archived is None:
                from .retention.reader import ArchiveReader

                self._archived = ArchiveReader(self._store)
            return self._archived

    def close(self) -> None:
        """Let go of what was fetched from archives."""
        if self._archived is not None:
            self._archived.close()

    def _elsewhere(self, encoding: int, data: bytes, position: int) -> ArchiveReader:
        if encoding == Encoding.ARCHIVED:
            return self.archived()
        if encoding == Encoding.TRIMMED:
            raise self._trimmed(data, position)
        raise DamagedLog(position, f"its body has the unknown encoding {encoding}")

    def encodings(self, refs: Iterable[int]) -> dict[int, int]:
        """How merged bodies are written; those that are gone are left out."""
        known = self._encodings
        unknown = [ref for ref in refs if ref not in known]
        if unknown:
            if len(known) > _KNOWN:
                known = self._encodings = {}
            known.update({ref: info.encoding for ref, info in self._store.body_infos(unknown).items()})
        return known

    def trimmed(self, refs: set[int]) -> set[int]:
        """Those of some merged bodies that were trimmed."""
        known = self.encodings(refs)
        return {ref for ref in refs if known.get(ref) == Encoding.TRIMMED}

    def refuse(self, ref: int, position: int) -> None:
        """Raise `Trimmed` for a body that was."""
        raise self._trimmed(self._store.body(ref)[1], position)

    def _trimmed(self, data: bytes, position: int) -> Trimmed:
        trim = trim_of(data, position)
        [header] = self._store.page(Scope(), position - 1, position + 1, 1)
        return Trimmed(position, self._store.stream_name(header[1]), iso(trim.at), trim.by, trim.rule)

    def _recall(self, ref: int) -> Any:
        with self._mutex:
            found = self._kept.get(ref)
            if found is None:
                return None
            self._kept.move_to_end(ref)
            return found[1]

    def _keep(self, ref: int, value: Any, size: int) -> None:
        if size > _KEPT_BYTES // 4:
            return
        with self._mutex:
            self._bytes += size - self._kept.pop(ref, (0, None))[0]
            self._kept[ref] = (size, value)
            while self._bytes > _KEPT_BYTES or len(self._kept) > _KEPT:
                self._bytes -= self._kept.popitem(last=False)[1][0]

    def forget(self) -> None:
        """Nothing that was kept is to be trusted: bodies were moved."""
        with self._mutex:
            self._kept.clear()
            self._bytes = 0
            self._encodings = {}


def trim_of(data: bytes, position: int) -> Trim:
    """What a trimmed body says of itself.

    Raises:
        DamagedLog: It cannot be read.
    """
    try:
        return msgspec.json.decode(data, type=ready(Trim))
    except msgspec.MsgspecError as error:
        raise DamagedLog(position, f"what stands for its trimmed body cannot be read ({error})") from error
