"""The processes of a shared flow, as the one that started them sees them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from queue import Full, Queue
from typing import Any, Protocol

from .wire import packed, receive, search_path, send

_WAITING = 8
"""So many messages of a process wait to be taken in; it waits with the next."""

_PROGRAM = "import sys; sys.path[:] = {path!r}; from millstream.streams.sharing.child import main; main()"


class Working(Protocol):
    """Whoever works on a range."""

    @property
    def pid(self) -> int:
        """The number of its process."""

    def tell(self, message: Any) -> None:
        """Give it something to do."""

    def get(self, timeout: float) -> Any:
        """What it says next; None when it has ended."""

    def ended(self) -> int | None:
        """What it has ended with."""

    def stop(self) -> None:
        """End it."""


class Process:
    """One of them.

    It ends when its input closes, and so when this process does, even by a kill.
    """

    def __init__(self, start: Any, count: int) -> None:
        environment = dict(os.environ)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment.setdefault("POLARS_MAX_THREADS", str(max(1, cores // count)))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=search_path())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._messages: Queue[Any] = Queue(_WAITING)
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read, name="millstream-flow-share", daemon=True)
        self._reader.start()
        self.tell(start)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def tell(self, message: Any) -> None:
        """Send it a message; one that has ended gets none, which `get` tells."""
        assert self._process.stdin is not None
        with suppress(OSError):
            send(self._process.stdin, packed(message))

    def get(self, timeout: float) -> Any:
        """Its next message; None when it has ended.

        Raises:
            Empty: There is none in this time.
        """
        return self._messages.get(timeout=timeout)

    def ended(self) -> int | None:
        """What it has ended with."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(5)
        return None

    def stop(self) -> None:
        """End it, whatever it does."""
        self._over.set()
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                message = receive(self._process.stdout)
            except Exception as error:  # What cannot be read is as good as nothing.
                message = error
            while not self._over.is_set():
                try:
                    self._messages.put(message, timeout=0.05)
                    break
                except Full:
                    pass
            if message is None or isinstance(message, Exception) or self._over.is_set():
                return
