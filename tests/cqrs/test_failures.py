"""Events whose handlers raise: they stop, are left out or are parked, and are tried again or left out by command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import polars as pl
import pytest
from kept import eventually

import millstream as ms
from millstream.cqrs import failures

BAD: set[int] = set()
"""What the handlers do not take."""


class Booked(ms.Event, type="FailureBooked"):
    n: int


class Stopping(ms.Projection):
    name = "Bookings"
    schema = "create table bookings (position integer primary key, n integer)"

    @ms.on
    def booked(self, event: Booked, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into bookings values (?, ?)", (recorded.position, event.n))
        if event.n in BAD:
            raise ValueError(f"{event.n} is bad")


class Skipping(Stopping):
    name = "Bookings"
    on_failure = "skip"


class Parking(Stopping):
    name = "Bookings"
    on_failure = "park"


class ParkingFrames(ms.Projection):
    name = "Bookings"
    on_failure = "park"
    schema = Stopping.schema

    @ms.on_batch(Booked)
    def booked(self, frame: pl.DataFrame, db: ms.Database) -> None:
        db.insert("bookings", frame.select(pl.col("_position").alias("position"), "n"))
        if BAD & set(frame["n"]):
            raise ValueError(f"{min(BAD & set(frame['n']))} is bad")


class Bookings(ms.Query[list[int]]):
    pass


@pytest.fixture(autouse=True)
def nothing_is_bad() -> Iterator[None]:
    BAD.clear()
    yield
    BAD.clear()


@pytest.fixture(params=["own file", "the log's database"])
def path(request: Any, tmp_path: Any) -> str | None:
    return str(tmp_path / "read.db") if request.param == "own file" else None


def make(log: ms.Log, projection: Any, path: str | None) -> ms.App:
    app = ms.App(log, projections=[projection.into(path)])

    @app.query
    def bookings(query: Bookings, db: ms.Database) -> list[int]:
        return [row["n"] for row in db.query("select n from bookings order by position")]

    return app


def told(app: ms.App) -> list[tuple[int, str]]:
    return [(failure.position, str(failure.state)) for failure in app.failures("Bookings")]


def test_a_projection_that_stopped_goes_on_when_it_is_told_to_try_again(log: ms.Log, path: str | None) -> None:
    BAD.add(2)
    log.append("a", [Booked(n=1), Booked(n=2), Booked(n=3)])
    with make(log, Stopping, path) as app:
        eventually(lambda: app.status()[0].state is ms.State.FAILED)
        assert told(app) == [(2, "stopped")]
        failure = app.failures("Bookings")[0]
        assert (failure.type, failure.stream, failure.error) == ("FailureBooked", "a", "ValueError: 2 is bad")
        assert failure.time <= log.now()
        BAD.clear()
        assert app.retry("Bookings") == 1
        assert app.query(Bookings(), after=log.head) == [1, 2, 3]
        assert told(app) == []


def test_what_another_process_settles_is_noticed(log: ms.Log, path: str | None) -> None:
    BAD.add(2)
    log.append("a", [Booked(n=1), Booked(n=2), Booked(n=3)])
    with make(log, Stopping, path) as app:
        eventually(lambda: app.status()[0].state is ms.State.FAILED)
        with ms.open(log.path) as other:
            skipped = make(other, Stopping, path).skip("Bookings")
        assert skipped.position == 2
        eventually(lambda: app.query(Bookings()) == [1, 3])
        assert told(app) == [(2, "skipped")]


def test_by_policy_an_event_is_left_out(log: ms.Log, path: str | None) -> None:
    BAD.update({2, 3})
    log.append("a", [Booked(n=1), Booked(n=2), Booked(n=3), Booked(n=4)])
    with make(log, Skipping, path) as app:
        assert app.query(Bookings(), after=log.head) == [1, 4]
        assert told(app) == [(2, "skipped"), (3, "skipped")]


@pytest.mark.parametrize("projection", [Parking, ParkingFrames])
def test_by_policy_an_event_is_parked_and_later_ones_of_its_stream_wait_behind_it(
    log: ms.Log, path: str | None, projection: Any
) -> None:
    BAD.add(2)
    log.append("a", [Booked(n=1), Booked(n=2), Booked(n=3)])
    log.append("b", [Booked(n=10), Booked(n=11)])
    log.append("a", Booked(n=4))
    with make(log, projection, path) as app:
        assert app.query(Bookings(), after=log.head) == [1, 10, 11]
        assert told(app) == [(2, "parked"), (3, "behind"), (6, "behind")]
        with pytest.raises(ms.ProjectionFailed, match="2 is bad"):
            app.retry("Bookings")
        assert app.query(Bookings()) == [1, 10, 11]
        BAD.clear()
        assert app.retry("Bookings") == 3
        assert app.query(Bookings()) == [1, 2, 3, 10, 11, 4]
        # The stream is as before: what comes now is applied at once.
        receipt = log.append("a", Booked(n=5))
        assert app.query(Bookings(), after=receipt)[-1] == 5
        assert told(app) == []


@pytest.mark.parametrize("projection", [Parking, ParkingFrames])
def test_a_parked_event_that_is_left_out_lets_those_behind_it_go(
    log: ms.Log, path: str | None, projection: Any
) -> None:
    BAD.add(2)
    log.append("a", [Booked(n=1), Booked(n=2), Booked(n=3)])
    with make(log, projection, path) as app:
        app.query(Bookings(), after=log.head)
        assert app.skip("Bookings", position=2).position == 2
        assert app.query(Bookings()) == [1, 3]
        assert told(app) == [(2, "skipped")]
        with pytest.raises(ms.NotFound, match="failed at position 77"):
            app.skip("Bookings", position=77)
        with pytest.raises(ms.NotFound, match="does not stand before"):
            app.skip("Bookings")


def test_an_event_that_comes_to_wait_is_looked_up_by_a_key_and_not_among_all_that_wait(
    log: ms.Log, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []
    found = failures.last_waiting

    def last_waiting(db: ms.Database, name: str, stream: str) -> int | None:
        searched.append(stream)
        return found(db, name, stream)

    monkeypatch.setattr(failures, "last_waiting", last_waiting)
    BAD.add(2)
    with make(log, Parking, path) as app:
        for n in range(1, 40):
            log.append("a", Booked(n=n))
        app.query(Bookings(), after=log.head)
        assert len(told(app)) == 38
        assert searched == []
    with make(log, Parking, path) as app:
        app.query(Bookings(), after=log.append("a", Booked(n=40)))
        assert len(told(app)) == 39
        assert searched == []
        BAD.clear()
        assert app.retry("Bookings") == 39
        assert app.query(Bookings(), after=log.append("a", Booked(n=41))) == list(range(1, 42))
        assert searched == ["a"]  # once, since somebody has settled what was known to wait


def test_what_is_parked_stays_so_over_a_restart(log: ms.Log, path: str | None) -> None:
    BAD.add(2)
    log.append("a", [Booked(n=1), Booked(n=2)])
    with make(log, Parking, path) as app:
        app.query(Bookings(), after=log.head)
    with make(log, Parking, path) as app:
        app.query(Bookings(), after=log.append("a", Booked(n=3)))
        assert told(app) == [(2, "parked"), (3, "behind")]


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(ms.UsageError, match="on_failure is 'ignore'"):
        type("Ignoring", (ms.Projection,), {"on_failure": "ignore"})


class Sum(msgspec.Struct):
    seen: list[int] = []


class Sums(ms.Documents[Sum]):
    key = "_stream"
    on_failure = "park"
    table = "bookings"

    @ms.on
    def booked(self, event: Booked, sum: Sum) -> None:
        if event.n in BAD:
            raise ValueError(f"{event.n} is bad")
        sum.seen.append(event.n)


class Last(ms.Projection):
    schema = "create table last_bookings (n integer)"

    @ms.on
    def booked(self, event: Booked, db: ms.Database) -> None:
        db.execute("delete from last_bookings")
        db.execute("insert into last_bookings values (?)", (event.n,))


class After(ms.Projection):
    name = "Bookings"
    schema = "create table bookings (n integer, last integer)"
    reads = (Last,)
    on_failure = "skip"

    @ms.on
    def booked(self, event: Booked, db: ms.Database) -> None:
        if event.n in BAD:
            raise ValueError(f"{event.n} is bad")
        [last] = db.query("select n from last_bookings")
        db.execute("insert into bookings values (?, ?)", (event.n, last["n"]))


def test_what_was_parked_and_tried_again_is_what_a_rebuild_has(log: ms.Log, path: str | None) -> None:
    BAD.add(2)
    for stream, n in [("a", 1), ("b", 2), ("a", 3), ("b", 4), ("c", 5)]:
        log.append(stream, Booked(n=n))
    app = ms.App(log, projections=[Sums.into(path)])

    @app.query
    def bookings(query: Bookings, db: ms.Database) -> Any:
        return {key: each.seen for key, each in Sums.find(db, "true order by key").items()}

    with app:
        assert app.query(Bookings(), fresh=True) == {"a": [1, 3], "c": [5]}
        assert app.query(Bookings(), at=ms.Position(5)) == {"a": [1, 3], "c": [5]}
        BAD.clear()
        assert app.retry(Sums) == 2
        assert app.query(Bookings()) == {"a": [1, 3], "b": [2, 4], "c": [5]}
        assert app.compare(Sums).same


def test_to_park_is_refused_where_it_would_change_an_order_that_matters(log: ms.Log, path: str | None) -> None:
    parking = {"on_failure": "park"}
    with pytest.raises(ms.InvalidHandler, match="looks up changes with the events of all streams"):
        type("Looking", (After,), parking).into(path)
    with pytest.raises(ms.InvalidHandler, match="of events of several streams") as caught:
        type("Keyed", (Sums,), {"key": "n"}).live()
    assert "rebuild" in (caught.value.hint or "")
    with pytest.raises(ms.InvalidHandler, match="of events of several streams"):
        type("Computed", (Sums,), {"keys_of": lambda self, event, recorded: "all"}).into(path)
    assert type("Inside", (After,), parking).inline().inline  # where nothing is parked: it rejects the append


def test_what_was_skipped_is_in_its_place_after_a_rebuild(log: ms.Log, path: str | None) -> None:
    BAD.add(2)
    for stream, n in [("a", 1), ("b", 2), ("a", 3)]:
        log.append(stream, Booked(n=n))
    app = ms.App(log, projections=[After.into(path)])

    @app.query
    def bookings(query: Bookings, db: ms.Database) -> Any:
        return [(row["n"], row["last"]) for row in db.query("select * from bookings order by n")]

    with app:
        assert app.query(Bookings(), fresh=True) == [(1, 1), (3, 3)]
        BAD.clear()
        app.rebuild(After)
        assert app.query(Bookings(), fresh=True) == [(1, 1), (2, 2), (3, 3)]
        assert told(app) == []
