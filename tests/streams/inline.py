"""Processes of a shared flow that are none: each works when it is asked, in the test's own process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import millstream as ms
from millstream.streams import Flow
from millstream.streams.sharing.processes import Working
from millstream.streams.sharing.ranges import Range
from millstream.streams.sharing.share import Share
from millstream.streams.sharing.wire import Ask, Failed, Start, Waits, Work


class Inline:
    pid = 0

    def __init__(self, log: ms.Log, flow: Flow, start: Start) -> None:
        self._share = Share(log, flow, Range(start.index, start.count), start.rows, memory=start.memory)
        self._share.load(start.name, start.position, start.sources, split=start.split)
        self._orders: deque[Iterator[Any]] = deque()

    def tell(self, message: Work | Ask) -> None:
        if isinstance(message, Ask):
            self._orders.append(iter([Waits(self._share.waits(message.sources))]))
        else:
            self._orders.append(self._share.work(message.until, message.rows))

    def get(self, timeout: float) -> Any:
        while self._orders:
            try:
                return next(self._orders[0])
            except StopIteration:
                self._orders.popleft()
            except ms.MillstreamError as error:
                return Failed(error)
        return None

    def ended(self) -> int | None:
        return 0

    def stop(self) -> None:
        self._orders.clear()


def inline(log: ms.Log, flow: Flow) -> Callable[[Start, int], Working]:
    """What begins such a process."""
    return lambda start, count: Inline(log, flow, start)
