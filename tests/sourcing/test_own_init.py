"""Aggregates with an ``__init__`` of their own."""

from __future__ import annotations

from typing import Any

import pytest

import millstream as ms


class Ticked(ms.Event, type="OwnInitTicked"):
    pass


class Clock(ms.Aggregate):
    ticks: int = 0

    def tick(self) -> None:
        self.record(Ticked())

    @ms.on
    def ticked(self, event: Ticked) -> None:
        self.ticks += 1


class Begun(Clock):
    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.ticks = 10


class NotBegun(Clock):
    def __init__(self, id: str) -> None:
        self.ticks = 10


class AsksForMore(Clock):
    def __init__(self, id: str, more: int) -> None:
        super().__init__(id)


class AsksForNothing(Clock):
    def __init__(self) -> None:
        super().__init__()


class Faulty(Clock):
    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.ticks = len(3)  # type: ignore[arg-type]


def test_one_that_calls_the_bases_begins_as_it_says() -> None:
    clocks = ms.Repository(ms.open(), Begun)
    clocks.update("clock-1", lambda clock: clock.tick())
    assert clocks.get("clock-1").ticks == 11


@pytest.mark.parametrize(
    ("cls", "told"), [(NotBegun, "does not call"), (AsksForMore, "alone"), (AsksForNothing, "alone")]
)
def test_one_that_cannot_be_made_of_a_streams_name_is_refused(cls: Any, told: str) -> None:
    with pytest.raises(ms.UsageError, match=told):
        ms.Repository(ms.open(), cls).update("clock-1", lambda clock: clock.tick())


def test_a_fault_inside_it_is_told_as_it_is() -> None:
    with pytest.raises(TypeError, match="no len"):
        ms.Repository(ms.open(), Faulty).update("clock-1", lambda clock: clock.tick())
