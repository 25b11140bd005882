"""Commands that take effect together, or not at all; and many of them, awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import millstream as ms
from millstream.cqrs import middleware


class Moved(ms.Event, type="TogetherMoved"):
    cents: int


class Account(ms.Aggregate):
    cents: int = 0

    def move(self, cents: int) -> None:
        if self.cents + cents < 0:
            raise ms.Rejected("there is not so much", field="cents")
        self.record(Moved(cents=cents))

    @ms.on
    def moved(self, event: Moved) -> None:
        self.cents += event.cents


class Small(ms.Projection):
    name = "TogetherSmall"
    schema = "create table small_accounts (stream text primary key, cents integer not null check (cents < 1000))"

    @ms.on
    def moved(self, event: Moved, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute(
            "insert into small_accounts values (?, ?)"
            " on conflict (stream) do update set cents = small_accounts.cents + excluded.cents",
            (recorded.stream, event.cents),
        )


class Registered(ms.Event, type="TogetherRegistered"):
    email: str


class Register(ms.Command):
    user: str
    email: str


def unique(taken: list[Any], command: Register) -> ms.Draft:
    if taken:
        raise ms.Rejected(f"{command.email} is taken")
    return ms.Draft(Registered(email=command.email), tags=[f"email:{command.email}"])


registration: Any = ms.Decision(
    query=lambda command: ms.Matching(types=[Registered], tags=[f"email:{command.email}"]),
    decide=unique,
    stream=lambda command: command.user,
    name="registration",
)


class Move(ms.Command):
    account: ms.Ref[Account]
    cents: int


class Later(ms.Command):
    account: ms.Ref[Account]
    cents: int


class Unlucky(ms.Command):
    account: ms.Ref[Account]


class Counting(ms.Command):
    pass


@pytest.fixture
def log(home: Any) -> Iterator[ms.Log]:
    with ms.open(home) as log:
        yield log


@pytest.fixture
def app(log: ms.Log) -> ms.App:
    app = ms.App(log, projections=[Small.inline()], services=[registration])

    @app.command
    def move(command: Move, account: Account) -> None:
        account.move(command.cents)

    @app.command
    async def later(command: Later, account: Account) -> None:
        await asyncio.sleep(0)
        account.move(command.cents)

    @app.command
    def counting(command: Counting, db: ms.Database) -> None: ...

    return app


def cents(log: ms.Log, account: str) -> int:
    return ms.Repository(log, Account).get(account).cents


def test_each_is_decided_on_what_those_before_it_would_change_and_all_are_one_commit(app: ms.App, log: ms.Log) -> None:
    receipt = app.execute_together([Move("a", 10), Move("b", 5), Move("a", -10), Move("b", -3)])
    assert (receipt.first, receipt.position, receipt.count) == (1, 4, 4)
    assert (cents(log, "a"), cents(log, "b")) == (0, 2)
    assert len({event.correlation for event in log.read()}) == 1
    assert app.execute_together([]).count == 0
    named = app.execute_together([Move("a", 1), Move("b", 1)], id="request-7")
    assert {(each.causation, each.correlation) for each in log.read(after=4)} == {("request-7", "request-7")}
    assert app.execute_together([Move("a", 1), Move("b", 1)], id="request-7") == named


@pytest.mark.parametrize("around", [False, True])
def test_one_refusal_refuses_all_and_leaves_nothing(app: ms.App, log: ms.Log, around: bool) -> None:
    if around:
        app.middleware(lambda context, execute: execute(), middleware.retry(2))
    with pytest.raises(ms.Rejected, match="not so much") as caught:
        app.execute_together([Move("a", 10), Move("b", -1), Move("c", 1)], id="r")
    assert "move" in caught.value.__notes__[0]
    with pytest.raises(ms.Rejected):
        app.execute_together([Move("a", 10), Move("b", "many")])  # type: ignore[arg-type]
    with pytest.raises(ms.ConstraintViolated):
        app.execute_together([Move("a", 10), Move("b", 2000)])
    assert log.head == 0
    assert app.execute_together([Move("a", 10)], id="r").count == 1


def test_an_id_stands_for_all_of_them(app: ms.App, log: ms.Log) -> None:
    commands = [Move("a", 10), Move("a", -10)]
    assert app.execute_together(commands, id="once") == app.execute_together(commands, id="once")
    assert log.head == 2
    with pytest.raises(ms.IdReused):
        app.execute_together(commands[:1], id="once")


def test_no_two_are_decided_on_what_one_of_them_is_about_to_change(app: ms.App, log: ms.Log) -> None:
    @app.command
    def register(command: Register, registration: ms.Decision) -> None:  # type: ignore[type-arg]
        registration.record(command)

    both = [Register("1", "a@x"), Register("2", "a@x")]
    with pytest.raises(ms.UsageError, match="execute_all"):
        app.execute_together(both)
    assert log.head == 0
    assert app.execute_together([Register("1", "a@x"), Register("2", "b@x")]).count == 2


def test_middleware_that_refuses_one_refuses_all(app: ms.App, log: ms.Log) -> None:
    app.middleware(middleware.authorise(lambda context: context.command.cents != 3))
    with pytest.raises(ms.Forbidden):
        app.execute_together([Move("a", 1), Move("a", 3)])
    assert log.head == 0
    with pytest.raises(ms.UsageError, match="too many"):
        app.execute_together([Move("a", 1)] * 101)


def test_middleware_of_many_tries_again_no_oftener_than_that_of_one(app: ms.App) -> None:
    tried: list[int] = []

    @app.command
    def unlucky(command: Unlucky, account: Account) -> None:
        tried.append(1)
        raise ms.LogLocked("elsewhere", 1.0)

    app.middleware(middleware.retry(3))
    with pytest.raises(ms.LogLocked) as caught:
        app.execute_together([Move("a", 1), Move("b", 1), Unlucky("c"), Move("d", 1)])
    assert len(tried) == 3
    assert "unlucky" in caught.value.__notes__[0]


@pytest.mark.parametrize("around", [False, True])
def test_what_the_commit_refuses_is_not_blamed_on_one_of_them(app: ms.App, around: bool) -> None:
    if around:
        app.middleware(lambda context, execute: execute())
    with pytest.raises(ms.ConstraintViolated) as caught:
        app.execute_together([Move("b", 2000), Later("a", 10)])
    assert caught.value.__notes__ == ["raised by the commit of 2 commands that go together"]


def test_who_asks_for_the_database_cannot_be_among_them(app: ms.App) -> None:
    with pytest.raises(ms.UsageError, match="asks for the database"):
        app.execute_together([Move("a", 1), Counting()])


def test_transfers_of_many_threads_keep_the_sum(app: ms.App, log: ms.Log) -> None:
    app.execute_together([Move(f"t-{n}", 50) for n in range(3)])
    errors: list[BaseException] = []

    def transfer(number: int) -> None:
        for step in range(15):
            one, other = f"t-{(number + step) % 3}", f"t-{(number + 2 * step + 1) % 3}"
            try:
                app.execute_together([Move(one, -7), Move(other, 7)])
            except (ms.Rejected, ms.Contended):
                pass
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=transfer, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sum(cents(log, f"t-{n}") for n in range(3)) == 150


def test_both_can_be_awaited_with_coroutine_handlers_among_them(app: ms.App, log: ms.Log) -> None:
    async def run() -> Any:
        receipt = await app.aexecute_together([Move("a", 10), Later("a", -4)])
        outcomes = await app.aexecute_all([Later("a", -6), Later("a", -1), Move("a", 2)])
        again = await ms.aio.App(app).execute_together([Later("b", 1)])
        return receipt, outcomes, again

    receipt, outcomes, again = asyncio.run(run())
    assert (receipt.count, again.count) == (2, 1)
    assert [type(each).__name__ for each in outcomes] == ["Receipt", "Rejected", "Receipt"]
    assert cents(log, "a") == 2
