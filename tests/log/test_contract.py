"""Every store fulfils the contract of a log."""

from functools import partial

import pytest

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


class TestPostgres(SharedLogContract):
    @pytest.fixture(autouse=True)
    def _in_database(self, postgres):
        self.url = postgres

    def open(self, **options):
        return ms.open(self.url, **options)

    def shared(self):
        return partial(ms.open, self.url)
