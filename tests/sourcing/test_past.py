"""Effective times, blame, and whole kinds as they stood."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import polars as pl
import pytest

import millstream as ms
from millstream.testing import FakeClock
from sourcing.banking import Account, Deposited, Opened, Withdrawn, account


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock("2024-01-01T12:00:00Z")


@pytest.fixture
def log(home: str | None, clock: FakeClock) -> Iterator[ms.Log]:
    with ms.open(home, clock=clock) as log:
        yield log


@pytest.fixture(params=[Account, account], ids=["class", "decider"])
def accounts(request: pytest.FixtureRequest, log: ms.Log, clock: FakeClock) -> ms.Repository[Account]:
    """In January 1000 were deposited; in March, 200 of it turn out to have been withdrawn in February."""
    log.append("account-1", Opened(owner="Ann"))
    log.append("account-1", Deposited(amount=Decimal(1000)))
    clock.set("2024-02-20T12:00:00Z")
    log.append("account-1", Deposited(amount=Decimal(50)))
    clock.set("2024-03-05T12:00:00Z")
    log.append("account-1", Withdrawn(amount=Decimal(200)), effective="2024-02-10T09:00:00Z")
    clock.set("2024-04-01T00:00:00Z")
    return ms.Repository(log, request.param)


def test_what_was_true_and_what_was_known_are_two_questions(accounts):
    end = "2024-02-28T23:59:59Z"
    assert accounts.get("account-1", at=end).balance == 1050
    assert accounts.get("account-1", at=end, known="2024-03-01T00:00:00Z").balance == 1050
    assert accounts.get("account-1", at=end, known="2024-03-31T00:00:00Z").balance == 850
    assert accounts.get("account-1", at="2024-02-15T00:00:00Z", known="2024-03-31T00:00:00Z").balance == 800
    assert accounts.get("account-1", at="2024-02-09T00:00:00Z", known="2024-03-31T00:00:00Z").balance == 1000


def test_events_are_applied_in_the_order_in_which_they_were_true(accounts):
    found = accounts.get("account-1", at="2024-03-31T00:00:00Z", known="2024-03-31T00:00:00Z")
    assert list(found.entries) == [1000, -200, 50]
    assert list(accounts.get("account-1").entries) == [1000, 50, -200]


def test_known_may_be_a_version_or_a_position(accounts):
    end = datetime(2024, 3, 1, tzinfo=UTC)
    assert accounts.get("account-1", at=end, known=3).balance == 1050
    assert accounts.get("account-1", at=end, known=4).balance == 850
    assert accounts.get("account-1", at=end, known=ms.Position(3)).balance == 1050


@pytest.mark.parametrize("at", [None, 3, ms.Position(3)])
def test_beside_known_a_time_is_needed(accounts, at):
    with pytest.raises(ms.UsageError, match="no time"):
        accounts.get("account-1", at=at, known="2024-03-01T00:00:00Z")


def test_blame_names_the_event_that_changed_each_field_last(accounts):
    found = accounts.blame("account-1")
    assert {name: recorded.version for name, recorded in found.items()} == {"owner": 1, "balance": 4, "entries": 4}
    assert {name: r.version for name, r in accounts.blame("account-1", at=2).items()} == {
        "owner": 1,
        "balance": 2,
        "entries": 2,
    }
    with pytest.raises(ms.StreamNotFound):
        accounts.blame("account-9")


class Numbered(ms.Aggregate, ignore=[Withdrawn]):
    """What its handlers do depends on the version."""

    first: Decimal = Decimal(0)
    seen: list[int] = []

    @ms.on
    def opened(self, event: Opened) -> None:
        self.seen.append(self.version)

    @ms.on
    def deposited(self, event: Deposited) -> None:
        if self.version == 1:
            self.first = event.amount
        self.seen.append(self.version)


def test_handlers_see_the_version_before_the_event_in_whatever_way_it_is_applied(log, accounts, clock):
    numbered = ms.Repository(log, Numbered)
    log.append("account-1", [Deposited(amount=Decimal(n)) for n in range(2)])
    assert numbered.get("account-1").seen == [0, 1, 2, 4, 5]
    *_, last = numbered.history("account-1")
    assert (last.state.version, last.state.first, last.state.seen) == (6, 1000, [0, 1, 2, 4, 5])
    assert {name: recorded.version for name, recorded in numbered.blame("account-1").items()} == {
        "first": 2,
        "seen": 6,
    }
    assert numbered.as_of()["seen"].to_list() == [[0, 1, 2, 4, 5]]
    assert numbered.get("account-1", at="2030-01-01T00:00:00Z", known=log.now()).seen == [0, 1, 2, 4, 5]


def test_a_handler_that_records_is_refused_in_every_past(log, accounts):
    class Eager(ms.Aggregate, ignore="*"):
        @ms.on
        def opened(self, event: Opened) -> None:
            self.record(Withdrawn(amount=Decimal(1)))

    eager = ms.Repository(log, Eager)
    for see in (
        eager.get,
        eager.blame,
        lambda id: list(eager.history(id)),
        lambda id: eager.as_of(),
        lambda id: eager.get(id, at="2030-01-01T00:00:00Z", known=log.now()),
    ):
        with pytest.raises(ms.CannotRecord):
            see("account-1")


def test_a_whole_kind_as_it_stood_is_a_frame(log, accounts, clock):
    log.append("account-2", [Opened(owner="Zoë"), Deposited(amount=Decimal("2.50"))])
    frame = accounts.as_of("2024-03-31T00:00:00Z")
    assert frame["id"].to_list() == ["account-1"]
    frame = accounts.as_of()
    assert frame.select("id", "version", "owner", "balance").rows() == [
        ("account-1", 4, "Ann", Decimal("850.00")),
        ("account-2", 2, "Zoë", Decimal("2.50")),
    ]
    assert frame["entries"].to_list() == [[1000, 50, -200], [Decimal("2.50")]]
    assert accounts.as_of("2024-02-15T00:00:00Z")["balance"].to_list() == [1000]
    assert accounts.as_of("2024-02-15T00:00:00Z", known=log.now())["balance"].to_list() == [800]
    assert accounts.as_of(ms.Position(1)).height == 1
    assert accounts.as_of("2000-01-01T00:00:00Z").height == 0


def test_a_whole_kind_agrees_with_loading_one_by_one(log, clock):
    accounts = ms.Repository(log, Account)
    for n in range(400):
        stream = f"account-{n * 7 % 60}"
        events = [Deposited(amount=Decimal(n)) for _ in range(n % 4 + 1)]
        log.append(stream, events if n % 3 else events[0], effective="2023-05-01T00:00:00Z" if n % 10 == 0 else None)
        log.append(f"noise-{n}", ms.Plain("Noise", {}))
        clock.advance("1s")
    log.append("account-frame", pl.DataFrame({"amount": [Decimal(1), Decimal(2)]}), type="Deposited")
    for position in (0, 1, 2, 77, 300, 555, log.head):
        frame = accounts.as_of(ms.Position(position))
        for id, version, balance in frame.select("id", "version", "balance").rows():
            one = accounts.get(id, at=ms.Position(position))
            assert (one.version, one.balance) == (version, balance)
        seen = {e.stream for e in log.read("account-*", until_position=position + 1)}
        assert set(frame["id"].to_list()) == seen


def test_which_streams_are_meant_must_be_clear(log, accounts):
    with pytest.raises(ms.UsageError, match="a version, of one stream"):
        accounts.as_of(3)
    log.append("savings-1", Opened(owner="Ben"))
    with pytest.raises(ms.UsageError, match="account-, savings-"):
        accounts.as_of()
    assert accounts.as_of(streams="savings-*")["owner"].to_list() == ["Ben"]
    assert accounts.as_of(streams="account-1")["id"].to_list() == ["account-1"]
    assert accounts.as_of(streams="account-*").height == 1


def test_another_kind_among_them_is_an_error(log, accounts):
    log.append("account-7", ms.Plain("OrderPlaced", {}))
    with pytest.raises(ms.WrongAggregate, match="account-7"):
        accounts.as_of(streams="account-*")


def test_a_past_one_cannot_be_written_to(log):
    log.append("account-1", [Opened(owner="Ann"), Deposited(amount=Decimal(1))])
    accounts = ms.Repository(log, Account)
    past = [
        accounts.get("account-1", at=1),
        accounts.get("account-1", at="2024-01-01T12:00:00Z", known=log.now()),
        next(accounts.history("account-1")).state,
    ]
    for each in past:
        with pytest.raises(ms.CannotRecord, match="of the past"):
            each.deposit(5)
    assert log.version("account-1") == 2
