"""An app in a forked child: a process of its own, beside a parent that goes on."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from tests.forked import in_child

import millstream as ms


class Forked(ms.Event, type="AppForked"):
    n: int


class Sum(ms.Aggregate):
    total: int = 0

    def add(self, n: int) -> None:
        self.record(Forked(n=n))

    @ms.on
    def added(self, event: Forked) -> None:
        self.total += event.n


class Add(ms.Command):
    sum: ms.Ref[Sum]
    n: int


class Rows(ms.Projection):
    schema = "create table forked_rows (n integer)"

    @ms.on
    def added(self, event: Forked, db: ms.Database) -> None:
        db.execute("insert into forked_rows values (?)", (event.n,))


class Count(ms.Query[int]):
    pass


def make(path: Path, *, live: bool = False, into: str = "read.db") -> ms.App:
    app = ms.App(ms.open(path / "log.db"), projections=[Rows.live() if live else Rows.into(path / into)])

    @app.command
    def add(command: Add, sum: Sum) -> None:
        sum.add(command.n)

    @app.query
    def count(query: Count, db: ms.Database) -> int:
        return int(db.query("select count(*) as n from forked_rows")[0]["n"])

    return app


def test_commands_of_coroutines_are_executed_in_a_child_whose_parent_has_executed_some(tmp_path: Path) -> None:
    app = make(tmp_path)
    for version in range(1, 6):
        assert asyncio.run(app.aexecute(Add("s", 1))).version == version

    def work() -> None:
        assert asyncio.run(app.aexecute(Add("s", 2))).version == 6

    in_child(work)
    assert asyncio.run(app.aexecute(Add("s", 3))).version == 7


@pytest.mark.parametrize("live", [False, True])
def test_a_child_sees_what_its_parent_keeps(tmp_path: Path, live: bool) -> None:
    with make(tmp_path, live=live) as app:
        assert app.query(Count(), after=app.execute(Add("s", 1))) == 1

        def work() -> None:
            assert app.query(Count(), after=app.execute(Add("s", 2)), timeout=10) == 2

        in_child(work)
        assert app.query(Count(), after=app.execute(Add("s", 3))) == 3


def test_of_a_parent_and_its_child_one_keeps_a_read_model(tmp_path: Path) -> None:
    with make(tmp_path) as app:
        assert app.query(Count(), after=app.execute(Add("s", 1))) == 1

        def work() -> None:
            with app:
                for n in range(2, 5):
                    assert app.query(Count(), after=app.execute(Add("s", n))) == n
                assert app.status()[0].state == "standby"

        in_child(work)
        (mine,) = app.status()
        assert (mine.state, mine.restarts, mine.position) == ("running", 0, 4)


def test_what_a_parent_has_open_in_duckdb_is_refused_to_its_child_and_stays_as_it_is(tmp_path: Path) -> None:
    with make(tmp_path, into="read.duckdb") as app:
        assert app.query(Count(), after=app.execute(Add("s", 1))) == 1

        def work() -> None:
            with pytest.raises(ms.StorageError, match="open in the process that this one was forked from"):
                app.query(Count())
            app.execute(Add("s", 2))
            app.stop()
            in_child(lambda: app.execute(Add("s", 3)))

        in_child(work)
        assert app.query(Count(), fresh=True) == 3


def test_a_child_keeps_in_duckdb_what_its_parent_has_made_and_does_not_run(tmp_path: Path) -> None:
    app = make(tmp_path, into="read.duckdb")

    def work() -> None:
        with app:
            assert app.query(Count(), after=app.execute(Add("s", 1))) == 1

    in_child(work)
    in_child(lambda: app.execute(Add("s", 2)))
    with app:
        assert app.query(Count(), fresh=True) == 2


def test_the_first_threads_of_a_child_share_one_log(tmp_path: Path) -> None:
    app = make(tmp_path)
    app.execute(Add("s", 0))

    def work() -> None:
        begin = threading.Barrier(8)
        failed: list[BaseException] = []

        def add(n: int) -> None:
            begin.wait()
            try:
                app.execute(Add(f"s-{n}", 1))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=add, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed

    for _ in range(10):
        in_child(work)
    assert app.log.head == 81
