"""Aggregates over events that have changed their names and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import millstream as ms


class Paid(ms.Event, type="evolving.Paid", schema=2, names=["evolving.Payment"]):
    cents: int


class Refunded(ms.Event, type="evolving.Refunded"):
    cents: int


@ms.upcast(Paid, since=2, into=[Refunded])
def in_cents(data: dict[str, Any]) -> Any:
    """Whole money became cents; refunds were payments below 0; those of 0 are read no more; 1000 was two of 500."""
    amount = data["amount"]
    if amount == 0:
        return []
    if amount == 1000:
        return [{"cents": 50_000}, {"cents": 50_000}]
    if amount < 0:
        return ms.Plain("evolving.Refunded", {"cents": -amount * 100})
    return {"cents": amount * 100}


class Till(ms.Aggregate):
    cents: int = 0
    seen: list[str] = []

    @ms.on
    def paid(self, event: Paid) -> None:
        self.cents += event.cents
        self.seen.append(f"paid at {self.version}")

    @ms.on
    def refunded(self, event: Refunded) -> None:
        self.cents -= event.cents
        self.seen.append(f"refunded at {self.version}")


@pytest.fixture
def log(home: str | None) -> Iterator[ms.Log]:
    with ms.open(home) as log:
        yield log


def old(amount: int, type: str = "evolving.Paid") -> ms.Plain:
    return ms.Plain(type, {"amount": amount}, schema=1)


@pytest.mark.parametrize("options", [{}, {"cache": 0, "snapshot_every": 1}, {"snapshot_every": None}])
def test_handlers_get_todays_events_and_versions_are_those_of_the_stream(log, options):
    tills = ms.Repository(log, Till, **options)
    log.append("till-1", old(5, "evolving.Payment"))
    log.append("till-1", [old(-2), old(0), old(1000), old(7)])
    log.append("till-1", Paid(cents=1))
    for _ in range(2):
        till = tills.get("till-1")
        assert (till.cents, till.version) == (500 - 200 + 100_000 + 700 + 1, 6)
    assert till.seen == ["paid at 0", "refunded at 1", "paid at 3", "paid at 3", "paid at 4", "paid at 5"]
    assert tills.get("till-1", at=2).cents == 300
    assert tills.get("till-1", at=3).version == 3
    assert tills.get("till-1", at=4).cents == 100_300
    assert [step.state.cents for step in tills.history("till-1")] == [500, 300, 50_300, 100_300, 101_000, 101_001]
    assert tills.as_of().select("id", "version", "cents").rows() == [("till-1", 6, 101_001)]


@pytest.mark.parametrize("options", [{}, {"cache": 0}])
def test_a_stream_whose_last_event_is_read_no_more_can_be_changed(log, options):
    tills = ms.Repository(log, Till, **options)
    log.append("till-1", [old(5), old(0)])
    tills.update("till-1", lambda till: till.record(Paid(cents=1)))
    log.append("till-1", old(0))
    with tills.edit("till-1") as till:
        assert till.version == 4
        till.record(Paid(cents=1))
    assert tills.get("till-1").cents == 502
    assert tills.get("till-1").version == log.version("till-1") == 5


def test_an_event_that_cannot_be_brought_up_to_date_is_named(log):
    log.append("till-1", [old(5), ms.Plain("evolving.Paid", {"oops": 1}, schema=1)])
    tills = ms.Repository(log, Till)
    assert tills.get("till-1", at=1).cents == 500
    with pytest.raises(ms.UpcastFailed, match="position 2"):
        tills.get("till-1")
    with pytest.raises(ms.UpcastFailed, match="position 2"):
        tills.as_of()
