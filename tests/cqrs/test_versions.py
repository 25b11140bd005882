"""Versions of a read model: built beside the one that answers, swapped in one transaction, and rolled back."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from kept import into_of

import millstream as ms
from millstream.cqrs import building


class Scored(ms.Event, type="VersionScored"):
    player: str
    points: int


class Scores(ms.Projection):
    schema = "create table scores (player text primary key, points integer not null)"

    @ms.on
    def scored(self, event: Scored, db: ms.Database) -> None:
        db.execute(
            "insert into scores values (?, ?) on conflict (player)"
            " do update set points = scores.points + excluded.points",
            (event.player, event.points),
        )


class Doubled(ms.Projection):
    """The same projection, with other code."""

    name = "Scores"
    schema = Scores.schema

    @ms.on
    def scored(self, event: Scored, db: ms.Database) -> None:
        db.execute(
            "insert into scores values (?, ?) on conflict do update set points = points + excluded.points",
            (event.player, 2 * event.points),
        )


class Counted(ms.Projection):
    """The same projection, with other tables."""

    name = "Scores"
    schema = "create table scores (player text primary key, points integer, n integer); create table games (n integer)"

    @ms.on
    def scored(self, event: Scored, db: ms.Database) -> None:
        db.execute(
            "insert into scores values (?, ?, 1)"
            " on conflict do update set points = points + excluded.points, n = scores.n + 1",
            (event.player, event.points),
        )


class GetScores(ms.Query[dict[str, int]]):
    pass


def make(log: ms.Log, projection: Any, path: str | None) -> ms.App:
    app = ms.App(log, projections=[projection.into(path)])

    @app.query(reads=[projection])
    def get_scores(query: GetScores, db: ms.Database) -> dict[str, int]:
        return {row["player"]: row["points"] for row in db.query("select player, points from scores order by player")}

    return app


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def log(tmp_path: Any) -> Iterator[ms.Log]:
    with ms.open(str(tmp_path / "games.db")) as log:
        log.append("g", [Scored(player=f"p{i % 3}", points=1) for i in range(30)])
        yield log


@pytest.fixture(params=["own file", "the log's database"])
def path(request: Any, tmp_path: Any) -> str | None:
    return str(tmp_path / "read.db") if request.param == "own file" else None


def test_changed_code_is_built_beside_and_takes_over(log: ms.Log, path: str | None) -> None:
    with make(log, Scores, path) as app:
        assert app.query(GetScores(), after=log.head) == {"p0": 10, "p1": 10, "p2": 10}
    with make(log, Doubled, path) as app:
        eventually(lambda: app.query(GetScores()) == {"p0": 20, "p1": 20, "p2": 20})
        receipt = log.append("g", Scored(player="p0", points=1))
        assert app.query(GetScores(), after=receipt)["p0"] == 22
        live = [version.number for version in app.read_models()[0].versions if version.state == "live"]
        assert live == [2]
    # The next start finds it built.
    with make(log, Doubled, path) as app:
        assert app.query(GetScores(), after=log.head)["p0"] == 22
        assert len(app.read_models()[0].versions) == 2


def test_a_read_models_file_is_all_of_it_once_the_app_has_stopped(log: ms.Log, tmp_path: Any) -> None:
    path = str(tmp_path / "read.db")
    with make(log, Scores, path) as app:
        assert app.query(GetScores(), after=log.head)["p0"] == 10
    assert not os.path.exists(f"{path}-wal")


def test_the_old_version_answers_until_the_new_one_is_level(log: ms.Log, path: str | None) -> None:
    with make(log, Scores, path) as app:
        app.query(GetScores(), after=log.head)
    app = make(log, Counted, path)
    assert app.query(GetScores())["p0"] == 10  # nothing has been built yet
    with app:
        eventually(lambda: app.read_models()[0].versions[-1].state == "live")
        assert app.query(GetScores(), after=log.head)["p0"] == 10


def test_code_that_its_author_gives_a_version_is_taken_for_the_same(log: ms.Log, path: str | None) -> None:
    class First(Scores):
        name = "Scores"
        version = 1

    class Second(Doubled):
        name = "Scores"
        version = 1

    with make(log, First, path) as app:
        app.query(GetScores(), after=log.head)
    with make(log, Second, path) as app:
        receipt = log.append("g", Scored(player="p0", points=1))
        assert app.query(GetScores(), after=receipt)["p0"] == 12
        assert len(app.read_models()[0].versions) == 1


def test_a_rebuild_heals_what_was_spoilt_and_a_comparison_tells_of_it(log: ms.Log, path: str | None) -> None:
    with make(log, Scores, path) as app:
        app.query(GetScores(), after=log.head)
        assert app.compare(Scores).same
        app._followers["Scores"].target.transact(
            lambda db: db.execute("update scores set points = 99 where player = 'p1'") and None
        )
        compared = app.compare(Scores)
        assert [(found.table, found.missing, found.surplus) for found in compared.differences] == [("scores", 1, 1)]
        assert ("surplus", {"player": "p1", "points": 99}) in compared.differences[0].examples
        told: list[ms.Progress] = []
        version = app.rebuild(Scores, progress=told.append)
        assert (version.number, version.state) == (2, "live")
        assert (told[-1].position, told[-1].head) == (30, 30)
        assert app.query(GetScores())["p1"] == 10
        assert app.compare("Scores").same
        receipt = log.append("g", Scored(player="p1", points=5))
        assert app.query(GetScores(), after=receipt)["p1"] == 15


def test_a_rollback_brings_the_version_before_back_and_it_goes_on(log: ms.Log, path: str | None) -> None:
    with make(log, Scores, path) as app:
        app.query(GetScores(), after=log.head)
        app.rebuild(Scores)
        app._followers["Scores"].target.transact(lambda db: db.execute("delete from scores") and None)
        assert app.query(GetScores()) == {}
        receipt = log.append("g", Scored(player="p0", points=1))
        assert app.rollback(Scores).number == 1
        assert app.query(GetScores(), after=receipt) == {"p0": 11, "p1": 10, "p2": 10}
        with pytest.raises(ms.NotFound, match="no version to go back to"):
            make(log, type("Other", (Scores,), {"schema": "create table other (n)"}), path).rollback("Other")


def test_a_rollback_while_another_version_is_built_leaves_one_that_answers(log: ms.Log, path: str | None) -> None:
    with make(log, Scores, path) as app:
        app.query(GetScores(), after=log.head)
        app.rebuild(Scores)
        rolled: list[int] = []

        def roll_back(progress: Any) -> None:
            if not rolled:
                rolled.append(app.rollback(Scores).number)

        made = app.rebuild(Scores, progress=roll_back)
        assert rolled == [1]
        (model,) = app.read_models()
        assert [(each.number, each.state) for each in model.versions] == [(1, "previous"), (made.number, "live")]
        assert app.query(GetScores(), after=log.head) == {"p0": 10, "p1": 10, "p2": 10}
        assert app.rollback(Scores).number == 1
        assert app.query(GetScores(), after=log.head) == {"p0": 10, "p1": 10, "p2": 10}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["file", "postgres"])
def test_a_rollback_after_which_another_process_builds_at_once_is_done_and_leaves_nothing_behind(
    request: pytest.FixtureRequest,
    log: ms.Log,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    fails: bool,
) -> None:
    path = into_of(request, kind, tmp_path)
    assert path is not None
    with make(log, Scores, path) as app:
        app.query(GetScores(), after=log.head)
        app.rebuild(Scores)
        fence = building.fence

        def late(*given: Any) -> None:
            monkeypatch.setattr(building, "fence", fence)
            for _ in range(2):
                make(log, Scores, path).rebuild(Scores)  # another process, as it were; the second removes the first
            if fails:  # as when a file is opened while it is removed
                raise ms.StorageError("disk I/O error")
            fence(*given)

        monkeypatch.setattr(building, "fence", late)
        assert app.rollback(Scores).number == 1
        assert app.query(GetScores(), after=log.head) == {"p0": 10, "p1": 10, "p2": 10}
        (model,) = app.read_models()
        assert [(each.number, each.state) for each in model.versions] == [(3, "previous"), (4, "live")]
    if kind == "file":
        left = sorted(file.name for file in tmp_path.glob("read*.db"))
        assert left == ["read.Scores.3.db", "read.Scores.4.db", "read.db"]
    else:
        with psycopg.connect(path) as connection:
            found = connection.execute("select nspname from pg_namespace where nspname like '%scores%' order by 1")
            assert [name for (name,) in found] == ["public_scores_3", "public_scores_4"]


def test_it_is_told_at_once_how_far_the_version_is_that_answers_from_now_on(log: ms.Log, path: str | None) -> None:
    with make(log, Scores, path) as app:
        app.query(GetScores(), after=log.head)
        for change in (app.rebuild, app.rollback):
            change(Scores)
            answer = app.answer(GetScores())
            assert (answer.position, answer.behind, sum(answer.result.values())) == (30, 0, 30)
            assert app.read_models()[0].behind == 0


def test_what_was_rolled_back_is_not_built_again_by_itself(log: ms.Log, path: str | None) -> None:
    with make(log, Scores, path) as app:
        app.query(GetScores(), after=log.head)
    with make(log, Doubled, path) as app:
        eventually(lambda: app.query(GetScores())["p0"] == 20)
        app.rollback("Scores")
        assert app.query(GetScores())["p0"] == 10
        eventually(lambda: app.status()[0].state is ms.State.FAILED)
        assert "rolled back" in str(app.status()[0].error)
        app.rebuild("Scores")
        assert app.query(GetScores())["p0"] == 20
        eventually(lambda: app.status()[0].state is ms.State.RUNNING)


def test_the_tables_of_a_version_that_does_not_answer_are_not_found_by_their_names(log: ms.Log) -> None:
    with make(log, Scores, None) as app:
        app.query(GetScores(), after=log.head)
        app.rebuild(Scores)
        with log.connect() as db, pytest.raises(ms.DatabaseError, match="no such table"):
            db.query("select * from scores")
        app.rollback(Scores)
        with log.connect() as db:
            assert len(db.query("select * from scores")) == 3


def test_versions_that_nobody_goes_back_to_are_deleted(log: ms.Log, tmp_path: Any) -> None:
    with make(log, Scores, str(tmp_path / "read.db")) as app:
        app.query(GetScores(), after=log.head)
        for _ in range(4):
            app.rebuild(Scores)
        assert [version.number for version in app.read_models()[0].versions] == [4, 5]
    beside = sorted(name for name in os.listdir(tmp_path) if name.startswith("read.") and name.endswith(".db"))
    assert beside == ["read.Scores.4.db", "read.Scores.5.db", "read.db"]


def test_a_worker_of_another_app_goes_on_with_the_version_that_was_built(log: ms.Log, path: str | None) -> None:
    with make(log, Scores, path) as worker:
        worker.query(GetScores(), after=log.head)
        with ms.open(log.path) as other:
            make(other, Scores, path).rebuild(Scores)
            eventually(lambda: worker.read_models()[0].versions[-1].state == "live")
            receipt = other.append("g", Scored(player="p0", points=3))
            assert worker.query(GetScores(), after=receipt)["p0"] == 13
            worker._followers["Scores"].look()
            assert worker._followers["Scores"]._live.number == 2


def test_a_version_that_fails_leaves_the_old_one_as_it_was(log: ms.Log, path: str | None) -> None:
    class Wrong(Scores):
        name = "Scores"

        @ms.on
        def scored(self, event: Scored, db: ms.Database) -> None:
            raise ValueError("never again")

    with make(log, Scores, path) as app:
        app.query(GetScores(), after=log.head)
    with make(log, Wrong, path) as app:
        eventually(lambda: app.status()[0].state is ms.State.FAILED)
        assert "never again" in str(app.status()[0].error)
        assert [str(failure.state) for failure in app.failures("Scores")] == ["stopped"]
        with pytest.raises(ms.ProjectionFailed):
            app.rebuild("Scores")
        assert app.query(GetScores())["p0"] == 10
    with make(log, Scores, path) as app:
        assert app.query(GetScores(), after=log.append("g", Scored(player="p0", points=1)))["p0"] == 11


def test_an_inline_projection_has_no_version_beside_it(log: ms.Log) -> None:
    app = ms.App(log, projections=[Scores.inline()])
    with pytest.raises(ms.UsageError, match="in the commits that append"):
        app.rebuild(Scores)
    with pytest.raises(ms.UnknownProjection, match="no projection 'Nobody'"):
        app.rebuild("Nobody")


KILLED = """
import sys, os, threading, random, time
sys.path.insert(0, {tests!r})
import millstream as ms
from test_versions import Scores, make
log = ms.open({log!r})
threading.Timer(float(sys.argv[1]), lambda: os.kill(os.getpid(), 9)).start()
app = make(log, Scores, {path!r})
with app:
    while True:
        app.rebuild(Scores)
"""


def test_killed_at_any_moment_a_rebuild_leaves_a_read_model_that_answers(tmp_path: Any) -> None:
    home, read = str(tmp_path / "games.db"), str(tmp_path / "read.db")
    with ms.open(home) as log:
        log.append("g", [Scored(player=f"p{i % 3}", points=1) for i in range(3_000)])
        with make(log, Scores, read) as app:
            app.query(GetScores(), after=log.head)
    script = textwrap.dedent(KILLED).format(tests=os.path.dirname(__file__), log=home, path=read)
    for round in range(6):
        child = subprocess.Popen([sys.executable, "-c", script, str(0.4 + 0.07 * round)])
        assert child.wait(60) == -9
        with ms.open(home) as log:
            app = make(log, Scores, read)
            assert app.query(GetScores()) == {"p0": 1_000, "p1": 1_000, "p2": 1_000}
    with ms.open(home) as log, make(log, Scores, read) as app:
        receipt = log.append("g", Scored(player="p0", points=1))
        assert app.query(GetScores(), after=receipt, timeout=20)["p0"] == 1_001
        assert app.compare(Scores).same
