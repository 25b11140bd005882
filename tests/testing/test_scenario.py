"""Given, when, then: what passes, what fails, and what a failure says."""

from __future__ import annotations

from typing import Any

import pytest

import millstream as ms
from millstream.testing import FakeClock, given


class Opened(ms.Event, type="scenario.Opened"):
    owner: str


class Deposited(ms.Event, type="scenario.Deposited"):
    amount: int
    note: str = ""


class Closed(ms.Event, type="scenario.Closed"):
    pass


class Overdrawn(ms.Rejected):
    """There is not enough money."""


class Account(ms.Aggregate):
    owner: str = ""
    balance: int = 0

    def deposit(self, *amounts: int) -> None:
        for amount in amounts:
            if amount <= 0:
                raise ms.Rejected("a deposit must be positive")
            self.record(Deposited(amount=amount))

    def withdraw(self, amount: int) -> None:
        if amount > self.balance:
            raise Overdrawn("there is not enough money")
        self.record(Deposited(amount=-amount), tags=["out"], metadata={"by": "ann"}, effective="2024-01-01T00:00:00Z")

    def close(self) -> None:
        self.record(Closed())

    @ms.on
    def opened(self, event: Opened) -> None:
        self.owner = event.owner

    @ms.on
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount

    @ms.on
    def closed(self, event: Closed) -> None:
        pass


def decide(balance: int, amount: int) -> Any:
    if amount < -balance:
        raise Overdrawn("there is not enough money")
    return Deposited(amount=amount) if amount else None


decider = ms.Decider(0, decide, lambda balance, event: balance + event.amount)


def enrol(events: list[ms.Event], student: str) -> ms.Draft:
    if len(events) >= 2:
        raise ms.Rejected("the course is full")
    return ms.Draft(ms.Plain("scenario.Enrolled", {"student": student}), tags=["course:1", f"student:{student}"])


decision = ms.Decision(query=lambda _: ms.Matching(tags=["course:1"]), decide=enrol, stream="enrolment-1")
rich = given([Opened(owner="Ann"), Deposited(amount=100)], of=Account)


def test_an_aggregate_records_what_was_expected():
    rich.when(lambda account: account.withdraw(30)).then(Deposited(amount=-30)).then_state(balance=70, owner="Ann")
    rich.when(lambda account: account.deposit(1, 2)).then([Deposited(amount=1), Deposited(amount=2)])
    rich.when(lambda account: None).then().then_state(lambda account: account.balance == 100)
    given(of=Account).when(lambda account: account.deposit(5)).then(Deposited(amount=5))


def test_what_a_draft_says_is_compared_too():
    outcome = rich.when(lambda account: account.withdraw(30))
    right = ms.Draft(Deposited(amount=-30), tags=["out"], metadata={"by": "ann"}, effective="2024-01-01T01:00:00+01:00")
    outcome.then(right)
    with pytest.raises(AssertionError, match=r"tags: expected \['in'\], was \['out'\]"):
        outcome.then(ms.Draft(Deposited(amount=-30), tags=["in"]))


def test_a_decider_is_tested_by_its_commands():
    some = given(Deposited(amount=10), of=decider)
    some.when(-10).then(Deposited(amount=-10)).then_state(lambda balance: balance == 0)
    some.when(0).then()
    some.when(-11).rejects(Overdrawn)


def test_a_decision_is_tested_with_the_tags_of_the_past():
    def enrolled(student: str) -> ms.Draft:
        return ms.Draft(ms.Plain("scenario.Enrolled", {"student": student}), tags=["course:1", f"student:{student}"])

    given(enrolled("ann"), of=decision).when("bob").then({"enrolment-1": enrolled("bob")})
    given({"enrolment-1": [enrolled("ann")], "enrolment-2": enrolled("cy")}, of=decision).when("bob").rejects(
        "course is full"
    )
    with pytest.raises(AssertionError, match="stream: expected 'enrolment-2', was 'enrolment-1'"):
        given(of=decision).when("bob").then({"enrolment-2": enrolled("bob")})


@pytest.mark.parametrize(
    "wanted",
    [
        {"error": ms.Rejected},
        {"error": Overdrawn},
        {"error": Overdrawn("there is not enough money")},
        {"error": "not enough"},
        {"match": "n.t enough"},
        {"error": Overdrawn, "match": "^there"},
    ],
)
def test_a_rejection_is_told_by_its_class_or_its_words(wanted):
    rich.when(lambda account: account.withdraw(101)).rejects(**wanted).then_state(balance=100).then()


@pytest.mark.parametrize(
    "wanted",
    [
        {"error": ms.VersionConflict},
        {"error": ms.Rejected("there is not enough money")},
        {"error": Overdrawn("no")},
        {"error": "positive"},
        {"match": "positive"},
    ],
)
def test_another_rejection_than_expected_fails_and_says_which_it_was(wanted):
    with pytest.raises(AssertionError, match="but it was Overdrawn: there is not enough money") as caught:
        rich.when(lambda account: account.withdraw(101)).rejects(**wanted)
    assert isinstance(caught.value.__cause__, Overdrawn)


