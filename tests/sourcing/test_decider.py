"""Deciders: the same repository, over pure functions and states of any class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import pytest

import millstream as ms
from sourcing.banking import Deposit, Deposited, Open, Opened, State, Withdraw, Withdrawn, account, decide, evolve


@pytest.fixture
def log(home: str | None) -> Iterator[ms.Log]:
    with ms.open(home) as log:
        yield log


@pytest.fixture
def accounts(log: ms.Log) -> Any:
    accounts = ms.Repository(log, account)
    accounts.decide("account-1", Open("Ann"))
    accounts.decide("account-1", Deposit(1000))
    accounts.decide("account-1", Withdraw(200))
    return accounts


def test_commands_are_decided_on_the_state_and_what_follows_is_appended(log, accounts):
    assert accounts.get("account-1") == State("Ann", Decimal(800), (Decimal(1000), Decimal(-200)))
    assert [e.type for e in log.read("account-1")] == ["Opened", "Deposited", "Withdrawn"]


def test_a_rejected_command_leaves_nothing(log, accounts):
    with pytest.raises(ms.Rejected, match="not enough"):
        accounts.decide("account-1", Withdraw(5000))
    assert log.version("account-1") == 3


def test_update_takes_a_function_of_the_state_that_gives_events(accounts):
    accounts.update("account-1", lambda state: [Deposited(amount=state.balance), Withdrawn(amount=Decimal(1))])
    assert accounts.get("account-1").balance == 1599
    assert accounts.update("account-1", lambda state: None).count == 0


def test_edit_gives_the_state_to_be_recorded_on(accounts):
    with accounts.edit("account-1") as loaded:
        assert loaded.state.balance == 800
        loaded.record(Deposited(amount=Decimal(5)), tags=["gift"])
        assert loaded.state.balance == 805
    assert accounts.get("account-1").balance == 805
    with pytest.raises(ms.CannotRecord, match="was saved"):
        loaded.record(Deposited(amount=Decimal(5)))


def test_the_past_is_there_as_well(accounts):
    assert accounts.get("account-1", at=2).balance == 1000
    assert [step.state.balance for step in accounts.history("account-1")] == [0, 1000, 800]
    assert accounts.diff("account-1", 1, 3).changes["balance"] == ms.Changed(Decimal(0), Decimal(800))
    assert {name: recorded.type for name, recorded in accounts.blame("account-1").items()} == {
        "owner": "Opened",
        "balance": "Withdrawn",
        "entries": "Withdrawn",
    }


def test_drafts_keep_their_tags_and_effective_times(log):
    def decide(state: int, command: int) -> ms.Draft:
        return ms.Draft(Deposited(amount=Decimal(command)), tags=["a"], effective="2024-01-01T00:00:00Z")

    repository = ms.Repository(log, ms.Decider(0, decide, lambda state, event: state + int(event.amount)))
    repository.decide("account-1", 5)
    [recorded] = log.read("account-1")
    assert recorded.tags == ("a",)
    assert recorded.effective is not None
    assert recorded.effective.year == 2024


class Point(msgspec.Struct):
    x: int = 0
    seen: list[str] = []


class Bag:
    def __init__(self) -> None:
        self.items: dict[str, int] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bag) and self.items == other.items

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Shelf:
    items: list[str]


def moved(point: Point, event: Deposited) -> Point:
    point.x += int(event.amount)
    point.seen.append("one")
    return point


def put(bag: Bag, event: Deposited) -> Bag:
    bag.items[str(event.amount)] = 1
    return bag


def shelved(shelf: Shelf, event: Deposited) -> Shelf:
    return Shelf([*shelf.items, str(event.amount)])


def counted(total: dict[str, int], event: Deposited) -> dict[str, int]:
    return {**total, str(event.amount): 1}


@pytest.mark.parametrize(
    ("initial", "evolve", "expected"),
    [
        (Point(), moved, Point(6, ["one", "one", "one"])),
        (Point, moved, Point(6, ["one", "one", "one"])),
        (Bag, put, None),
        (Shelf([]), shelved, Shelf(["1", "2", "3"])),
        ({}, counted, {"1": 1, "2": 1, "3": 1}),
        (0, lambda total, event: total + int(event.amount), 6),
    ],
)
@pytest.mark.parametrize("options", [{}, {"cache": 0}, {"snapshot_every": 1, "snapshot_after": None, "cache": 0}])
def test_the_state_may_be_of_any_class_even_one_that_is_changed_in_place(log, initial, evolve, expected, options):
    decider = ms.Decider(initial, lambda state, n: Deposited(amount=Decimal(n)), evolve)
    repository = ms.Repository(log, decider, **options)
    for n in (1, 2, 3):
        repository.decide("thing-1", n)
    found = repository.get("thing-1")
    if expected is None:
        assert found.items == {"1": 1, "2": 1, "3": 1}
    else:
        assert found == expected
    # What a caller does to it does not reach the next one.
    if isinstance(found, Point):
        found.x = 99
        found.seen.clear()
        assert repository.get("thing-1") == expected
    assert len(list(repository.history("thing-1"))) == 3
    assert decider.begin() == Point() if isinstance(found, Point) else True
    if options.get("snapshot_every"):
        assert repository.snapshots.count("thing-1") == 3


def test_an_event_that_evolve_does_not_declare_is_an_error(log, accounts):
    log.append("account-1", ms.Plain("Frozen", {}))
    with pytest.raises(ms.HandlerMissing, match="Account finds 'Frozen' at position 4") as caught:
        accounts.get("account-1")
    assert "annotation of the event that evolve takes" in caught.value.hint
    ignoring = ms.Repository(log, ms.Decider(State(), decide, evolve, ignore=["Frozen"]))
    assert ignoring.get("account-1").balance == 800


def test_an_evolve_that_declares_no_types_gets_all(log):
    def seen(state: tuple[str, ...], event: Any) -> tuple[str, ...]:
        return (*state, event.type if isinstance(event, ms.Plain) else type(event).__name__)

    log.append("account-1", [Opened(owner="Ann"), ms.Plain("Frozen", {})])
    log.close_stream("account-1")
    repository = ms.Repository(log, ms.Decider((), lambda state, command: None, seen))
    assert repository.get("account-1") == ("Opened", "Frozen")


def test_a_decision_that_gives_no_events_is_refused(log):
    for wrong in ("Deposited", 5, {"a": 1}, [Deposited(amount=Decimal(1)), "x"]):
        repository = ms.Repository(log, ms.Decider(0, lambda s, c, w=wrong: w, lambda s, e: s))
        with pytest.raises(ms.UsageError, match="no event"):
            repository.decide("account-1", 1)
    assert log.head == 0


def test_a_command_is_no_change(accounts):
    for ask in (accounts.update, accounts.create):
        with pytest.raises(ms.UsageError, match=r"is no function.*repository.decide"):
            ask("account-2", Open("Ben"))


def test_what_is_no_decider_is_refused(log):
    with pytest.raises(ms.UsageError, match="no kind of aggregate"):
        ms.Repository(log, State)  # type: ignore[call-overload]
    with pytest.raises(ms.UsageError, match="no function"):
        ms.Decider(State(), None, evolve)  # type: ignore[arg-type]
    with pytest.raises(ms.UsageError, match="takes no event"):
        ms.Decider(State(), decide, lambda state: state)  # type: ignore[arg-type, misc]

    class Thing(ms.Aggregate):
        pass

    with pytest.raises(ms.UsageError, match="has methods"):
        ms.Repository(log, Thing).decide("thing-1", 1)  # type: ignore[arg-type]


def test_an_evolve_that_returns_nothing_is_named(log):
    def forgetful(state: int, event: Deposited) -> int:
        state += int(event.amount)  # and no return

    def closing(state: int, event: Deposited) -> int | None:
        return None

    log.append("account-1", Deposited(amount=Decimal(5)))
    with pytest.raises(ms.UsageError, match="forgetful returned None"):
        ms.Repository(log, ms.Decider(0, decide, forgetful)).get("account-1")
    assert ms.Repository(log, ms.Decider(0, decide, closing)).get("account-1") is None
    decision = ms.Decision(
        query=lambda _: ms.Matching(), decide=lambda s, c: None, initial=0, evolve=forgetful, stream="a"
    )
    with pytest.raises(ms.UsageError, match="forgetful returned None"):
        decision(log, 1)
    ms.Decision(query=lambda _: ms.Matching(), decide=lambda s, c: None, initial=0, evolve=closing, stream="a")(log, 1)
