"""What handlers are given, what goes around them, and many commands in one commit."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Protocol

import pytest

import millstream as ms
from millstream.cqrs import middleware


class Stocked(ms.Event, type="WriteStocked"):
    count: int


class Article(ms.Aggregate):
    stock: int = 0

    def take(self, count: int) -> None:
        if count > self.stock:
            raise ms.Rejected(f"there are only {self.stock}", field="count")
        self.record(Stocked(count=-count))

    def put(self, count: int) -> None:
        self.record(Stocked(count=count))

    @ms.on
    def stocked(self, event: Stocked) -> None:
        self.stock += event.count


class Put(ms.Command):
    article: ms.Ref[Article]
    count: int


class Take(ms.Command):
    article: ms.Ref[Article]
    count: int


class Registered(ms.Event, type="WriteRegistered"):
    email: str


class Register(ms.Command):
    user: str
    email: str


class Small(ms.Projection):
    name = "WriteSmall"
    schema = "create table small (stream text primary key, stock integer not null check (stock < 100))"

    @ms.on
    def stocked(self, event: Stocked, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute(
            "insert into small values (?, ?) on conflict (stream) do update set stock = small.stock + excluded.stock",
            (recorded.stream, event.count),
        )


def unique(taken: list, command: Register) -> ms.Draft:
    if taken:
        raise ms.Rejected(f"{command.email} is taken", field="email")
    return ms.Draft(Registered(email=command.email), tags=[f"email:{command.email}"])


registration: ms.Decision = ms.Decision(
    query=lambda command: ms.Matching(tags=[f"email:{command.email}"]),
    decide=unique,
    stream=lambda command: command.user,
    name="registration",
)


@pytest.fixture
def log(home):
    with ms.open(home) as log:
        yield log


@pytest.fixture
def app(log):
    app = ms.App(log, projections=[Small.inline()], services=[registration])

    @app.command
    def put(command: Put, article: Article) -> None:
        article.put(command.count)

    @app.command
    def take(command: Take, article: Article) -> None:
        article.take(command.count)

    return app


def stock(log: ms.Log, article: str) -> int:
    return ms.Repository(log, Article).get(article).stock


# --- what handlers are given -------------------------------------------------------------------------


def test_a_decision_decides_as_part_of_the_command(log, app):
    @app.command
    def register(command: Register, registration: ms.Decision) -> None:
        registration.record(command)

    app.execute(Register("user-1", "ann@example.org"))
    with pytest.raises(ms.Rejected, match="taken"):
        app.execute(Register("user-2", "ann@example.org"))
    assert [e.stream for e in log.read()] == ["user-1"]


def test_of_eight_that_register_one_address_at_once_one_does(log, app):
    @app.command
    def register(command: Register, registration: ms.Decision) -> None:
        registration.record(command)

    outcomes: list[str] = []

    def attempt(number: int) -> None:
        try:
            app.execute(Register(f"user-{number}", "ann@example.org"))
            outcomes.append("done")
        except ms.Rejected:
            outcomes.append("rejected")

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["done"] + ["rejected"] * 7


def test_outside_of_a_handler_a_decision_says_that_it_has_no_command():
    with pytest.raises(ms.UsageError, match="not part of a command"):
        registration.record(Register("user-1", "a"))


class Count(ms.Command):
    article: ms.Ref[Article]
    by: int = 1
    fail: bool = False


@pytest.fixture
def counting(log, app):
    with log.transaction() as tx:
        tx.db.execute("create table counts (n integer)")
        tx.db.execute("insert into counts values (0)")

    @app.command
    def count(command: Count, article: Article, db: ms.Database) -> None:
        row = db.one("select n from counts")
        assert row is not None
        db.execute("update counts set n = ?", (row["n"] + command.by,))
        if command.by:
            article.put(1)
        if command.fail:
            raise ms.Rejected("no")

    def counted() -> int:
        with log.connect() as db:
            return int(db.one("select n from counts")["n"])

    return counted


def test_a_handler_may_change_rows_in_the_commit_of_its_events(log, app, counting):
    app.execute(Count("article-1", 5))
    assert (counting(), stock(log, "article-1")) == (5, 1)
    with pytest.raises(ms.Rejected):
        app.execute(Count("article-1", 5, fail=True))
    assert (counting(), stock(log, "article-1")) == (5, 1)


def test_rows_that_an_inline_projection_refuses_are_undone_with_the_rest(log, app, counting):
    app.execute(Put("article-1", 99))
    with pytest.raises(ms.ConstraintViolated):
        app.execute(Count("article-1", 5))
    assert (counting(), stock(log, "article-1")) == (0, 99)


def test_rows_are_changed_once_for_one_id(log, app, counting):
    first = app.execute(Count("article-1", 5), id="once")
    assert app.execute(Count("article-1", 5), id="once") == first
    assert (counting(), stock(log, "article-1")) == (5, 1)
    with pytest.raises(ms.IdReused):
        app.execute(Count("article-1", 6), id="once")


def test_eight_threads_that_change_one_row_lose_nothing(log, app, counting):
    def work() -> None:
        for _ in range(10):
            app.execute(Count("article-1"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counting(), stock(log, "article-1")) == (80, 80)


class Mailer(Protocol):
    def mail(self, text: str) -> None: ...


class Printer:
    name = "printer"

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mail(self, text: str) -> None:
        self.texts.append(text)


class Tell(ms.Command):
    text: str


def test_services_are_found_by_their_type(log):
    printer = Printer()
    app = ms.App(log, services=[printer])

    @app.command
    def tell(command: Tell, to: Printer, context: ms.Context, of: ms.Log) -> None:
        to.mail(f"{command.text} {context.id} {of is log}")

    app.execute(Tell("hello"), id="r-1")
    assert printer.texts == ["hello r-1 True"]


def test_a_service_may_be_given_as_what_it_stands_for(log):
    printer = Printer()
    app = ms.App(log)
    app.provide(printer, as_=Mailer)

    @app.command
    def tell(command: Tell, mailer: Mailer) -> None:
        mailer.mail(command.text)

    app.execute(Tell("hello"))
    assert printer.texts == ["hello"]


def test_of_two_services_of_a_type_the_parameters_name_says_which(log):
    first, second = Printer(), Printer()
    second.name = "second"
    app = ms.App(log, services=[first, second])

    with pytest.raises(ms.InvalidHandler, match="2 services of type Printer"):

        @app.command
        def ambiguous(command: Tell, mailer: Printer) -> None: ...

    @app.command
    def tell(command: Tell, second: Printer) -> None:
        second.mail(command.text)

    app.execute(Tell("hello"))
    assert (first.texts, second.texts) == ([], ["hello"])


# --- causes ------------------------------------------------------------------------------------------


def test_events_say_which_command_caused_them_and_what_it_belongs_to(log, app):
    app.execute(Put("article-1", 1), id="r-1")
    app.execute(Put("article-1", 1), id="r-2", correlation="visit-7", metadata={"user": "ann"})
    app.execute(Put("article-1", 1))
    one, two, three = log.read()
    assert (one.causation, one.correlation) == ("r-1", "r-1")
    assert (two.causation, two.correlation, two.metadata["user"]) == ("r-2", "visit-7", "ann")
    assert three.causation
    assert three.causation == three.correlation


# --- around --------------------------------------------------------------------------------------------


def test_middleware_goes_around_in_the_order_that_it_was_given_in(log, app):
    seen = []

    def around(name):
        def noting(context, execute):
            seen.append(f"{name} before {type(context.command).__name__}")
            receipt = execute()
            seen.append(f"{name} after {receipt.count}")
            return receipt

        return noting

    app.middleware(around("outer"), around("inner"))
    app.execute(Put("article-1", 1))
    assert seen == ["outer before Put", "inner before Put", "inner after 1", "outer after 1"]


def test_middleware_may_hand_on_values_and_add_to_the_metadata(log, app):
    def user(context, execute):
        context.values["user"] = "ann"
        context.metadata["user"] = "ann"
        return execute()

    app.middleware(user)
    seen = []

    @app.command
    def tell(command: Tell, context: ms.Context) -> None:
        seen.append(context.values["user"])

    app.execute(Tell("x"))
    app.execute(Put("article-1", 1))
    assert seen == ["ann"]
    assert next(iter(log.read())).metadata["user"] == "ann"


def test_a_command_that_is_not_allowed_is_refused(log, app):
    def allowed(context: ms.Context) -> bool | str:
        return not isinstance(context.command, Take) or "only staff may take"

    app.middleware(middleware.authorise(allowed))
    app.execute(Put("article-1", 2))
    with pytest.raises(ms.Forbidden, match="only staff may take"):
        app.execute(Take("article-1", 1))
    assert stock(log, "article-1") == 2


def test_a_command_that_takes_too_long_is_given_up(log, app):
    app.middleware(middleware.time_limit(0.0))
    with pytest.raises(ms.TimedOut, match="nothing was written"):
        app.execute(Put("article-1", 2))
    assert log.head == 0


def test_a_command_that_had_no_luck_is_executed_again(log, app):
    tries = []

    def unlucky(context, execute):
        tries.append(1)
        if len(tries) < 3:
            raise ms.LogLocked("there", 1.0)
        return execute()

    app.middleware(middleware.retry(3), unlucky)
    app.execute(Put("article-1", 2))
    assert (len(tries), stock(log, "article-1")) == (3, 2)


def test_commands_are_logged_with_how_they_went(log, app, caplog):
    caplog.set_level(logging.INFO, "millstream.commands")
    app.middleware(middleware.logged())
    app.execute(Put("article-1", 2), id="r-1")
    with pytest.raises(ms.Rejected):
        app.execute(Take("article-1", 3), id="r-2")
    done, refused = caplog.records
    assert done.getMessage().startswith("Put r-1: 1 events at 1 in")
    assert (refused.levelno, refused.getMessage().partition(":")[0]) == (logging.WARNING, "Take r-2")


def test_middleware_must_be_a_plain_function(app):
    async def around(context, execute): ...

    with pytest.raises(ms.InvalidHandler, match="no plain function"):
        app.middleware(around)


# --- coroutines ----------------------------------------------------------------------------------------


def test_commands_are_awaited_and_coroutines_may_handle_them(log, app):
    @app.command
    async def tell(command: Tell, context: ms.Context) -> None:
        await asyncio.sleep(0)
        context.values["loop"] = asyncio.get_running_loop()

    loops = []

    def note(context, execute):
        receipt = execute()
        loops.append(context.values.get("loop"))
        return receipt

    app.middleware(note)

    async def main() -> None:
        await asyncio.gather(*(app.aexecute(Put("article-1", 1)) for _ in range(20)))
        with pytest.raises(ms.Rejected):
            await app.aexecute(Take("article-1", 21))
        with pytest.raises(ms.Rejected):
            await app.aexecute(Take("article-1", "two"))
        await app.aexecute(Tell("x"))
        assert loops[-1] is asyncio.get_running_loop()
        with pytest.raises(ms.UsageError, match="is a coroutine function"):
            app.execute(Tell("x"))

    asyncio.run(main())
    assert stock(log, "article-1") == 20
    app.execute(Tell("x"))
    assert loops[-1] is not None


def test_a_coroutine_that_records_after_it_awaited_commits_what_it_recorded(log, app):
    class Later(ms.Command):
        article: ms.Ref[Article]

    @app.command
    async def later(command: Later, article: Article) -> None:
        await asyncio.sleep(0)
        article.put(3)

    asyncio.run(app.aexecute(Later("article-1"), id="r-1"))
    asyncio.run(app.aexecute(Later("article-1"), id="r-1"))
    assert stock(log, "article-1") == 3


def test_a_coroutine_may_not_hold_the_writer_while_it_awaits(app):
    with pytest.raises(ms.InvalidHandler, match="all other writers would wait"):

        @app.command
        async def tell(command: Tell, db: ms.Database) -> None: ...


# --- many ----------------------------------------------------------------------------------------------


def kinds(outcomes):
    return [type(outcome).__name__ for outcome in outcomes]


@pytest.mark.parametrize("around", [False, True], ids=["plain", "with middleware"])
def test_many_commands_are_decided_in_order_and_each_refused_alone(log, app, around):
    if around:
        app.middleware(lambda context, execute: execute(), middleware.logged())
    outcomes = app.execute_all(
        [
            Put("article-1", 5),
            Take("article-1", 3),
            Take("article-1", 3),
            Put("article-1", "many"),
            Take("article-1", 2),
            Put("article-2", 100),
            Put("article-3", 1),
        ]
    )
    assert kinds(outcomes) == [
        "Receipt", "Receipt", "Rejected", "Rejected", "Receipt", "ConstraintViolated", "Receipt"
    ]  # fmt: skip
    assert (stock(log, "article-1"), log.version("article-2"), stock(log, "article-3")) == (0, 0, 1)


def test_a_batch_is_one_commit(log, app):
    outcomes = app.execute_all([Put(f"article-{n % 3}", 1) for n in range(30)])
    assert kinds(outcomes) == ["Receipt"] * 30
    assert log.store.committer._last == 30
    assert [outcome.position for outcome in outcomes] == list(range(1, 31))


def test_what_stood_on_a_command_that_failed_is_decided_anew(log, app):
    outcomes = app.execute_all([Put("article-1", 100), Take("article-1", 50), Put("article-1", 7)])
    assert kinds(outcomes) == ["ConstraintViolated", "Rejected", "Receipt"]
    assert stock(log, "article-1") == 7


def test_a_batch_with_ids_takes_effect_once(log, app):
    commands = [Put("article-1", 5), Take("article-1", 2), Take("article-1", 9)]
    ids = ["a", "b", "c"]
    first = app.execute_all(commands, ids=ids)
    again = app.execute_all(commands, ids=ids)
    assert first[:2] == again[:2]
    assert kinds(again) == ["Receipt", "Receipt", "Rejected"]
    assert stock(log, "article-1") == 3
    with pytest.raises(ms.UsageError, match="one for each"):
        app.execute_all(commands, ids=["a"])


def test_middleware_that_refuses_one_of_a_batch_lets_the_others_pass(log, app):
    app.middleware(middleware.authorise(lambda context: getattr(context.command, "count", 0) != 2))
    outcomes = app.execute_all([Put("article-1", n) for n in (1, 2, 3)])
    assert kinds(outcomes) == ["Receipt", "Forbidden", "Receipt"]
    assert stock(log, "article-1") == 4


def test_commands_that_work_on_rows_may_be_among_them(log, app, counting):
    outcomes = app.execute_all([Put("article-1", 1), Count("article-1", 2), Take("article-1", 2)])
    assert kinds(outcomes) == ["Receipt"] * 3
    assert (counting(), stock(log, "article-1")) == (2, 0)


def test_an_empty_batch_is_nothing(app):
    assert app.execute_all([]) == []
