"""Asynchronous projections: caught up, live, exactly once, fenced, and stopped by their own faults alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import polars as pl
import pytest
from kept import eventually

import millstream as ms
from millstream.cqrs.homes import Home
from millstream.cqrs.keeping import Keeper
from millstream.cqrs.watch import Watch
from millstream.log.checkpoints import peek


class Added(ms.Event):
    n: int


class Other(ms.Event):
    pass


class Numbers(ms.Projection):
    schema = "create table numbers (position integer primary key, n integer not null)"

    @ms.on
    def added(self, event: Added, db: ms.Database, recorded: ms.Recorded) -> None:
        if event.n < 0:
            raise ValueError(f"{event.n} is negative")
        db.execute("insert into numbers values (?, ?)", (recorded.position, event.n))


class Total(ms.Projection):
    schema = "create table total (n integer not null); insert into total values (0)"

    @ms.on
    def added(self, event: Added, db: ms.Database) -> None:
        db.execute("update total set n = n + ?", (event.n,))


class AllNumbers(ms.Query[list[int]]):
    pass


class Rows(ms.Projection):
    schema = "create table some_rows (position integer)"

    @ms.on
    def added(self, event: Added, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into some_rows values (?)", (recorded.position,))
        if event.n in FULL:
            FULL.remove(event.n)
            raise ms.DiskFull("the disk")
        time.sleep(0.001)  # so that one transaction does not take them all


FULL: list[int] = []
"""At which numbers the disk is full, once."""


class AllRows(ms.Query[list[int]]):
    pass


@pytest.fixture
def log(shared_home):
    with ms.open(shared_home) as log:
        yield log


@pytest.fixture(params=["own file", "the log's database"])
def read(request, tmp_path):
    """The place for a read model."""
    return str(tmp_path / "read.db") if request.param == "own file" else None


@pytest.fixture
def place(home, read):
    """A log, and the place for a read model."""
    with ms.open(home) as log:
        yield log, read


def make(log: ms.Log, path: str | None, *projections: Any) -> ms.App:
    app = ms.App(log, projections=[(p if isinstance(p, ms.Placement) else p.into(path)) for p in projections])

    @app.query(reads=[Numbers])
    def all_numbers(query: AllNumbers, db: ms.Database) -> list[int]:
        return [row["n"] for row in db.query("select n from numbers order by position")]

    return app


def status(app: ms.App, name: str) -> ms.WorkerStatus:
    return next(s for s in app.status() if s.name == name)


def test_history_first_and_then_live(place):
    log, path = place
    log.append("a", [Added(n=n) for n in range(3)])
    with make(log, path, Numbers) as app:
        assert app.query(AllNumbers(), after=log.head) == [0, 1, 2]
        receipt = log.append("b", Added(n=7))
        assert app.query(AllNumbers(), after=receipt) == [0, 1, 2, 7]


def test_a_long_history_is_kept_in_full_and_in_order(place):
    log, path = place
    log.append("a", [Added(n=n) for n in range(12_000)])
    log.append("b", pl.DataFrame({"n": range(12_000, 20_000)}), type="Added")
    log.commit([log.stage("c", Added(n=n)) for n in range(20_000, 21_000)])
    with make(log, path, Numbers) as app:
        assert app.query(AllNumbers(), after=log.head, timeout=60) == list(range(21_000))


def test_a_restart_goes_on_where_it_was(place):
    log, path = place
    for n in range(3):
        receipt = log.append("a", Added(n=n))
        with make(log, path, Numbers) as app:
            assert app.query(AllNumbers(), after=receipt) == list(range(n + 1))


def test_a_process_that_has_not_been_told_of_the_log_goes_on_where_it_was(shared_home, read):
    with ms.open(shared_home) as log:
        log.append("s", [Added(n=1)] * 5)
        app = ms.App(log, projections=[Total.into(read)])
        with app:
            assert app._followers["Total"].wait(log.head, 10)
        log.append("s", [Added(n=1)] * 3)
    with ms.open(shared_home) as log:
        assert log.tail.after(5) is None
        app = ms.App(log, projections=[Total.into(read)])

        @app.query
        def total(query: AllNumbers, db: ms.Database) -> list[int]:
            return [row["n"] for row in db.query("select n from total")]

        with app:
            assert app.query(AllNumbers(), after=8) == [8]


def test_after_accepts_that_nothing_of_its_types_has_come_since(place):
    log, path = place
    receipt = log.append("a", Added(n=1))
    with make(log, path, Numbers) as app:
        app.query(AllNumbers(), after=receipt)
    receipt = log.append("b", [Other()] * 5)
    # No worker runs: what it has seen is enough all the same.
    assert app.query(AllNumbers(), after=receipt, timeout=0) == [1]


def test_its_checkpoint_advances_though_its_types_do_not_occur(place):
    log, path = place
    with make(log, path, Numbers) as app:
        receipt = log.append("b", [Other()] * 5)
        app.query(AllNumbers(), after=receipt)
        follower = app._followers["Numbers"]
        eventually(lambda: follower._stored() == receipt.position)


def test_after_waits_no_longer_than_told(place):
    log, path = place
    app = make(log, path, Numbers)
    receipt = log.append("a", Added(n=1))
    with pytest.raises(ms.TimedOut, match=r"'Numbers' has not come to position 1 within 0\.05 s"):
        app.query(AllNumbers(), after=receipt, timeout=0.05)
    assert app.query(AllNumbers()) == []


def test_a_failing_handler_stops_its_projection_right_before_the_event(place):
    log, path = place
    log.append("a", [Added(n=1), Added(n=2), Added(n=-3), Added(n=4)])
    with make(log, path, Numbers, Total) as app:
        with pytest.raises(
            ms.ProjectionFailed, match=r"'Numbers' stopped at position 3 \(Added\): ValueError: -3 is negative"
        ) as caught:
            app.query(AllNumbers(), after=log.head)
        assert (caught.value.projection, caught.value.position) == ("Numbers", 3)
        assert isinstance(caught.value.__cause__, ValueError)
        assert app.query(AllNumbers()) == [1, 2]
        failed = status(app, "Numbers")
        assert (failed.state, failed.position, failed.behind) == (ms.State.FAILED, 2, 2)
        assert failed.error is not None
        assert "-3 is negative" in failed.error
        # The other one keeps going.
        log.append("a", Added(n=5))
        eventually(lambda: status(app, "Total").position == 5)
        assert status(app, "Total").state is ms.State.RUNNING


def test_a_mended_handler_goes_on_with_the_event_that_failed(place):
    log, path = place
    log.append("a", [Added(n=1), Added(n=-3), Added(n=4)])
    with make(log, path, Numbers) as app, pytest.raises(ms.ProjectionFailed):
        app.query(AllNumbers(), after=log.head)

    class Mended(Numbers):
        name = "Numbers"

        @ms.on
        def added(self, event: Added, db: ms.Database, recorded: ms.Recorded) -> None:
            super().added(event.replace(n=abs(event.n)), db, recorded)

    app = ms.App(log, projections=[Mended.into(path)])

    @app.query
    def all_numbers(query: AllNumbers, db: ms.Database) -> list[int]:
        return [row["n"] for row in db.query("select n from numbers order by position")]

    with app:
        assert app.query(AllNumbers(), after=log.head) == [1, 3, 4]


def test_an_event_that_does_not_fit_stops_it_right_before_that_event(place):
    log, path = place
    log.append("a", [ms.Plain("Added", {"n": 1}), ms.Plain("Added", {"n": "one"}), ms.Plain("Added", {"n": 2})])
    with make(log, path, Numbers) as app:
        with pytest.raises(ms.ProjectionFailed, match=r"position 2 \(Added\): InvalidEvent"):
            app.query(AllNumbers(), after=log.head)
        assert app.query(AllNumbers()) == [1]


def test_of_two_workers_one_stands_by_and_takes_over(shared_home, read):
    with ms.open(shared_home) as one, ms.open(shared_home) as two:
        first, second = make(one, read, Numbers), make(two, read, Numbers)
        with second:
            with first:
                for n in range(20):
                    receipt = one.append("a", Added(n=n))
                # Both answer, the one that stands by from what the other keeps.
                for app in (first, second):
                    assert app.query(AllNumbers(), after=receipt) == list(range(20))
                states = lambda: sorted(status(app, "Numbers").state for app in (first, second))  # noqa: E731
                eventually(lambda: states() == [ms.State.RUNNING, ms.State.STANDBY])
            eventually(lambda: status(second, "Numbers").state is ms.State.RUNNING)
            receipt = two.append("a", Added(n=20))
            for app in (first, second):
                assert app.query(AllNumbers(), after=receipt) == list(range(21))


def test_another_schema_of_tables_beside_which_there_is_no_room_is_told_by_status_and_query(tmp_path):
    with ms.open() as log:
        with make(log, None, Numbers) as app:
            app.query(AllNumbers(), after=log.append("a", Added(n=1)))
        changed = type("Numbers", (Numbers,), {"schema": "create table numbers (n integer)", "name": "Numbers"})
        app = ms.App(log, projections=[changed.into()])

        @app.query
        def all_numbers(query: AllNumbers, db: ms.Database) -> list[int]:
            raise AssertionError("not to be asked")

        with app:
            with pytest.raises(ms.ReadModelChanged, match="'Numbers'"):
                app.query(AllNumbers(), after=log.append("a", Added(n=2)))
            eventually(lambda: status(app, "Numbers").state is ms.State.FAILED)


@pytest.mark.parametrize("kept", [True, False], ids=["another log", "a log that lost its end"])
def test_a_read_model_of_another_log_is_told_rather_than_mixed(tmp_path, kept):
    path, read = str(tmp_path / "log.db"), str(tmp_path / "read.db")
    with ms.open(path) as log:
        log.append("a", Added(n=1))
        log.backup(str(tmp_path / "backup.db"))
        with make(log, read, Numbers) as app:
            app.query(AllNumbers(), after=log.append("a", Added(n=2)))
    with ms.open(None if kept else str(tmp_path / "backup.db")) as log:
        reason = "built from another one" if kept else "shows position 2, and the log ends at 1"
        with make(log, read, Numbers) as app, pytest.raises(ms.ForeignReadModel, match=reason):
            app.query(AllNumbers(), after=log.head)
        with pytest.raises(ms.ForeignReadModel, match=reason):
            app.query(AllNumbers())


def test_a_process_that_only_reads_the_log_answers_queries(shared_home, read):
    with ms.open(shared_home) as log, make(log, read, Numbers, Total.inline()):
        receipt = log.append("a", Added(n=1))
        with ms.open(shared_home, readonly=True) as reader:
            assert make(reader, read, Numbers, Total.inline()).query(AllNumbers(), after=receipt) == [1]


def test_an_append_is_seen_at_once_though_the_worker_was_waiting(place):
    log, path = place
    with make(log, path, Numbers) as app:
        app.query(AllNumbers(), after=log.append("a", Added(n=0)))
        time.sleep(0.1)
        began = time.monotonic()
        for n in range(20):
            app.query(AllNumbers(), after=log.append("a", Added(n=n)))
        assert time.monotonic() - began < 20 * 0.25


# --- processes -------------------------------------------------------------------------------------

WORKER = """
import sys, threading
import millstream as ms
from test_async_projection import Numbers

