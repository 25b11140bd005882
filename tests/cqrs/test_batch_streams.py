"""Batches of commands that share a stream by way of different classes, or by decisions: each sees those before it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

import millstream as ms


class Opened(ms.Event, type="BatchOpened"):
    owner: str


class Paid(ms.Event, type="BatchPaid"):
    cents: int


class Sheet(ms.Aggregate, ignore=[Paid]):
    owner: str = ""

    def open(self, owner: str) -> None:
        if self.owner:
            raise ms.Rejected("it is open")
        self.record(Opened(owner=owner))

    @ms.on
    def opened(self, event: Opened) -> None:
        self.owner = event.owner


class Balance(ms.Aggregate):
    open: bool = False
    cents: int = 0

    def pay(self, cents: int) -> None:
        if not self.open:
            raise ms.Rejected("it is not open")
        if self.cents + cents < 0:
            raise ms.Rejected("there is not so much")
        self.record(Paid(cents=cents))

    @ms.on("BatchOpened")
    def opened(self, event: ms.Plain) -> None:
        self.open = event.data["owner"] != ""

    @ms.on
    def paid(self, event: Paid) -> None:
        self.cents += event.cents


class Stranger(ms.Aggregate):
    @ms.on
    def paid(self, event: Paid) -> None: ...


class Noted(ms.Event, type="BatchNoted"):
    cents: int


class Note(ms.Aggregate):
    @ms.on
    def noted(self, event: Noted) -> None: ...


class Limit(ms.Projection):
    name = "BatchLimit"
    schema = "create table batch_limits (stream text, cents integer check (cents < 1000))"

    @ms.on
    def paid(self, event: Paid, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into batch_limits values (?, ?)", (recorded.stream, event.cents))


class Open(ms.Command):
    sheet: ms.Ref[Sheet]
    owner: str


class Pay(ms.Command):
    balance: ms.Ref[Balance]
    cents: int


class Strange(ms.Command):
    stranger: ms.Ref[Stranger]


class WriteDown(ms.Command):
    balance: ms.Ref[Balance]
    note: ms.Ref[Note]


class Twin(ms.Command):
    balance: str


class Register(ms.Command):
    sheet: str
    owner: str


def one_each(taken: list[Any], command: Register) -> ms.Draft | None:
    if any(event.owner == command.owner for event in taken):
        raise ms.Rejected(f"{command.owner} has one")
    return ms.Draft(Opened(owner=command.owner), tags=[f"owner:{command.owner}"])


registration: Any = ms.Decision(
    query=lambda command: ms.Matching(types=[Opened], tags=[f"owner:{command.owner}"]),
    decide=one_each,
    stream=lambda command: command.sheet,
    name="batch registration",
)


@pytest.fixture
def log(home: Any) -> Iterator[ms.Log]:
    with ms.open(home) as log:
        yield log


@pytest.fixture
def app(log: ms.Log) -> ms.App:
    app = ms.App(log, projections=[Limit.inline()], services=[registration])

    @app.command
    def open(command: Open, sheet: Sheet) -> None:
        sheet.open(command.owner)

    @app.command
    def pay(command: Pay, balance: Balance) -> None:
        balance.pay(command.cents)

    @app.command
    def strange(command: Strange, stranger: Stranger) -> None:
        stranger.record(Paid(cents=1))

    @app.command
    def write_down(command: WriteDown, balance: Balance, note: Note) -> None:
        if balance.cents:
            note.record(Noted(cents=balance.cents))

    @app.command
    def register(command: Register, registration: ms.Decision) -> None:  # type: ignore[type-arg]
        registration.record(command)

    return app


def kinds(outcomes: Any) -> list[str]:
    return [type(outcome).__name__ for outcome in outcomes]


def balance(log: ms.Log, stream: str) -> int:
    return ms.Repository(log, Balance).get(stream).cents


BOTH = [Open("s-1", "Ann"), Pay("s-1", 5), Open("s-2", "Bob"), Pay("s-1", -2), Pay("s-2", 7)]


def test_two_classes_of_one_stream_are_decided_one_after_the_other_in_one_commit(app: ms.App, log: ms.Log) -> None:
    outcomes = app.execute_all([*BOTH, Open("s-1", "Cid"), Pay("s-1", -9), Pay("s-3", 1)])
    assert kinds(outcomes) == ["Receipt"] * 5 + ["Rejected"] * 3
    assert [outcome.version for outcome in outcomes[:5]] == [1, 2, 1, 3, 2]
    assert log.store.committer._last == 5
    assert (balance(log, "s-1"), balance(log, "s-2")) == (3, 7)


def test_so_are_those_that_take_effect_together(app: ms.App, log: ms.Log) -> None:
    assert app.execute_together(BOTH).count == 5
    assert (balance(log, "s-1"), balance(log, "s-2")) == (3, 7)
    with pytest.raises(ms.Rejected, match="it is open"):
        app.execute_together([Pay("s-1", 1), Open("s-1", "Ann")])
    assert balance(log, "s-1") == 3


def test_a_class_that_does_not_know_the_events_of_the_other_says_so_as_it_would_alone(app: ms.App) -> None:
    [_, batched] = app.execute_all([Open("s-1", "Ann"), Strange("s-1")])
    with pytest.raises(type(batched)) as alone:
        app.execute(Strange("s-1"))
    assert kinds([batched]) == ["WrongAggregate"]
    assert str(alone.value) == str(batched)


def test_what_leans_on_a_command_that_is_refused_in_the_commit_is_decided_without_it(app: ms.App, log: ms.Log) -> None:
    app.execute(Open("s-1", "Ann"))
    # The note and the receipt without events would stand on 5,000 cents that never came to be.
    outcomes = app.execute_all([Pay("s-1", 5000), WriteDown("s-1", "n-1"), Pay("s-1", 1), WriteDown("s-1", "n-2")])
    assert kinds(outcomes) == ["ConstraintViolated", "Receipt", "Receipt", "Receipt"]
    assert [outcome.count for outcome in outcomes[1:]] == [0, 1, 1]
    assert [event.event for event in log.read("n-*")] == [Noted(cents=1)]


def test_a_decision_sees_what_commands_before_it_have_decided(app: ms.App, log: ms.Log) -> None:
    outcomes = app.execute_all([Register("s-1", "Ann"), Register("s-2", "Ann"), Pay("s-1", 5), Open("s-1", "Bob")])
    assert kinds(outcomes) == ["Receipt", "Rejected", "Receipt", "Rejected"]
    assert balance(log, "s-1") == 5


def test_what_cannot_be_shown_to_a_command_of_those_that_go_together_is_told(app: ms.App, log: ms.Log) -> None:
    with pytest.raises(ms.Unseen, match="'s-1', to which a decision of another of the commands") as caught:
        app.execute_together([Register("s-1", "Ann"), Pay("s-1", 5)])
    assert "execute_all" in (caught.value.hint or "")
    assert log.head == 0


def test_a_handler_that_catches_what_it_is_not_to_see_is_decided_all_the_same(app: ms.App, log: ms.Log) -> None:
    class Careless(ms.Command):
        owner: str

    @app.command
    def careless(command: Careless, registration: ms.Decision) -> None:  # type: ignore[type-arg]
        with contextlib.suppress(ms.MillstreamError):
            registration.record(Register("s-2", command.owner))

    assert kinds(app.execute_all([Register("s-1", "Ann"), Careless("Ann"), Careless("Bob")])) == ["Receipt"] * 3
    assert [event.event for event in log.read()] == [Opened(owner="Ann"), Opened(owner="Bob")]


def test_another_writer_between_two_of_them_is_met_by_deciding_anew(app: ms.App, log: ms.Log) -> None:
    log.append("s-1", Opened(owner="Ann"))
    came: list[int] = []

    class Meet(ms.Command):
        balance: ms.Ref[Balance]

    @app.command
    def meet(command: Meet, balance: Balance) -> None:
        balance.pay(1)
        if not came:
            came.append(log.append("s-1", Paid(cents=10)).position)

    outcomes = app.execute_all([Meet("s-1"), Open("s-1", "Bob"), Pay("s-1", 1)])
    assert kinds(outcomes) == ["Receipt", "Rejected", "Receipt"]
    assert balance(log, "s-1") == 12


def test_one_request_twice_in_a_batch_is_answered_twice_and_counts_once(app: ms.App, log: ms.Log) -> None:
    log.append("s-1", [Opened(owner="Ann"), Paid(cents=10)])
    # The second would be refused if it were decided on what the first has left; the third, if it counted twice.
    outcomes = app.execute_all([Pay("s-1", -6), Pay("s-1", -6), Pay("s-1", -4)], ids=["x", "x", "y"])
    assert kinds(outcomes) == ["Receipt"] * 3
    assert outcomes[0] == outcomes[1]
    assert balance(log, "s-1") == 0
    assert kinds(app.execute_all([Pay("s-1", 1), Pay("s-1", 2)], ids=["z", "z"])) == ["Receipt", "IdReused"]


def test_one_that_is_refused_since_the_same_was_decided_beside_it_gets_its_receipt(app: ms.App, log: ms.Log) -> None:
    calls: list[Twin] = []
    beside: list[ms.Receipt] = []

    @app.command
    def twin(command: Twin) -> None:
        calls.append(command)
        if len(calls) == 1:
            beside.append(app.execute(command, id="x"))
            raise ms.Rejected("it is done already")

    assert app.execute_all([Twin("s-1")], ids=["x"]) == beside


def test_those_that_are_decided_anew_are_so_in_their_order(
    app: ms.App, log: ms.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append("s-1", [Opened(owner="Ann"), Paid(cents=10)])
    commit_all = log.commit_all

    def another_comes_first(requests: Any) -> Any:
        monkeypatch.setattr(log, "commit_all", commit_all)
        log.append("s-1", Paid(cents=1))
        return commit_all(requests)

    monkeypatch.setattr(log, "commit_all", another_comes_first)
    # Refused for the sake of the first, it does not go before it when that has to be decided again.
    outcomes = app.execute_all([Pay("s-1", -10), Pay("s-1", -10)])
    assert kinds(outcomes) == ["Receipt", "Rejected"]
