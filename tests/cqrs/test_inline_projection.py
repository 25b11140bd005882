"""Inline projections: rows in the commit of the events, and nothing of either when a row is refused."""

from __future__ import annotations

import threading
import time

import pytest

import millstream as ms


class UserAdded(ms.Event):
    email: str


class Other(ms.Event):
    pass


class Users(ms.Projection):
    schema = "create table users (id text primary key, email text not null unique, position integer not null)"

    @ms.on
    def added(self, event: UserAdded, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into users values (?, ?, ?)", (recorded.stream, event.email, recorded.position))


@pytest.fixture
def log(home):
    with ms.open(home) as log:
        yield log


def rows(log: ms.Log) -> list[tuple[str, int]]:
    with log.connect() as db:
        return [(row["id"], row["position"]) for row in db.query("select * from users order by position")]


def test_rows_are_there_when_append_returns(log):
    ms.App(log, projections=[Users.inline()])
    log.append("user-1", UserAdded(email="a@example.com"))
    assert rows(log) == [("user-1", 1)]


def test_a_constraint_rejects_the_append_and_leaves_nothing(log):
    ms.App(log, projections=[Users.inline()])
    log.append("user-1", UserAdded(email="a@example.com"))
    with pytest.raises(ms.ConstraintViolated, match=r"(?i)unique"):
        log.append("user-2", [UserAdded(email="b@example.com"), UserAdded(email="a@example.com")])
    assert log.head == 1
    assert rows(log) == [("user-1", 1)]
    log.append("user-2", UserAdded(email="b@example.com"))
    assert rows(log) == [("user-1", 1), ("user-2", 2)]


def test_a_handler_that_raises_rejects_only_its_own_append(log):
    class Picky(ms.Projection):
        @ms.on
        def added(self, event: UserAdded) -> None:
            if event.email == "bad":
                raise ms.Rejected("no such address")

    ms.App(log, projections=[Picky.inline(), Users.inline()])
    failures = []

    def append(number: int) -> None:
        try:
            log.append(f"user-{number}", UserAdded(email="bad" if number % 3 == 0 else f"{number}@example.com"))
        except ms.Rejected:
            failures.append(number)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(failures) == list(range(0, 30, 3))
    assert [position for _, position in rows(log)] == list(range(1, 21))


def test_what_was_appended_before_is_caught_up_with_first(log):
    log.append("user-1", [UserAdded(email=f"{n}@example.com") for n in range(3)])
    log.append("other", Other())

    class Count(ms.Projection):
        schema = "create table counts (n integer); insert into counts values (0)"

        @ms.on
        def added(self, event: UserAdded, db: ms.Database) -> None:
            db.execute("update counts set n = n + 1")

    ms.App(log, projections=[Count.inline()])
    with log.connect() as db:
        assert db.one("select n from counts") == {"n": 3}
    log.append("user-1", UserAdded(email="x@example.com"))
    with log.connect() as db:
        assert db.one("select n from counts") == {"n": 4}


def test_a_long_history_is_caught_up_with_in_full(log):
    for number in range(4):
        log.append(f"user-{number}", [UserAdded(email=f"{number}.{n}@example.com") for n in range(700)])

    class Emails(ms.Projection):
        schema = "create table emails (email text primary key)"

        @ms.on
        def added(self, event: UserAdded, db: ms.Database) -> None:
            db.execute("insert into emails values (?)", (event.email,))

    ms.App(log, projections=[Emails.inline()])
    with log.connect() as db:
        assert db.one("select count(*) as n from emails") == {"n": 2800}


def test_what_another_process_appends_without_it_is_made_up_for_in_order(shared_home):
    with ms.open(shared_home) as log, ms.open(shared_home) as other:
        ms.App(log, projections=[Users.inline()])
        log.append("user-1", UserAdded(email="a@example.com"))
        other.retire_inline("Users")
        other.append("user-2", UserAdded(email="b@example.com"))
        other.append("other", Other())
        assert rows(log) == [("user-1", 1)]
        log.append("user-3", UserAdded(email="c@example.com"))
        assert rows(log) == [("user-1", 1), ("user-2", 2), ("user-3", 4)]


def test_two_apps_on_one_log_keep_it_once(shared_home):
    with ms.open(shared_home) as one, ms.open(shared_home) as two:
        for log in (one, one, two):
            ms.App(log, projections=[Users.inline()])
        for number in range(10):
            (one, two)[number % 2].append(f"user-{number}", UserAdded(email=f"{number}@example.com"))
        assert [position for _, position in rows(one)] == list(range(1, 11))


def test_it_is_there_again_after_reopening(shared_home):
    with ms.open(shared_home) as log:
        ms.App(log, projections=[Users.inline()])
        log.append("user-1", UserAdded(email="a@example.com"))
    with ms.open(shared_home) as log:
        log.retire_inline("Users")
        log.append("user-2", UserAdded(email="b@example.com"))
        ms.App(log, projections=[Users.inline()])
        log.append("user-3", UserAdded(email="c@example.com"))
        assert [position for _, position in rows(log)] == [1, 2, 3]


def test_streams_of_one_commit_are_all_applied(log):
    ms.App(log, projections=[Users.inline()])
    with log.transaction() as tx:
        tx.append("other", Other())
        tx.append("user-1", UserAdded(email="a@example.com"))
        tx.append("other", [Other(), Other()])
        tx.append("user-2", [UserAdded(email="b@example.com"), Other()])
    assert rows(log) == [("user-1", 2), ("user-2", 5)]


def test_another_schema_under_the_same_name_is_refused(log):
    ms.App(log, projections=[Users.inline()])
    changed = type("Users", (Users,), {"schema": "create table users (id text)"})
    with pytest.raises(ms.ReadModelChanged, match="'Users'"):
        ms.App(log, projections=[changed.inline()])


def test_a_schema_that_is_no_sql_is_refused_and_leaves_nothing(log):
    class Broken(ms.Projection):
        schema = "create table good (id text); create tabel bad (id text)"

        @ms.on
        def added(self, event: UserAdded) -> None: ...

    with pytest.raises(ms.DatabaseError, match="tabel"):
        ms.App(log, projections=[Broken.inline()])
    with log.connect() as db:
        assert db.find_table("good") is None


def test_a_projection_without_handlers_is_refused():
    class Empty(ms.Projection):
        pass

    with pytest.raises(ms.InvalidHandler, match="handles no event"):
        Empty.inline()


def test_a_handler_that_asks_for_what_is_not_there_is_refused():
    class Wide(ms.Projection):
        @ms.on
        def added(self, event: UserAdded, clock: object) -> None: ...

    with pytest.raises(ms.InvalidHandler, match="asks for 'clock'"):
        Wide.inline()


def test_two_projections_of_one_name_are_refused(log):
    with pytest.raises(ms.DuplicateHandler, match="'Users'"):
        ms.App(log, projections=[Users.inline(), Users.into()])


def test_a_projection_without_a_place_is_refused(log):
    with pytest.raises(ms.UsageError, match="where it is kept"):
        ms.App(log, projections=[Users])  # type: ignore[list-item]


def test_a_handler_that_raises_for_what_another_process_appended_is_named(shared_home):

    class Emails(ms.Projection):
        schema = "create table emails (email text)"

        @ms.on
        def added(self, event: UserAdded, db: ms.Database) -> None:
            if event.email == "bad":
                raise ValueError("no such address")
            db.execute("insert into emails values (?)", (event.email,))

    with ms.open(shared_home) as log, ms.open(shared_home) as other:
        app = ms.App(log, projections=[Emails.inline()])
        log.append("user-1", UserAdded(email="a"))
        other.retire_inline("Emails")
        other.append("user-2", [UserAdded(email="b"), UserAdded(email="bad")])
        (status,) = app.status()
        assert (status.state, status.position, status.behind) == (ms.State.RUNNING, 1, 2)
        with pytest.raises(ms.ProjectionFailed, match=r"'Emails' stopped at position 3.*ValueError") as failed:
            log.append("user-3", UserAdded(email="c"))
        assert (failed.value.projection, failed.value.position, failed.value.type) == ("Emails", 3, "UserAdded")
        assert isinstance(failed.value.__cause__, ValueError)
        assert log.head == 3
        (status,) = app.status()
        assert (status.state, status.position, status.behind) == (ms.State.FAILED, 1, 2)
        with pytest.raises(ms.ProjectionFailed, match="position 3"):
            ms.App(log, projections=[Emails.inline()])
        # All before the event is kept.
        assert app.status()[0].position == 2
        log.append("other", Other())  # no event of its types: it has no part in it


def test_a_handler_may_go_on_after_an_error_that_it_puts_into_a_savepoint(log):
    class Latest(ms.Projection):
        schema = "create table latest (email text primary key, id text not null)"

        @ms.on
        def added(self, event: UserAdded, db: ms.Database, recorded: ms.Recorded) -> None:
            try:
                with db.savepoint():
                    db.execute("insert into latest values (?, ?)", (event.email, recorded.stream))
            except ms.ConstraintViolated:
                db.execute("update latest set id = ? where email = ?", (recorded.stream, event.email))

    ms.App(log, projections=[Latest.inline()])
    log.append("user-1", UserAdded(email="a@example.com"))
    log.append("user-2", [UserAdded(email="a@example.com"), UserAdded(email="b@example.com")])
    with log.connect() as db:
        assert [tuple(row.values()) for row in db.query("select email, id from latest order by email")] == [
            ("a@example.com", "user-2"),
            ("b@example.com", "user-2"),
        ]


def test_a_deferred_constraint_rejects_its_own_append_and_none_of_those_in_the_same_commit(log):
    class Members(ms.Projection):
        schema = """
        create table teams (id text primary key);
        create table members (id text primary key, team text not null
            references teams deferrable initially deferred);
        """

        @ms.on
        def added(self, event: UserAdded, db: ms.Database, recorded: ms.Recorded) -> None:
            # First the member, then its team: that the order does not matter is what deferring is for.
            with db.savepoint():
                db.execute("insert into members values (?, ?)", (recorded.stream, event.email))
            if event.email != "nowhere":
                db.execute("insert into teams values (?) on conflict do nothing", (event.email,))

    ms.App(log, projections=[Members.inline()])
    failures = {}

    def append(stream: str, team: str) -> None:
        try:
            log.append(stream, UserAdded(email=team))
        except ms.MillstreamError as error:
            failures[stream] = error

    given = {"user-1": "red", "user-2": "nowhere", "user-3": "blue", "user-4": "red"}
    threads = [threading.Thread(target=append, args=each) for each in given.items()]
    with log.transaction() as tx:
        tx.db.execute("select 1")  # the writer is taken: the others queue behind it, for one commit
        for thread in threads:
            thread.start()
        while len(log.store.committer._queue) < len(threads):
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert log.store.committer._last == len(threads)
    assert list(failures) == ["user-2"]
    assert isinstance(failures["user-2"], ms.ConstraintViolated)
    with log.connect() as db:
        assert [row["id"] for row in db.query("select id from members order by id")] == ["user-1", "user-3", "user-4"]
    assert log.head == 3