log = ms.open(sys.argv[1])
app = ms.App(log, projections=[Numbers.into(sys.argv[2] or None)])
app.start()
print("ready", flush=True)
threading.Event().wait()
"""


def test_killed_again_and_again_each_event_takes_effect_once(shared_home, read):
    env = {**os.environ, "PYTHONPATH": ":".join([*sys.path, __file__.rpartition("/")[0]])}
    with ms.open(shared_home) as log:
        n = 0
        for round in range(4):
            worker = subprocess.Popen(
                [sys.executable, "-c", WORKER, shared_home, read or ""], stdout=subprocess.PIPE, text=True, env=env
            )
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 0.15 + 0.1 * round
            while time.monotonic() < deadline:
                log.append("a", [Added(n=n + i) for i in range(40)])
                n += 40
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            worker.stdout.close()
        with make(log, read, Numbers) as app:
            assert app.query(AllNumbers(), after=log.head, timeout=60) == list(range(n))


def test_the_checkpoint_never_says_more_than_the_rows(tmp_path):
    """They are of one transaction: whenever the file is looked at, they agree."""
    path, read = str(tmp_path / "log.db"), str(tmp_path / "read.db")
    from millstream.storage.sqlite.database import open_database

    with ms.open(path) as log, make(log, read, Numbers):
        db = open_database(read, readonly=True)
        for n in range(200):
            log.append("a", Added(n=n))
            db.execute("begin")
            checkpoint = peek(db, "projection:Numbers")
            last = db.one("select coalesce(max(position), 0) as position from numbers")
            db.execute("rollback")
            assert last is not None
            assert (checkpoint.position if checkpoint else 0) == last["position"]
        db.close()


@pytest.mark.parametrize("place", [lambda p, path: p.inline(), lambda p, path: p.into(path)], ids=["inline", "file"])
def test_a_schema_that_does_not_run_names_its_projection(log, tmp_path, place):
    other = type("Other", (Numbers,), {})
    bad = type("Bad", (Numbers,), {"schema": "create tabel bad (id)"})
    with pytest.raises(ms.DatabaseError, match=r"schema of projection 'Other' does not run.*numbers\W+already exists"):
        ms.App(log, projections=[place(p, str(tmp_path / "read.db")) for p in (Numbers, other)])
    with pytest.raises(ms.DatabaseError, match=r"schema of projection 'Bad' does not run.*tabel"):
        ms.App(log, projections=[place(bad, str(tmp_path / "bad.db"))])


def test_a_file_that_can_hold_no_read_model_is_refused(tmp_path):
    path, other = tmp_path / "log.db", tmp_path / "notes.txt"
    other.write_text("these are notes, and no database at all" * 50)
    with ms.open(str(path)) as log:
        with pytest.raises(ms.UsageError, match=r"notes\.txt is no SQLite database"):
            ms.App(log, projections=[Numbers.into(other)])
        with pytest.raises(ms.UsageError, match=r"is the log's own file.*Numbers\.into\(\)"):
            ms.App(log, projections=[Numbers.into(path)])


def test_a_read_model_is_built_from_what_is_archived_and_without_what_is_trimmed(place, tmp_path):
    log, path = place
    log.append("a", [Added(n=n) for n in range(10)])
    log.append("b", pl.DataFrame({"n": range(10, 20)}), type="Added")
    for n in range(20, 30):
        log.append("c", Added(n=n))
    for stream in "abc":
        log.archive(stream, to=str(tmp_path / "old"))
    log.trim("c", keep=5)
    with make(log, path, Numbers) as app:
        assert app.query(AllNumbers(), after=log.head) == [*range(20), *range(25, 30)]


def test_a_worker_that_starts_again_in_the_middle_of_an_append_applies_no_event_twice(log, tmp_path):
    app = ms.App(log, projections=[Rows.into(), Total.into(str(tmp_path / "total.db"))])

    @app.query(reads=[Rows])
    def all_rows(query: AllRows, db: ms.Database) -> list[int]:
        return [row["position"] for row in db.query("select position from some_rows order by position")]

    FULL[:] = [30]
    with app:
        app.query(AllRows(), after=log.append("a", Added(n=0)))
        eventually(lambda: all(each.state is ms.State.RUNNING for each in app.status()))
        receipt = log.append("a", [Added(n=n) for n in range(1, 51)])
        assert app.query(AllRows(), after=receipt) == list(range(1, 52))
        assert app.status()[0].restarts == 1
    assert FULL == []


@pytest.mark.parametrize("place", ["read.db", "read.duckdb", None])
def test_who_is_told_to_stop_while_it_takes_a_read_model_over_gets_on_all_the_same(log, tmp_path, place):
    log.append("s", [Added(n=n) for n in range(20)])
    stop = threading.Event()
    stop.set()
    placement = Numbers.into(None if place is None else tmp_path / place)
    with Home(log, placement.name, placement.path).target.kept_open() as target:
        before = 0
        while before < 20:
            keeper = Keeper(log, placement, target, lambda position: None)
            keeper.take()
            keeper.follow(stop, Watch(log, threading.Condition()))
            with target.reading() as db:
                assert db.one("select count(*) as n from numbers") == {"n": keeper.seen}
            assert keeper.seen > before
            before = keeper.seen
