"""Files of a depot on this machine: where they lie, if they lie here; else fetched once, and kept for a while."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from pathlib import Path

from ...errors import StorageError
from ...storage.forked import lock
from ..depots import Depot

_KEPT_BYTES = 1_000_000_000
"""How much of what was fetched is kept on disk until the log is closed."""


class Fetched:
    """The files of a depot, to be read from this machine. What is fetched is in a temporary folder until `close`."""

    def __init__(self, depot: Depot) -> None:
        self.depot = depot
        self._mutex = lock()
        self._folder: str | None = None
        self._files: dict[str, Path] = {}
        self._fetching: dict[str, threading.Lock] = {}
        self._bytes = 0

    def file(self, name: str) -> Path:
        """A local file with the content of one of the depot's. It is not to be changed.

        Raises:
            DepotFileMissing: It is not there.
            DepotError, DepotUnavailable: The depot refuses, or does not answer.
            StorageError: There is no room for it on this machine.
        """
        local = self.depot.local(name)
        if local is not None:
            return local
        with self._mutex:
            one_at_a_time = self._fetching.setdefault(name, lock())
        with one_at_a_time:
            with self._mutex:
                found = self._files.get(name)
            if found is not None and found.exists():
                return found
            data = self.depot.get(name)
            try:
                return self._keep(name, data)
            except OSError as error:
                raise StorageError(
                    f"what was fetched from {self.depot.location} cannot be kept: {error.strerror}",
                    hint="See that there is room; TMPDIR says where such files are kept",
                ) from error

    def _keep(self, name: str, data: bytes) -> Path:
        with self._mutex:
            if self._folder is None:
                self._folder = tempfile.mkdtemp(prefix="millstream-archive-")
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            descriptor, path = tempfile.mkstemp(dir=self._folder, suffix=".parquet")
            with open(descriptor, "wb") as out:
                out.write(data)
            self._forget(name)
            self._files[name] = Path(path)
            self._bytes += len(data)
            while self._bytes > _KEPT_BYTES and len(self._files) > 1:
                self._forget(next(iter(self._files)))
            return Path(path)

    def put(self, name: str, content: bytes | Path) -> None:
        """See `Depot.put`; what was fetched before is forgotten."""
        self.depot.put(name, content)
        with self._mutex:
            self._forget(name)

    def delete(self, name: str) -> None:
        """See `Depot.delete`; what was fetched before is forgotten."""
        self.depot.delete(name)
        with self._mutex:
            self._forget(name)

    def _forget(self, name: str) -> None:
        path = self._files.pop(name, None)
        if path is not None and path.exists():
            self._bytes -= path.stat().st_size
            path.unlink()  # whoever reads it has it open

    def close(self) -> None:
        """Let go of all that was fetched."""
        with self._mutex:
            self._files.clear()
            self._bytes = 0
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None
