"""Forks in the midst of things: in blocks, beside cursors that are kept, of threads that hold locks."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import _global_shutdown_lock  # type: ignore[attr-defined]
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.forked import begin, in_child

import millstream as ms
from millstream.cqrs.views import FilesView
from millstream.storage.sqlite import forks
from millstream.storage.sqlite.database import open_database


class Put(ms.Event, type="ForkPut"):
    n: int


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ms.Log]:
    with ms.open(tmp_path / "log.db") as log:
        yield log


def numbers(log: ms.Log) -> list[int]:
    return [each.data["n"] for each in log.read()]


def in_threads(*work: Callable[[], object]) -> None:
    with ThreadPoolExecutor(len(work)) as threads:
        for each in [threads.submit(each) for each in work]:
            each.result()


@pytest.mark.parametrize("failing", [False, True])
def test_a_child_that_leaves_its_parents_transaction_changes_nothing(log: ms.Log, failing: bool) -> None:
    """To commit there would write over what the parent has committed since."""
    log.append("s", Put(n=0))
    begun, begin_ = os.pipe()
    child = -1
    refused = False
    try:
        with log.transaction() as tx:
            tx.append("s", Put(n=1))
            tx.db.execute("create table fork_own (n integer)")
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os.read(begun, 1)  # the parent has committed that, and more
                if failing:
                    raise ValueError
    except (ms.StorageError, ValueError) as error:
        refused = isinstance(error, ValueError if failing else ms.StorageError)
    finally:
        if child == 0:
            os._exit(0 if refused else 1)
    for n in range(2, 6):
        log.append("s", Put(n=n))
    os.write(begin_, b".")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    log.append("s", Put(n=6))
    assert numbers(log) == list(range(7))
    log.verify()


def test_a_block_that_another_thread_ends_holds_up_no_fork(log: ms.Log) -> None:
    """As web servers do, which begin and end a request's resources each on some thread."""
    block = log.connect()
    begun = threading.Event()
    go_on = threading.Event()

    def enter() -> None:
        block.__enter__()
        begun.set()
        go_on.wait()

    thread = threading.Thread(target=enter)
    thread.start()
    begun.wait()
    block.__exit__(None, None, None)
    in_child(lambda: log.append("s", Put(n=1)))
    go_on.set()
    thread.join()
    assert numbers(log) == [1]


def test_what_the_parent_has_closed_is_open_to_its_child(tmp_path: Path) -> None:
    db = open_database(str(tmp_path / "own.db"))
    db.execute("create table t (n integer)")
    db.close()  # and it is kept

    def work() -> None:
        with closing(open_database(str(tmp_path / "own.db"))) as own:
            own.execute("insert into t values (1)")

    in_child(work)
    with closing(open_database(str(tmp_path / "own.db"))) as again:
        assert again.one("select n from t") == {"n": 1}


def test_a_cursor_that_is_kept_keeps_no_file_open_in_a_child(tmp_path: Path) -> None:
    """As long as it is open, SQLite takes the parent's locks for the child's: the child would lock nothing itself."""
    path = str(tmp_path / "own.db")
    with closing(open_database(path)) as db:
        db.executescript("create table t (n integer); insert into t values (1), (2), (3)")
        half = db.execute("select n from t")
        assert half.fetchone() == (1,)

        def work() -> None:
            assert not forks._held({path})
            assert not forks._lost

        in_child(work)
        assert half.fetchall() == [(2,), (3,)]


def test_no_child_waits_for_a_cursor_that_another_thread_lets_go_of(tmp_path: Path) -> None:
    path = str(tmp_path / "own.db")
    with closing(open_database(path)) as db:
        db.executescript("create table t (n integer); insert into t values (1), (2), (3)")
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                assert db.one("select n from t") == {"n": 1}  # the others are never fetched

        def work() -> None:
            with closing(open_database(path)) as own:
                assert len(own.query("select n from t")) == 3

        thread = threading.Thread(target=read)
        thread.start()
        try:
            for _ in range(40):
                in_child(work)
        finally:
            stop.set()
            thread.join()


def test_forks_at_once_in_blocks_do_not_wait_for_each_other(log: ms.Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 60.0)  # it would be noticed
    both = threading.Barrier(2)

    def fork() -> None:
        with log.connect() as db:
            assert db.query("select 1 as one") == [{"one": 1}]
            both.wait()
            child = begin(lambda: log.append("s", Put(n=1)))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    in_threads(fork, fork)
    assert numbers(log) == [1, 1]


def test_whoever_a_fork_waits_for_can_use_a_pool_of_threads(log: ms.Log) -> None:
    """The standard library takes a lock before a fork that `submit` takes, too."""
    with ThreadPoolExecutor(1) as pool:
        inside, events = threading.Event(), []

        def work(db: ms.Database, receipt: ms.Receipt) -> None:
            inside.set()
            time.sleep(0.2)
            events.append(pool.submit(int).result(2))

        thread = threading.Thread(target=lambda: log.commit(work=work))
        thread.start()
        inside.wait()
        child = begin(lambda: log.append("s", Put(n=1)))
        thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (events, numbers(log)) == ([0], [1])


