"""Reading ahead for a flow that has much to catch up with: frames are decoded while it works on those before."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator, Sequence
from queue import Empty, Full, Queue

from .needs import Needs
from .replay import Labelled

_GROUPS = 2
"""So many groups are read ahead."""

_TICK = 0.05
"""Seconds after which a reader that waits looks whether anybody still wants what it has."""

Group = list[Labelled]


def worth_it() -> bool:
    """Whether there is a core for it."""
    return len(os.sched_getaffinity(0)) > 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) > 1


def read_ahead(groups: Iterator[Group], needs: Sequence[Needs]) -> Generator[Group]:
    """The groups, each with its frames decoded in another thread. Close it when no more are wanted.

    A frame goes from one thread to the other: two never look at one at the same time.
    """
    wanted = [None if each.wanted is None else sorted(each.wanted) for each in needs]
    ready: Queue[Group | BaseException | None] = Queue(_GROUPS)
    over = threading.Event()

    def put(what: Group | BaseException | None) -> None:
        while not over.is_set():
            try:
                ready.put(what, timeout=_TICK)
                return
            except Full:
                pass

    def read() -> None:
        try:
            for group in groups:
                for number, run in group:
                    if over.is_set():
                        return
                    if number >= 0:
                        run.read_ahead(wanted[number])
                put(group)
            put(None)
        except BaseException as error:  # Whoever asks gets it.
            put(error)

    reader = threading.Thread(target=read, name="millstream-flow-reader", daemon=True)
    reader.start()
    try:
        while True:
            found = ready.get()
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        over.set()
        while reader.is_alive():
            try:
                ready.get_nowait()
            except Empty:
                reader.join(_TICK)
