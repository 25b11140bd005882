"""Reading ahead for a flow that has much to catch up with: rows are decoded, and sent through the first stages where
these have no memory, while it works on those before."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator, Sequence
from queue import Empty, Full, Queue

from .pipeline import Pipeline
from .replay import Labelled, frames
from .steps import Prepared, SourceState

_GROUPS = 2
"""So many groups are read ahead."""

_TICK = 0.05
"""Seconds after which a reader that waits looks whether anybody still wants what it has."""

Group = list[Labelled]

Taken = tuple[Group, list[Prepared] | None]
"""A group, and its rows if they are prepared."""


def has_spare_core() -> bool:
    """Whether there is one for the reader."""
    return len(os.sched_getaffinity(0)) > 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) > 1


def read_ahead(groups: Iterator[Group], pipeline: Pipeline, sources: Sequence[SourceState]) -> Generator[Taken]:
    """The groups, each with its frames decoded in another thread; and its rows prepared, if there is only one source.
    Close it when no more are wanted.

    A frame goes from one thread to the other: two never look at one at the same time.

    Args:
        sources: What is remembered of the flow's sources before.
    """
    wanted = [None if each.wanted is None else sorted(each.wanted) for each in pipeline.needs]
    alone = len(sources) == 1 and pipeline.sources[0].idle is None
    ready: Queue[Taken | BaseException | None] = Queue(_GROUPS)
    over = threading.Event()

    def put(what: Taken | BaseException | None) -> None:
        while not over.is_set():
            try:
                ready.put(what, timeout=_TICK)
                return
            except Full:
                pass

    def read() -> None:
        held = sources
        try:
            for group in groups:
                for number, run in group:
                    if over.is_set():
                        return
                    if number >= 0:
                        run.read_ahead(wanted[number])
                prepared: list[Prepared] | None = [] if alone else None
                if prepared is not None:
                    for rows in frames(pipeline, held, group):
                        # While the flow waits, it is faster to share the work.
                        prepared.append(pipeline.prepare(held, rows, fill=True, shaped=not ready.empty()))
                        held = prepared[-1].sources
                put((group, prepared))
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
        # Who forgets it may have it closed by the reader itself, whenever rubbish is collected there.
        while reader is not threading.current_thread() and reader.is_alive():
            try:
                ready.get_nowait()
            except Empty:
                reader.join(_TICK)
