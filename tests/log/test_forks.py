"""A log in SQLite whose process forks: whoever is at work, nothing hangs and nothing is lost."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.forked import begin, in_child

import millstream as ms
from millstream.storage.sqlite import forks
from millstream.storage.sqlite.database import open_database


class Sent(ms.Event, type="ForkSent"):
    by: str
    n: int


def sent(log: ms.Log) -> list[tuple[str, int]]:
    return [(each.data["by"], each.data["n"]) for each in log.read()]


def wait(child: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_a_child_commits_is_there_when_its_parent_has_closed_the_log(tmp_path: Path) -> None:
    log = ms.open(tmp_path / "log.db")
    log.append("s", Sent(by="parent", n=0))
    began, begun = os.pipe()
    close, closed = os.pipe()

    def work() -> None:
        log.append("s", Sent(by="child", n=1))
        os.write(begun, b".")
        os.read(close, 1)
        log.append("s", Sent(by="child", n=2))

    child = begin(work)
    os.read(began, 1)
    log.close()  # the last of this process puts what is beside the file into it, but not under another process
    os.write(closed, b".")
    wait(child)
    with ms.open(tmp_path / "log.db") as log:
        assert sent(log) == [("parent", 0), ("child", 1), ("child", 2)]
        log.verify()


def test_a_child_closes_what_the_parent_has_read_half(tmp_path: Path) -> None:
    with closing(open_database(str(tmp_path / "own.db"))) as db:
        db.executescript("create table t (n integer); insert into t values (1), (2), (3)")
        half = db.execute("select n from t")
        assert half.fetchone() == (1,)

        def work() -> None:
            with closing(open_database(str(tmp_path / "own.db"))) as own:
                own.execute("insert into t values (4)")

        in_child(work)
        assert half.fetchall() == [(2,), (3,)]
    with closing(open_database(str(tmp_path / "own.db"), readonly=True)) as db:
        assert [row["n"] for row in db.query("select n from t")] == [1, 2, 3, 4]


def test_a_fork_waits_for_a_transaction_of_another_thread(tmp_path: Path) -> None:
    with ms.open(tmp_path / "log.db") as log:
        inside, events = threading.Event(), []

        def slow(db: ms.Database, receipt: ms.Receipt) -> None:
            inside.set()
            time.sleep(0.3)
            events.append("committed")

        thread = threading.Thread(target=lambda: log.commit(work=slow))
        thread.start()
        inside.wait()
        child = begin(lambda: log.append("s", Sent(by="child", n=1)))
        events.append("forked")
        wait(child)
        thread.join()
        assert events == ["committed", "forked"]
        assert sent(log) == [("child", 1)]


@pytest.mark.parametrize("place", ["log.db", ":memory:"])
def test_a_child_forked_in_another_threads_transaction_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 0.05)
    with ms.open(place if place == ":memory:" else tmp_path / place) as log:
        inside, go_on = threading.Event(), threading.Event()

        def held(db: ms.Database, receipt: ms.Receipt) -> None:
            inside.set()
            go_on.wait()

        thread = threading.Thread(target=lambda: log.commit(work=held))
        thread.start()
        inside.wait()

        def work() -> None:
            with pytest.raises(ms.StorageError, match="was in use in the process that this one was forked from"):
                log.append("s", Sent(by="child", n=1))
            with ms.open(tmp_path / "another.db") as another:
                another.append("s", Sent(by="child", n=2))

        child = begin(work)
        go_on.set()
        wait(child)
        thread.join()
        log.append("s", Sent(by="parent", n=3))
        assert sent(log) == [("parent", 3)]
        in_child(lambda: log.append("s", Sent(by="child", n=4)))
        log.verify()


def test_a_child_forked_in_ones_own_transaction_is_told(tmp_path: Path) -> None:
    with ms.open(tmp_path / "log.db") as log:

        def refused() -> None:
            with pytest.raises(ms.StorageError, match="was in use in the process"):
                log.append("s", Sent(by="child", n=1))

        log.commit(work=lambda db, receipt: in_child(refused))
        with log.connect() as db, db.snapshot():
            assert db.query("select count(*) as n from events") == [{"n": 0}]
            in_child(lambda: log.append("s", Sent(by="child", n=2)))
            assert db.query("select count(*) as n from events") == [{"n": 0}]
        assert sent(log) == [("child", 2)]


def test_children_of_a_busy_process_go_on_as_it_does(tmp_path: Path) -> None:
    with ms.open(tmp_path / "log.db") as log:
        stop = threading.Event()
        counts = dict.fromkeys(("a", "b"), 0)

        def add(by: str) -> None:
            while not stop.is_set():
                log.append(by, Sent(by=by, n=counts[by]))
                counts[by] += 1
                assert log.version(by) == counts[by]

        def follow() -> None:
            after = 0
            while not stop.is_set():
                if log.wait(after, 0.05):
                    after = log.head

        threads = [threading.Thread(target=add, args=(by,)) for by in counts]
        threads.append(threading.Thread(target=follow))
        for thread in threads:
            thread.start()

        def work(child: int) -> None:
            for n in range(3):
                log.append(f"child-{child}", Sent(by=f"child-{child}", n=n))
            assert log.version(f"child-{child}") == 3

        for child in range(25):
            in_child(lambda child=child: work(child))  # type: ignore[misc]
        stop.set()
        for thread in threads:
            thread.join()
        assert log.head == 25 * 3 + sum(counts.values())
        for by, count in counts.items():
            assert [each.data["n"] for each in log.read(by)] == list(range(count))
        log.verify()


def test_frames_that_a_child_cannot_compute_are_refused(tmp_path: Path) -> None:
    """Polars waits for ever for threads of its own that are not there."""
    with ms.open(tmp_path / "log.db") as log:
        log.append("s", Sent(by="parent", n=1))
        # Polars has its threads from the first frame on that is computed.
        assert log.scan("s").collect().height == 1
        flow = ms.stream("s").filter(pl.col("n") > 0).to("few", type="ForkFew")

        def work() -> None:
            with pytest.raises(ms.UsageError, match="frames cannot be computed here"):
                log.scan("s")
            with pytest.raises(ms.UsageError, match="frames cannot be computed here"):
                log.sql("select * from s")
            with pytest.raises(ms.UsageError, match="frames cannot be computed here"):
                ms.run(log, flow, until="head")
            log.append("s", Sent(by="child", n=2))

        in_child(work)
        assert sent(log) == [("parent", 1), ("child", 2)]


class _Noticed(Exception):
    """SQLite is used by a thread that a fork would not wait for."""


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        if not forks._this().depth:
            raise _Noticed(method.__name__)
        return method(*given, **named)

    return call


_CALLS = ("execute", "executemany", "fetchone", "fetchall", "fetchmany", "__next__")
_Cursor = type("_Cursor", (sqlite3.Cursor,), {name: _checked(getattr(sqlite3.Cursor, name)) for name in _CALLS})


class _Strict(forks.Guarded):
    cursors = _Cursor


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_whoever_uses_a_log_or_a_read_model_is_one_that_a_fork_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = forks.opened

    def strictly(file: str, target: str | None = None, *, kind: type[forks.Tracked] = forks.Guarded, **options: Any):  # type: ignore[no-untyped-def]
        return opened(file, target, kind=_Strict if kind is forks.Tracked else kind, **options)

    monkeypatch.setattr("millstream.storage.sqlite.database.opened", strictly)
    monkeypatch.setattr("millstream.log.personal.keyfile.opened", strictly)
    with pytest.raises(_Noticed):
        open_database(str(tmp_path / "own.db"), kind=forks.Tracked).execute("select 1")

    class Ask(ms.Query[int]):
        pass

    class Rows(ms.Projection):
        schema = "create table fork_rows (n integer)"

        @ms.on
        def sent(self, event: Sent, db: ms.Database) -> None:
            db.execute("insert into fork_rows values (?)", (event.n,))

    log = ms.open(tmp_path / "log.db")
    apps = [
        ms.App(log, projections=[Rows.into(tmp_path / "read.db")]),
        ms.App(log, projections=[Rows.live()]),
        ms.App(log, projections=[Rows.inline()]),
    ]
    for app in apps:

        @app.query
        def ask(query: Ask, db: ms.Database) -> int:
            return int(db.query("select count(*) as n from fork_rows")[0]["n"])

        with app:
            position = log.append("s", Sent(by="x", n=1)).position
            assert app.query(Ask(), after=position) >= 1
            if app is apps[0]:
                app.rebuild("Rows")
            assert app.query(Ask(), fresh=True) >= 1
            assert log.wait(position, 0.01) in (True, False)
    assert len(list(log.read())) == 3
    assert log.scan("s").collect().height == 3
    log.compact()
    log.backup(tmp_path / "copy.db")
    log.verify()
    log.close()
