"""Runs with their texts, the next ones being read while one is decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...log import Run

LONG, AHEAD = 1_000, 8
"""A run of so many changes is read ahead; and how many runs are."""


def with_texts(runs: Iterable[Run]) -> Iterator[tuple[Run, bytes]]:
    """Runs with the text of their changes (none for other events). Long ones are read ahead on a thread: what one
    waits for the database, the other decodes."""
    waiting: deque[tuple[Run, Future[bytes] | bytes]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="millstream-table") as pool:
        for run in runs:
            if run.type != "Change":
                waiting.append((run, b""))
            elif run.count >= LONG:
                waiting.append((run, pool.submit(run.text)))
            else:
                waiting.append((run, run.text()))
            if len(waiting) > AHEAD:
                yield _ready(waiting.popleft())
        while waiting:
            yield _ready(waiting.popleft())


def _ready(each: tuple[Run, Future[bytes] | bytes]) -> tuple[Run, bytes]:
    run, text = each
    return run, text if isinstance(text, bytes) else text.result()
