"""How the tests of a contract open the log, and what they append."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import polars as pl
import pytest

from ...events import Event
from ...log import Log


class Colour(Enum):
    RED = "red"


class Address(msgspec.Struct, frozen=True):
    street: str
    number: int


class Everything(Event, type="contract.Everything"):
    """An event with a field of every kind that is promised to come back as it went in."""

    amount: Decimal
    at: datetime
    day: date
    id: UUID
    raw: bytes
    colour: Colour
    address: Address | None
    many: list[int] = [1, 2]
    mapping: dict[str, float] = {}


class Maybe(Event, type="contract.Maybe"):
    x: float | None = None


class Counted(Event, type="contract.Counted"):
    n: int
    by: str = ""


def click_frame(rows: int, start: int = 0) -> pl.DataFrame:
    """A frame of clicks, one a second from 2024-01-01 on."""
    return pl.DataFrame({"user": range(start, start + rows)}).with_columns(
        ts=pl.datetime(2024, 1, 1, time_zone="UTC") + pl.duration(seconds=pl.col("user")),
        page=pl.format("/p/{}", pl.col("user") % 7),
    )


class Opening:
    """What all parts of a contract begin with. One hook: `open`."""

    folder: Path

    @pytest.fixture(autouse=True)
    def _in_folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    @pytest.fixture
    def log(self) -> Iterator[Log]:
        log = self.open()
        yield log
        log.close()

    def open(self, **options: Any) -> Log:
        """Hook: open the log of this test; the same one each time, where it outlives being closed."""
        raise NotImplementedError
