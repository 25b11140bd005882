"""Both stores fulfil the contract of a log."""

from functools import partial

import millstream as ms
from millstream.testing.contract import LogContract, SharedLogContract


class TestMemory(LogContract):
    def open(self, **options):
        return ms.open(**options)


class TestSQLite(SharedLogContract):
    def open(self, **options):
        return ms.open(str(self.folder / "log.db"), **options)

    def shared(self):
        return partial(ms.open, str(self.folder / "log.db"))