def test_a_failure_shows_what_differs_is_missing_and_came_unexpected():
    with pytest.raises(AssertionError) as caught:
        rich.when(lambda account: (account.deposit(1, 2), account.withdraw(3))).then(
            Opened(owner="Bob"), Deposited(amount=1), Deposited(amount=2, note="x")
        )
    assert str(caught.value).splitlines() == [
        "expected 3 events, recorded 3 (! differs, - missing, + not expected)",
        "- 1  Opened(owner='Bob')  (missing)",
        "  2  Deposited(amount=1, note='')",
        "! 3  Deposited(amount=2, note='')",
        "       note: expected 'x', was ''",
        "+ 4  Deposited(amount=-3, note='')  (not expected)",
    ]


def test_events_where_none_was_expected_fail():
    with pytest.raises(AssertionError, match=r"expected no event, recorded 1 (.|\n)*\+ 1  Closed\(\)"):
        rich.when(lambda account: account.close()).then()


def test_a_rejection_where_events_were_expected_is_told_with_its_reason():
    outcome = rich.when(lambda account: account.withdraw(101))
    with pytest.raises(AssertionError, match="but the command was rejected: Overdrawn: there") as caught:
        outcome.then(Deposited(amount=-101))
    assert isinstance(caught.value.__cause__, Overdrawn)
    with pytest.raises(AssertionError, match="expected a state, but the command was rejected"):
        outcome.then_state(balance=1)


def test_an_error_that_is_no_rejection_is_not_taken_for_one():
    outcome = rich.when(lambda account: account.no_such_method())
    with pytest.raises(AssertionError, match="the command failed: AttributeError"):
        outcome.then()
    with pytest.raises(AssertionError, match="expected Rejected, but it was AttributeError"):
        outcome.rejects()
    outcome.rejects(AttributeError)


def test_what_was_accepted_but_should_not_have_been_is_shown():
    with pytest.raises(AssertionError, match=r"expected Rejected, but it was accepted\n\+ 1  Closed\(\)"):
        rich.when(lambda account: account.close()).rejects()


def test_a_state_that_differs_is_shown_field_by_field():
    outcome = rich.when(lambda account: account.deposit(1))
    with pytest.raises(AssertionError, match="! balance: expected 7, was 101\n! none: expected 1, was nothing"):
        outcome.then_state(balance=7, owner="Ann", none=1)
    with pytest.raises(AssertionError, match="does not pass the check"):
        outcome.then_state(lambda account: account.balance == 7)


def test_the_past_is_recorded_at_the_time_of_given_and_the_rest_at_that_of_when():
    clock = FakeClock("2024-01-01T00:00:00Z")
    times = []

    def look(balance: int, command: ms.Log | None) -> None:
        times.append(clock())

    scenario = given(Deposited(amount=1), of=ms.Decider(0, look, lambda balance, event: balance), clock=clock)
    clock.advance("1h")
    scenario.when(None).then()
    assert [time.hour for time in times] == [1]


@pytest.mark.parametrize("of", [7, Deposited, "Account"])
def test_what_decides_nothing_is_refused(of):
    with pytest.raises(ms.UsageError, match="decides nothing"):
        given(of=of)


def test_what_is_no_event_is_refused():
    with pytest.raises(ms.UsageError, match="is no event"):
        given(7, of=Account)  # type: ignore[arg-type]


def test_an_event_without_its_class_is_compared_as_the_class_reads_it():
    outcome = given(of=Account).when(lambda account: account.deposit(5))
    outcome.then(ms.Plain("scenario.Deposited", {"amount": 5}))
    with pytest.raises(AssertionError, match="amount: expected 6, was 5"):
        outcome.then(ms.Plain("scenario.Deposited", {"amount": 6}))


def test_the_state_is_what_it_was_after_an_error_of_any_kind():
    def break_down(account: Account) -> None:
        account.deposit(5)
        raise KeyError("who")

    given(Deposited(amount=3), of=Account).when(break_down).rejects(KeyError).then_state(balance=3)


@pytest.mark.parametrize("nothing", [0, "", []])
def test_a_check_that_gives_nothing_true_fails(nothing):
    outcome = given(of=Account).when(lambda account: account.deposit(5)).then_state(lambda account: None)
    with pytest.raises(AssertionError, match="does not pass the check"):
        outcome.then_state(lambda account: nothing)


@pytest.mark.parametrize("error", [5, None, int])
def test_what_is_no_error_cannot_be_rejected_with(error):
    with pytest.raises(ms.UsageError, match="is no error"):
        given(of=Account).when(lambda account: account.withdraw(5)).rejects(error)
