"""Bodies decoded once: a run asks here for its lines or its frame, and neighbours share the answer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import polars as pl

from ..errors import DamagedLog
from ..frames import decode_frame
from ..storage.base import Encoding, Store

_KEPT = 4
_KEPT_BYTES = 16_000_000


class Bodies:
    """The bodies of one log that were read last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._mutex = threading.Lock()
        self._kept: OrderedDict[int, tuple[int, Any]] = OrderedDict()

    def text(self, ref: int, position: int) -> bytes:
        """The JSON objects of a body, joined by newlines."""
        encoding, data = self._store.body(ref)
        if encoding == Encoding.ARROW:
            raise DamagedLog(position, "a frame stands where JSON should")
        return data

    def lines(self, ref: int, position: int) -> list[bytes]:
        """The JSON objects of a body, one an event."""
        kept = self._recall(ref)
        if kept is None:
            data = self.text(ref, position)
            kept = data.split(b"\n")
            self._keep(ref, kept, len(data))
        return kept  # type: ignore[no-any-return]

    def frame(self, ref: int, position: int, columns: list[str] | None = None) -> pl.DataFrame:
        """The frame of a body, or only some of its columns."""
        kept = self._recall(ref)
        if kept is not None:
            # A clone shares the data, not the object: one frame in two threads can lock both.
            return kept.select(columns) if columns is not None else kept.clone()  # type: ignore[no-any-return]
        encoding, data = self._store.body(ref)
        if encoding != Encoding.ARROW:
            raise DamagedLog(position, "JSON stands where a frame should")
        try:
            frame = decode_frame(data, columns)
        except (Exception, pl.exceptions.PanicException) as error:
            raise DamagedLog(position, f"its frame cannot be decoded ({error})") from error
        if columns is None:
            self._keep(ref, frame, int(frame.estimated_size()))
        return frame

    def _recall(self, ref: int) -> Any:
        with self._mutex:
            found = self._kept.get(ref)
            if found is None:
                return None
            self._kept.move_to_end(ref)
            return found[1]

    def _keep(self, ref: int, value: Any, size: int) -> None:
        if size > _KEPT_BYTES // _KEPT:
            return
        with self._mutex:
            self._kept[ref] = (size, value)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)

    def forget(self) -> None:
        """Nothing that was kept is to be trusted: bodies were moved."""
        with self._mutex:
            self._kept.clear()
