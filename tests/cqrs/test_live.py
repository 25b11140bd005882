"""Live projections: computed when they are asked; and what is refused for rows that are kept nowhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest

import millstream as ms


class Rung(ms.Event, type="LiveRung"):
    till: str
    cents: int


class Sums(ms.Projection):
    schema = "create table sums (till text primary key, cents integer not null)"

    @ms.on_batch(Rung)
    def rung(self, frame: pl.DataFrame, db: ms.Database) -> None:
        db.upsert("sums", frame.group_by("till").agg(pl.col("cents").sum()), key="till", add=["cents"])


class Slips(ms.Projection):
    schema = "create table slips (position integer primary key, cents integer check (cents < 1000))"

    @ms.on
    def rung(self, event: Rung, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into slips values (?, ?)", (recorded.position, event.cents))


class GetSums(ms.Query[dict[str, int]]):
    pass


class CountSlips(ms.Query[int]):
    pass


def app_of(log: ms.Log, *placements: Any) -> ms.App:
    app = ms.App(log, projections=placements)

    @app.query
    def get_sums(query: GetSums, db: ms.Database) -> dict[str, int]:
        return {row["till"]: row["cents"] for row in db.query("select * from sums")}

    @app.query(reads=[Slips] if any(each.projection is Slips for each in placements) else None)
    def count_slips(query: CountSlips, db: ms.Database) -> int:
        return db.query("select count(*) as n from slips")[0]["n"]  # type: ignore[no-any-return]

    return app


@pytest.fixture
def log(tmp_path: Any) -> Iterator[ms.Log]:
    with ms.open(str(tmp_path / "log.db")) as log:
        log.append("t-1", [Rung(till="a", cents=n) for n in (1, 2, 3)])
        yield log


def test_a_live_projection_shows_all_that_is_committed_without_a_worker(log: ms.Log) -> None:
    app = app_of(log, Sums.live())
    assert app.query(GetSums()) == {"a": 6}
    receipt = log.append("t-1", Rung(till="b", cents=5))
    assert app.query(GetSums()) == {"a": 6, "b": 5}
    assert app.query(GetSums(), after=receipt, fresh=True, behind="raise") == {"a": 6, "b": 5}
    assert app.query(GetSums(), at=ms.Position(2)) == {"a": 3}
    assert (app.answer(GetSums()).position, app.answer(GetSums()).behind) == (4, 0)


def test_it_is_folded_on_and_not_again(log: ms.Log) -> None:
    seen: list[int] = []

    class Counting(Slips):
        name = "Slips"

        @ms.on
        def rung(self, event: Rung, db: ms.Database, recorded: ms.Recorded) -> None:
            seen.append(recorded.position)
            super().rung(event, db, recorded)

    app = app_of(log, Counting.live())
    assert app.query(CountSlips()) == 3
    log.append("t-1", Rung(till="b", cents=5))
    app.start()
    app.stop()
    assert app.query(CountSlips()) == 4
    assert seen == [1, 2, 3, 4]


def test_it_stands_beside_kept_ones_and_is_seen_by_many_threads(log: ms.Log, tmp_path: Any) -> None:
    app = app_of(log, Sums.live(), Slips.into(str(tmp_path / "read.db")))
    answers: list[int] = []
    with app:

        def ask() -> None:
            for _ in range(20):
                receipt = log.append("t-1", Rung(till="c", cents=1))
                assert app.query(CountSlips(), after=receipt) >= 4
                answers.append(app.query(GetSums())["c"])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        status = {each.name: each for each in app.status()}
    assert max(answers) == 80
    assert (status["Sums"].state, status["Sums"].behind) == ("running", 0)


def test_a_live_query_follows_the_log(log: ms.Log) -> None:
    app = app_of(log, Sums.live())
    answers = app.subscribe(GetSums(), timeout=5)
    assert next(answers) == {"a": 6}
    log.append("t-1", Rung(till="a", cents=1))
    assert next(answers) == {"a": 7}


def test_an_event_that_fails_is_told_to_who_asks_and_tried_again(log: ms.Log) -> None:
    app = app_of(log, Slips.live())
    assert app.query(CountSlips()) == 3
    log.append("t-1", [Rung(till="a", cents=4), Rung(till="a", cents=5000)])
    for _ in range(2):
        assert app.query(CountSlips()) == 4  # all before it
        with pytest.raises(ms.ReadModelBehind, match="stopped at position 5"):
            app.query(CountSlips(), behind="raise")
    assert "position 5" in app.answer(CountSlips()).problems[0]
    assert app.status()[0].state == "failed"
    assert [failure.position for failure in app.failures(Slips)] == [5]


def test_one_that_is_mended_answers_at_once_and_one_that_fails_is_no_matter_of_others(log: ms.Log) -> None:
    failing = [True]

    class Mended(ms.Projection):
        schema = "create table mended (n integer)"

        @ms.on
        def rung(self, event: Rung, db: ms.Database) -> None:
            if failing:
                raise ValueError("not yet")
            db.execute("insert into mended values (?)", (event.cents,))

    class CountMended(ms.Query[int]):
        pass

    class Constant(ms.Query[int]):
        pass

    app = ms.App(log, projections=[Mended.live()])

    @app.query
    def count(query: CountMended, db: ms.Database) -> int:
        return len(db.query("select n from mended"))

    @app.query
    def constant(query: Constant) -> int:
        return 1

    log.append("t-9", Rung(till="z", cents=1))
    asked = log.head
    assert (app.query(Constant()), app.query(CountMended())) == (1, 0)
    failing.clear()
    assert app.query(CountMended(), behind="raise") == sum(1 for each in log.read() if each.type == "LiveRung")
    assert app.answer(CountMended()).position == asked


def test_what_would_do_nothing_for_rows_that_are_kept_nowhere_is_refused(log: ms.Log) -> None:
    app = app_of(log, Sums.live())
    for act in (app.pause, app.resume, app.rebuild, app.rollback, app.compare, app.retry, app.skip):
        with pytest.raises(ms.UsageError, match="is live"):
            act(Sums)
    app = app_of(log, Sums.into(":memory:"))
    for act in (app.pause, app.resume):
        with pytest.raises(ms.UsageError, match="in memory"):
            act(Sums)


def test_what_is_in_memory_is_filled_for_a_process_without_workers(log: ms.Log) -> None:
    app = app_of(log, Sums.into(":memory:"))
    assert app.query(GetSums()) == {}
    app.fill()
    assert app.query(GetSums()) == {"a": 6}
    with app:
        assert app.query(GetSums(), fresh=True) == {"a": 6}


class Nest(ms.Query[list[int]]):
    depth: int


def test_a_query_within_a_query_sees_what_was_appended_meanwhile_and_the_outer_one_its_moment(log: ms.Log) -> None:
    app = app_of(log, Slips.live())

    @app.query
    def nest(query: Nest, db: ms.Database) -> list[int]:
        before = db.query("select count(*) as n from slips")[0]["n"]
        inner: list[int] = []
        if query.depth:
            log.append("t-1", Rung(till="a", cents=1))
            inner = app.query(Nest(query.depth - 1))
        assert db.query("select count(*) as n from slips")[0]["n"] == before
        return [before, *inner]

    assert app.query(Nest(3)) == [3, 4, 5, 6]
    assert app.query(Nest(3)) == [6, 7, 8, 9]
    assert app.query(CountSlips()) == 9
    assert len(app._followers["Slips"]._copies) <= 2  # type: ignore[attr-defined]


def test_a_long_answer_holds_up_neither_appends_nor_other_answers(log: ms.Log) -> None:
    app = app_of(log, Slips.live())
    reading, done = threading.Event(), threading.Event()

    @app.query
    def nest(query: Nest, db: ms.Database) -> list[int]:
        found = [db.query("select count(*) as n from slips")[0]["n"]]
        reading.set()
        assert done.wait(20)
        return [*found, db.query("select count(*) as n from slips")[0]["n"]]

    answers: list[list[int]] = []
    thread = threading.Thread(target=lambda: answers.append(app.query(Nest(0))))
    thread.start()
    assert reading.wait(20)
    for n in range(4, 10):
        log.append("t-1", Rung(till="a", cents=1))
        assert app.query(CountSlips()) == n
    done.set()
    thread.join()
    assert answers == [[3, 3]]


def test_answers_under_appends_from_many_threads_are_of_one_moment_each(log: ms.Log) -> None:
    app = app_of(log, Slips.live())
    wrong: list[Any] = []

    @app.query
    def nest(query: Nest, db: ms.Database) -> list[int]:
        one = db.query("select count(*) as n from slips")[0]["n"]
        return [one, db.query("select count(*) as n from slips")[0]["n"]]

    def ask() -> None:
        for _ in range(30):
            receipt = log.append("t-1", Rung(till="a", cents=1))
            one, other = app.query(Nest(0))
            if one != other or one < receipt.position:
                wrong.append((receipt.position, one, other))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert app.query(CountSlips()) == 123


class Guest(ms.Event, type="LiveGuest", subject="id"):
    id: str
    name: ms.Personal[str]


class Guests(ms.Projection):
    schema = "create table guests (id text primary key, name text)"

    @ms.on
    def guest(self, event: Guest, db: ms.Database) -> None:
        db.execute("insert into guests values (?, ?)", (event.id, event.name))


def test_what_is_forgotten_is_gone_from_the_next_answer(log: ms.Log) -> None:
    app = ms.App(log, projections=[Guests.live()])

    @app.query
    def get_sums(query: GetSums, db: ms.Database) -> dict[str, Any]:
        return {row["id"]: row["name"] for row in db.query("select * from guests")}

    log.append("g", [Guest(id="1", name="Ann"), Guest(id="2", name="Bob")])
    assert app.query(GetSums()) == {"1": "Ann", "2": "Bob"}
    log.forget("1")
    assert app.query(GetSums()) == {"1": "[erased]", "2": "Bob"}
    assert len(app._followers["Guests"]._copies) == 1  # type: ignore[attr-defined]
    log.append("g", Guest(id="3", name="Cid"))
    assert app.query(GetSums()) == {"1": "[erased]", "2": "Bob", "3": "Cid"}
