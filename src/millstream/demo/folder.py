"""The folder that the demo writes into: made, taken, and emptied of what an earlier demo left there.

With ``--log`` the log itself is elsewhere; see `schema`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import UsageError
from .schema import Schema

_MARK = ".millstream-demo"
_FILES = ("flights.db", "board.db", "operations.sqlite")


class Folder:
    """A folder of the demo's own, held while the demo runs.

    Only files of the demo's names are ever removed, and only from a folder that a demo has made or found empty.

    Args:
        path: The folder; made when it is not there.
        log: Where the log is, if not in the folder.

    Raises:
        UsageError: It is no folder, cannot be written, holds something else than an earlier demo, or
            another demo is running in it.
    """

    def __init__(self, path: str, log: Schema | None = None) -> None:
        self.path = Path(path)
        self._elsewhere = log
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / _MARK).exists() and any(self.path.iterdir()):
                raise UsageError(f"the folder {path} holds other things", hint="Give an empty or a new one with --out")
            self._mark = os.open(self.path / _MARK, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise UsageError(f"{path} cannot be used: {error.strerror}", hint="Give a folder with --out") from error
        try:
            fcntl.flock(self._mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._mark)
            raise UsageError(f"another demo is running in {path}", hint="End it, or give another with --out") from error
        for left in list(self.path.iterdir()):
            if left.name.startswith(_FILES):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    @property
    def log(self) -> str:
        """The log, as `millstream.open` takes it."""
        return self._elsewhere.url if self._elsewhere is not None else str(self.path / _FILES[0])

    @property
    def shown_log(self) -> str:
        """The same for people: without a password."""
        return self._elsewhere.location if self._elsewhere is not None else self.log

    @property
    def board(self) -> str:
        """The path of the read model."""
        return str(self.path / _FILES[1])

    @property
    def operations(self) -> str:
        """The path of the database that the other process writes."""
        return str(self.path / _FILES[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._mark)
