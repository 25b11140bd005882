"""What was waited for is shown, whichever version comes to answer meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import millstream as ms


class Stacked(ms.Event, type="FreshStacked"):
    n: int


class Pile(ms.Projection):
    schema = "create table pile (n integer)"

    @ms.on
    def stacked(self, event: Stacked, db: ms.Database) -> None:
        db.execute("insert into pile values (?)", (event.n,))


class Height(ms.Query[int]):
    pass


def make(log: ms.Log, path: str | None) -> ms.App:
    app = ms.App(log, projections=[Pile.into(path)])

    @app.query
    def height(query: Height, db: ms.Database) -> int:
        return int(db.query("select count(*) as n from pile")[0]["n"])

    return app


@pytest.mark.parametrize("place", ["file", "log"])
def test_what_was_waited_for_is_shown_while_versions_come_and_go(tmp_path: Path, log: ms.Log, place: str) -> None:
    missed: list[tuple[int, int]] = []
    done = threading.Event()
    with make(log, str(tmp_path / "read.db") if place == "file" else None) as app:

        def ask() -> None:
            while not done.is_set():
                receipt = log.append("s", Stacked(n=1))
                found = app.query(Height(), after=receipt)
                if found < receipt.position:
                    missed.append((receipt.position, found))

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        until = time.monotonic() + 3
        while time.monotonic() < until:
            app.rebuild(Pile)
            app.rollback(Pile)
        done.set()
        for thread in asking:
            thread.join()
    assert not missed


def test_a_version_that_another_app_has_removed_meanwhile_is_no_error_of_who_waits(
    tmp_path: Path, log: ms.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, other = make(log, str(tmp_path / "read.db")), make(log, str(tmp_path / "read.db"))
    other.rebuild(Pile)
    with other:
        first = log.append("s", Stacked(n=1))
        assert asked.query(Height(), after=first) == 1
        monkeypatch.setattr("millstream.cqrs.follower._FRESH", 1e9)
        other.rebuild(Pile)
        other.rebuild(Pile)
        assert asked.query(Height(), after=log.append("s", Stacked(n=1))) == 2


def test_a_query_is_asked_until_no_version_comes_meanwhile(tmp_path: Path, log: ms.Log) -> None:
    path, met = str(tmp_path / "read.db"), 0
    log.append("s", Stacked(n=1))
    other = make(log, path)
    other.rebuild(Pile)
    app = ms.App(log, projections=[Pile.into(path)])

    @app.query
    def height(query: Height, db: ms.Database) -> int:
        nonlocal met
        if met < 4:
            met += 1
            other.rebuild(Pile)
            raise ms.StorageError("the file that was asked is gone", hint="-")
        return int(db.query("select count(*) as n from pile")[0]["n"])

    assert (app.query(Height()), met) == (1, 4)


@pytest.mark.parametrize("by", ["this app", "another one"])
def test_a_worker_takes_a_version_that_has_come_to_answer_without_a_pause(
    tmp_path: Path, log: ms.Log, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr("millstream.cqrs.keeping._LOOK", 60.0)
    monkeypatch.setattr("millstream.cqrs.holding.CHECK", 60.0)
    other = make(log, str(tmp_path / "read.db"))
    with make(log, str(tmp_path / "read.db")) as app:
        receipt = log.append("s", [Stacked(n=1), Stacked(n=2)])
        assert app.query(Height(), after=receipt) == 2
        for _ in range(3):
            (app if by == "this app" else other).rebuild(Pile)
            assert app.query(Height(), after=receipt) == receipt.position
            receipt = log.append("s", Stacked(n=3))
            assert app.query(Height(), after=receipt) == receipt.position
        monkeypatch.undo()
        log.append("s", Stacked(n=4))  # wakes the worker, which would else be waited for


@pytest.mark.parametrize("place", ["file", "log"])
def test_a_rebuild_beside_which_another_began_later_gives_up(tmp_path: Path, log: ms.Log, place: str) -> None:
    log.append("s", [Stacked(n=1), Stacked(n=2)])
    with make(log, str(tmp_path / "read.db") if place == "file" else None) as app:
        later: list[int] = []

        def told(progress: ms.Progress) -> None:
            if not later:
                later.append(0)
                later[0] = app.rebuild(Pile).number

        with pytest.raises(ms.ConsumerFenced, match="Pile"):
            app.rebuild(Pile, progress=told)
        assert later[0] > 1
        assert app.rollback(Pile).number < later[0]  # it was the later one that answered
        assert app.query(Height(), fresh=True) == 2


def test_of_many_that_rebuild_at_once_the_last_to_begin_has_its_way(tmp_path: Path, log: ms.Log) -> None:
    log.append("s", [Stacked(n=1), Stacked(n=2)])
    failures: list[BaseException] = []
    with make(log, None) as app:

        def rebuild() -> None:
            for _ in range(3):
                try:
                    app.rebuild(Pile)
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=rebuild) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert {type(error) for error in failures} <= {ms.ConsumerFenced}
        assert app.query(Height(), fresh=True) == 2
