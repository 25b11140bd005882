"""How fresh an answer is: waited for, told, refused; of the past; and told again with each change."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from kept import eventually

import millstream as ms


class Moved(ms.Event, type="FreshMoved"):
    n: int


class Named(ms.Event, type="FreshNamed", subject="who"):
    who: str
    name: ms.Personal[str]


class Noise(ms.Event, type="FreshNoise"):
    pass


class Sums(ms.Projection):
    schema = "create table sums (stream text primary key, n integer)"

    @ms.on
    def moved(self, event: Moved, db: ms.Database, recorded: ms.Recorded) -> None:
        if event.n == 13:
            raise ValueError("thirteen")
        db.execute(
            "insert into sums values (?, ?) on conflict do update set n = n + excluded.n", (recorded.stream, event.n)
        )


class Parked(Sums):
    name = "Sums"
    on_failure = "park"


class Counts(ms.Projection):
    schema = "create table counts (n integer)"

    @ms.on_batch(Moved)
    def moved(self, frame: pl.DataFrame, db: ms.Database) -> None:
        db.insert("counts", frame.select("n"))


class Names(ms.Projection):
    schema = "create table names (name text)"

    @ms.on
    def named(self, event: Named, db: ms.Database) -> None:
        db.execute("insert into names values (?)", (str(event.name),))


class Total(ms.Query[int]):
    pass


class Both(ms.Query[tuple[int, int]]):
    pass


def make(log: ms.Log, *placements: ms.Placement) -> ms.App:
    app = ms.App(log, projections=placements)

    @app.query(reads=[p.projection for p in placements if p.name == "Sums"])
    def total(query: Total, db: ms.Database) -> int:
        return int((db.one("select coalesce(sum(n), 0) as n from sums") or {})["n"])

    @app.query
    def both(query: Both, db: ms.Database) -> tuple[int, int]:
        sums = db.one("select coalesce(sum(n), 0) as n from sums") or {}
        return sums["n"], (db.one("select count(*) as n from counts") or {})["n"]

    return app


def test_a_fresh_answer_shows_all_that_is_committed(log: ms.Log, tmp_path: Any) -> None:
    with make(log, Sums.into(tmp_path / "read.db")) as app:
        for n in range(1, 50):
            log.append(f"s-{n % 3}", Moved(n=2))
            assert app.query(Total(), fresh=True) == 2 * n
    log.append("s-1", Moved(n=1))
    with pytest.raises(ms.TimedOut):
        app.query(Total(), fresh=True, timeout=0.05)


def test_an_answer_says_how_far_its_read_models_have_come(log: ms.Log, tmp_path: Any) -> None:
    with make(log, Sums.into(tmp_path / "read.db")) as app:
        receipt = log.append("s-1", [Moved(n=1), Moved(n=2)])
        answer = app.answer(Total(), after=receipt)
        assert (answer.result, answer.position, answer.behind, answer.problems) == (3, 2, 0, [])
    log.append("s-1", [Moved(n=4)] * 5)
    answer = app.answer(Total())
    assert (answer.result, answer.position, answer.behind) == (3, 2, 5)


def test_a_read_model_that_lacks_events_says_so_by_choice(log: ms.Log, tmp_path: Any) -> None:
    with make(log, Parked.into(tmp_path / "read.db")) as app:
        receipt = log.append("s-1", [Moved(n=1), Moved(n=13)])
        assert app.query(Total(), after=receipt) == 1
        with pytest.raises(ms.ReadModelBehind, match="lacks 1 parked events, the first at position 2") as behind:
            app.query(Total(), behind="raise")
        assert app.answer(Total()).problems == behind.value.problems
        app.skip("Sums", position=2)
        assert app.query(Total(), behind="raise") == 1
        app.pause("Sums")
        with pytest.raises(ms.ReadModelBehind, match="is paused"):
            app.query(Total(), behind="raise")


def test_a_projection_that_stands_before_an_event_is_behind(log: ms.Log, tmp_path: Any) -> None:
    with make(log, Sums.into(tmp_path / "read.db")) as app:
        log.append("s-1", [Moved(n=1), Moved(n=13)])
        eventually(lambda: app.status()[0].state is ms.State.FAILED)
        with pytest.raises(ms.ReadModelBehind, match="thirteen"):
            app.query(Total(), behind="raise")
    # Another process is told as well.
    with ms.open(log.path) as other, pytest.raises(ms.ReadModelBehind, match="stands before position 2"):
        make(other, Sums.into(tmp_path / "read.db")).query(Total(), behind="raise")


@pytest.mark.parametrize("inline", [True, False])
def test_a_query_of_the_past_answers_as_it_stood(log: ms.Log, tmp_path: Any, inline: bool) -> None:
    sums = Sums.inline() if inline else Sums.into(tmp_path / "read.db")
    receipts = []
    app = make(log, sums, Counts.into(tmp_path / "counts.db"))
    with app:
        for n in range(1, 40):
            receipts.append(log.append(f"s-{n % 3}", Moved(n=1)))
        app.query(Both(), fresh=True)
    for at in (7, 39, 3, 20, 20, 1):
        assert app.query(Total(), at=receipts[at - 1]) == at
        assert app.query(Both(), at=ms.Position(at)) == (at, at)
    assert app.query(Total(), at=ms.Position(0)) == 0
    answer = app.answer(Total(), at=ms.Position(30))
    assert (answer.result, answer.position, answer.behind) == (30, 30, 9)
    assert app.query(Total()) == 39  # and the present is as it was


def test_the_past_by_time(tmp_path: Any) -> None:
    now = datetime(2024, 1, 1, tzinfo=UTC)
    with ms.open(clock=lambda: now) as log:
        app = make(log, Sums.into(tmp_path / "read.db"))
        for hour in range(5):
            now = datetime(2024, 1, 1, hour, tzinfo=UTC)
            log.append("s-1", Moved(n=1))
        now += timedelta(hours=1)
        assert app.query(Total(), at="2024-01-01T02:30:00Z") == 3
        assert app.query(Total(), at=datetime(2024, 1, 1, 4, tzinfo=UTC)) == 5
        assert app.query(Total(), at="2023-01-01T00:00:00Z") == 0
        with pytest.raises(ms.InvalidPosition, match="beyond the log"):
            app.query(Total(), at=ms.Position(9))
        with pytest.raises(ms.InvalidPosition, match="is no moment"):
            app.query(Total(), at=3)  # type: ignore[call-overload]
        with pytest.raises(ms.UsageError, match="past or of the present"):
            app.query(Total(), at=ms.Position(1), fresh=True)


def test_images_are_kept_within_bounds_and_only_of_what_holds_nothing_personal(log: ms.Log, tmp_path: Any) -> None:
    log.append("s-1", [Moved(n=1) for _ in range(20)])
    app = make(log, Sums.into(tmp_path / "read.db"))
    for at in range(1, 21):
        assert app.query(Total(), at=ms.Position(at)) == at
    assert len(os.listdir(tmp_path / "read.db.images")) == 8
    log.append("n-1", Named(who="ann", name="Ann"))

    class GetNames(ms.Query[list[str]]):
        pass

    app = ms.App(log, projections=[Names.into(tmp_path / "names.db")])

    @app.query
    def names(query: GetNames, db: ms.Database) -> list[str]:
        return [row["name"] for row in db.query("select name from names")]

    assert app.query(GetNames(), at=ms.Position(log.head)) == ["Ann"]
    assert os.listdir(tmp_path / "names.db.images") == []


def test_a_query_of_the_past_needs_the_events_that_made_it(log: ms.Log, tmp_path: Any) -> None:
    log.append("s-1", [Moved(n=1) for _ in range(20)])
    log.append("s-1", Moved(n=1))
    log.retain("s-1", keep=1)
    log.trim("s-1")
    app = make(log, Sums.into(tmp_path / "read.db"))
    with pytest.raises(ms.Trimmed):
        app.query(Total(), at=ms.Position(5))
    with pytest.raises(ms.Trimmed):
        app.rebuild(Sums)
    app.rebuild(Sums, trimmed="skip")
    assert app.query(Total()) < 20


def test_a_subscription_gives_the_answer_and_then_each_change(log: ms.Log, tmp_path: Any) -> None:
    with make(log, Sums.into(tmp_path / "read.db")) as app:
        seen: list[int] = []
        log.append("s-1", Moved(n=1))
        app.query(Total(), fresh=True)

        def write() -> None:
            for n, before in ((2, 1), (3, 3)):
                eventually(lambda before=before: seen[-1:] == [before])  # type: ignore[misc]
                log.append("s-2", Noise())
                log.append("s-1", Moved(n=n))

        writer = threading.Thread(target=write)
        writer.start()
        for total in app.subscribe(Total()):
            seen.append(total)
            if total == 6:
                break
        writer.join()
        assert seen == [1, 3, 6]
        assert list(app.subscribe(Total(), timeout=0.05)) == [6]


@pytest.mark.parametrize("kept", ["by another process", "inline"])
def test_a_subscription_follows_what_others_keep(log: ms.Log, tmp_path: Any, kept: str) -> None:
    where = (lambda: Sums.inline()) if kept == "inline" else (lambda: Sums.into(tmp_path / "read.db"))
    with ms.open(log.path) as other, make(other, where()):
        app = make(log, where())
        answers = app.subscribe(Total(), timeout=10)
        assert next(answers) == 0
        other.append("s-1", Moved(n=5))
        assert next(answers) == 5


@pytest.mark.parametrize("by", ["the app", "another one"])
def test_a_subscription_tells_what_is_tried_again(log: ms.Log, tmp_path: Any, by: str) -> None:
    class Mended(Parked):
        name = "Sums"
        version = "1"  # the same to both
        broken = True

        @ms.on
        def moved(self, event: Moved, db: ms.Database, recorded: ms.Recorded) -> None:
            if event.n == 13 and Mended.broken:
                raise ValueError("thirteen")
            db.execute("insert into sums values (?, ?)", (recorded.stream, event.n))

    with ms.App(log, projections=[Mended.into(tmp_path / "read.db")]) as app:
        other = app if by == "the app" else ms.App(log, projections=[Mended.into(tmp_path / "read.db")])

        @app.query
        def total(query: Total, db: ms.Database) -> int:
            return int(db.query("select coalesce(sum(n), 0) as n from sums")[0]["n"])

        log.append("a", Moved(n=1))
        app.query(Total(), after=log.append("b", Moved(n=13)))
        answers = app.subscribe(Total(), timeout=10)
        assert next(answers) == 1
        Mended.broken = False
        assert other.retry(Mended) == 1
        assert next(answers) == 14


def test_a_subscription_goes_on_over_a_rebuild(log: ms.Log, tmp_path: Any) -> None:
    log.append("s-1", Moved(n=1))
    with make(log, Sums.into(tmp_path / "read.db")) as app:
        app.query(Total(), fresh=True)
        answers = app.subscribe(Total(), timeout=10)
        assert next(answers) == 1
        app.rebuild(Sums)
        log.append("s-1", Moved(n=1))
        assert next(answers) == 2


def test_under_asyncio_queries_commands_and_subscriptions_are_awaited(log: ms.Log, tmp_path: Any) -> None:
    import asyncio

    with make(log, Sums.into(tmp_path / "read.db")) as app:

        async def main() -> list[int]:
            face = ms.aio.App(app)
            seen = []
            async for total in face.subscribe(Total()):
                seen.append(total)
                if total == 3:
                    break
                receipt = log.append("s-1", Moved(n=total + 1))
                assert await face.query(Total(), after=receipt) == 2 * total + 1
            return seen

        assert asyncio.run(main()) == [0, 1, 3]