def test_what_is_collected_while_a_fork_waits_for_a_lock_does_not_wait_for_the_fork(tmp_path: Path) -> None:
    """A finalizer runs wherever objects are made: also under a lock that is taken before a fork."""
    path = str(tmp_path / "own.db")
    for kept in (True, False):
        found = [open_database(path)]
        found[0].execute("create table if not exists t (n integer)")
        cursors = [found[0].execute("select 1 union select 2")] if kept else []
        held = threading.Event()

        def collect(found: list[Any] = cursors or found, held: threading.Event = held) -> None:
            with _global_shutdown_lock:
                held.set()
                while not forks._shut:
                    time.sleep(0.001)
                found.clear()
                gc.collect()

        thread = threading.Thread(target=collect)
        thread.start()
        held.wait()
        in_child(lambda: open_database(path).execute("insert into t values (1)"))
        thread.join()
        assert not forks._uncollected


def test_whoever_holds_a_lock_that_a_fork_waits_for_goes_on(log: ms.Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 0.2)
    held = threading.Event()

    def append() -> None:
        with _global_shutdown_lock:  # taken before a fork when nobody is at work any more
            held.set()
            while not forks._shut:
                time.sleep(0.001)
            log.append("s", Put(n=1))

    def refused() -> None:
        with pytest.raises(ms.StorageError, match="was in use in the process"):
            log.append("s", Put(n=2))

    thread = threading.Thread(target=append)
    thread.start()
    held.wait()
    in_child(refused)
    thread.join()
    in_child(lambda: log.append("s", Put(n=3)))
    assert numbers(log) == [1, 3]


def test_a_child_follows_a_log_that_threads_of_its_parent_follow(log: ms.Log) -> None:
    stop = threading.Event()

    def follow() -> None:
        for _ in log.follow(timeout=20):
            if stop.is_set():
                break

    def append() -> None:
        while not stop.is_set():
            log.append("s", Put(n=1))

    threads = [threading.Thread(target=work) for work in (follow, follow, follow, follow, follow, append)]
    for thread in threads:
        thread.start()

    def work() -> None:
        position = log.append("c", Put(n=2)).position
        assert next(log.follow("c", after=position - 1)).position == position

    try:
        for _ in range(10):
            in_child(work)
    finally:
        stop.set()
        log.append("s", Put(n=1))
        for thread in threads:
            thread.join()


def test_threads_of_a_child_are_in_no_transaction_of_its_parent(log: ms.Log) -> None:
    """The system gives its threads the numbers that the parent's have."""
    inside, go_on = threading.Barrier(5), threading.Event()

    def stay() -> None:
        with log.transaction() as tx:
            tx.append("s", Put(n=1))
            inside.wait()
            go_on.wait()

    threads = [threading.Thread(target=stay) for _ in range(4)]
    for thread in threads:
        thread.start()
    inside.wait()
    in_child(lambda: in_threads(*[lambda: log.append("c", Put(n=2))] * 4))
    go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(numbers(log)) == [1] * 4 + [2] * 4


def test_what_was_attached_to_a_connection_in_use_is_closed_in_a_child(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.db", "b.db")]
    for path in paths:
        with closing(open_database(path)) as db:
            db.execute("create table t (n integer)")
    view = FilesView(paths)
    reading = view.reading()
    db = reading.__enter__()
    assert db.query("select n from t") == []

    def work() -> None:
        with pytest.raises(ms.StorageError, match="was in use in the process"):
            db.query("select n from t")
        for path in paths:
            assert forks._held({path}) == set()
            with closing(open_database(path)) as own:
                own.execute("insert into t values (1)")
        reading.__exit__(None, None, None)

    in_child(work)
    assert db.query("select n from t") == []
    reading.__exit__(None, None, None)
    view.close()
    with view.reading() as db:
        assert [db.query(f"select n from {name}.t") for name in ("main", "read1")] == [[{"n": 1}]] * 2
    view.close()


def test_what_takes_frames_is_refused_in_a_child_of_one_that_has_computed_some(log: ms.Log, tmp_path: Path) -> None:
    for _ in range(3):
        log.append("f", pl.DataFrame({"n": [1, 2]}), type="ForkFrame")
    log.append("old", [Put(n=n) for n in range(10)])
    log.archive("old", to=str(tmp_path / "archive"))
    log.append("old", Put(n=10))
    assert log.scan("f").collect().height == 6

    def work() -> None:
        for refused in (
            log.compact,
            lambda: list(log.read("old")),
            lambda: log.archive("old"),
            lambda: log.table("orders"),
        ):
            with pytest.raises(ms.UsageError, match="frames cannot be computed here"):
                refused()

    in_child(work)
    assert len(list(log.read("old"))) == 11


def test_a_child_makes_no_other_log_where_its_parents_is_no_more(log: ms.Log, tmp_path: Path) -> None:
    log.append("s", Put(n=1))

    def work() -> None:
        with pytest.raises(ms.StorageError, match="no longer the file that was opened"):
            log.append("s", Put(n=2))
        assert not (tmp_path / "log.db").exists()

    (tmp_path / "log.db").rename(tmp_path / "moved.db")
    in_child(work)
    (tmp_path / "moved.db").rename(tmp_path / "log.db")
    in_child(lambda: log.append("s", Put(n=3)))
    assert numbers(log) == [1, 3]
