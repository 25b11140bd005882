"""Effects of projections: performed once, whichever version of the read model brings them about."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kept import eventually, into_of

import millstream as ms

PERFORMED: list[tuple[str, Any]] = []
FAILING: list[BaseException] = []


class Taken(ms.Event, type="EffectsTaken"):
    sku: str
    left: int


class Stock(ms.Projection):
    schema = "create table stock (sku varchar(20) primary key, n bigint)"
    version = 1

    @ms.on
    def taken(self, event: Taken, db: ms.Database, effects: ms.Effects) -> None:
        db.execute(
            "insert into stock (sku, n) values (?, ?) on conflict (sku) do update set n = excluded.n",
            (event.sku, event.left),
        )
        if event.left % 2:
            effects.add({"order": event.left})
            effects.add({"tell": event.left})

    def perform(self, effect: ms.Effect) -> None:
        if FAILING:
            raise FAILING[0]
        PERFORMED.append((effect.id, next(iter(effect.body.values()))))


class Second(Stock):
    name = "Stock"
    version = 2


class GetStock(ms.Query[int]):
    pass


def app_of(log: ms.Log, placement: Any) -> ms.App:
    app = ms.App(log, projections=[placement])

    @app.query
    def get_stock(query: GetStock, db: ms.Database) -> int:
        return db.query("select n from stock")[0]["n"]  # type: ignore[no-any-return]

    return app


@pytest.fixture(autouse=True)
def _nothing_performed() -> None:
    PERFORMED.clear()
    FAILING.clear()


@pytest.fixture(params=["file", "log", "duckdb", "postgres"])
def into(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return into_of(request, request.param, tmp_path)


def take(log: ms.Log, *left: int) -> ms.Receipt:
    return log.append("stock", [Taken(sku="a", left=n) for n in left])


def expected(odd: list[int]) -> list[int]:
    return [n for each in odd for n in (each, each)]


def test_effects_are_performed_once_in_order_across_versions_and_a_rollback(log: ms.Log, into: Any) -> None:
    with app_of(log, Stock.into(into)) as app:
        app.query(GetStock(), after=take(log, 1, 2, 3))
        eventually(lambda: len(PERFORMED) == 4)
        assert [id for id, _ in PERFORMED] == ["Stock:1:1", "Stock:1:2", "Stock:3:1", "Stock:3:2"]
        app.rebuild(Stock)
        app.query(GetStock(), after=take(log, 5))
        eventually(lambda: len(PERFORMED) == 6)
        app.rollback(Stock)
        app.query(GetStock(), after=take(log, 7))
        eventually(lambda: len(PERFORMED) == 8)
        assert app.compare(Stock).same
    take(log, 9)
    with app_of(log, Second.into(into)) as app:
        eventually(lambda: [each.state for each in app.read_models()[0].versions][-1] == "live")
        app.query(GetStock(), after=take(log, 11))
        eventually(lambda: len(PERFORMED) == 12)
    assert [n for _, n in PERFORMED] == expected([1, 3, 5, 7, 9, 11])


def test_appends_while_it_is_rebuilt_have_their_effects_once_and_in_order(log: ms.Log, tmp_path: Path) -> None:
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not stop.is_set():
            written.append(2 * len(written) + 1)
            take(log, written[-1])

    with app_of(log, Stock.into(str(tmp_path / "read.db"))) as app:
        thread = threading.Thread(target=write)
        thread.start()
        try:
            for number in range(6):
                app.rollback(Stock) if number == 3 else app.rebuild(Stock)
        finally:
            stop.set()
            thread.join()
        app.query(GetStock(), fresh=True)
        eventually(lambda: len(PERFORMED) >= 2 * len(written))
    assert [n for _, n in PERFORMED] == expected(written)


@pytest.mark.parametrize("then", ["rebuild", "rollback", "start"])
def test_a_kill_right_after_the_swap_repeats_nothing_whatever_is_done_next(
    log: ms.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    app = app_of(log, Stock.into(str(tmp_path / "read.db")))
    app.start()
    app.query(GetStock(), after=take(log, 1))

    def meanwhile(progress: ms.Progress) -> None:
        if log.head == 1:
            app.query(GetStock(), after=take(log, 3))
            eventually(lambda: len(PERFORMED) == 4)
            app.stop()

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("millstream.cqrs.building.hand_over", killed)
        app.rebuild(Stock, progress=meanwhile)
    assert [version.state for version in app.read_models()[0].versions] == ["previous", "live"]
    if then == "rebuild":
        app.rebuild(Stock)
    elif then == "rollback":
        app.rollback(Stock)
    with app:
        app.query(GetStock(), after=take(log, 5))
        eventually(lambda: len(PERFORMED) >= 6)
    assert [n for _, n in PERFORMED] == expected([1, 3, 5])


def test_a_version_that_no_worker_came_to_keep_hides_nothing_of_what_was_performed(log: ms.Log, into: Any) -> None:
    with app_of(log, Stock.into(into)) as app:
        app.query(GetStock(), after=take(log, 1))
        app.rebuild(Stock)
        app.query(GetStock(), after=take(log, 3, 5))
        eventually(lambda: len(PERFORMED) == 6)
    app = app_of(log, Stock.into(into))
    app.rollback(Stock)
    app.rebuild(Stock)
    app.rebuild(Stock)
    with app:
        app.query(GetStock(), after=take(log, 7))
        eventually(lambda: len(PERFORMED) >= 8)
    assert [n for _, n in PERFORMED] == expected([1, 3, 5, 7])


def test_what_is_left_over_by_several_versions_is_performed_in_order(log: ms.Log, into: Any) -> None:
    FAILING.append(ConnectionError("the supplier does not answer"))
    with app_of(log, Stock.into(into)) as app:
        app.query(GetStock(), after=take(log, 1, 3))
        app.rebuild(Stock)
        app.query(GetStock(), after=take(log, 5))
        app.rollback(Stock)
        app.query(GetStock(), after=take(log, 7))
        app.rebuild(Stock)
        app.query(GetStock(), after=take(log, 9))
        FAILING.clear()
        eventually(lambda: len(PERFORMED) >= 10)
    assert [n for _, n in PERFORMED] == expected([1, 3, 5, 7, 9])


def test_a_worker_that_comes_late_to_a_version_that_answers_no_more_lets_go_of_it(
    log: ms.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(log, Stock.into(str(tmp_path / "read.db")))
    follower = app._followers["Stock"]
    taken, turn = follower._keeper_of, threading.Event()

    def late(*given: Any) -> Any:
        keeper = taken(*given)
        if not turn.is_set():
            turn.set()
            done.wait(20)
        return keeper

    done = threading.Event()
    take(log, 1)
    app.rebuild(Stock)
    monkeypatch.setattr(follower, "_keeper_of", late)
    with app:
        turn.wait(20)
        app.rebuild(Stock)
        done.set()
        app.query(GetStock(), after=take(log, 3))
        eventually(lambda: len(PERFORMED) >= 4)
        app.rebuild(Stock)
        app.query(GetStock(), after=take(log, 5))
        eventually(lambda: len(PERFORMED) >= 6)
    assert [n for _, n in PERFORMED] == expected([1, 3, 5])


@pytest.mark.parametrize("raised", [ConnectionError, SystemExit, asyncio.CancelledError])
def test_what_cannot_be_performed_is_tried_again_and_the_rows_go_on(
    log: ms.Log, tmp_path: Path, raised: type[BaseException]
) -> None:
    FAILING.append(raised("the supplier does not answer"))
    with app_of(log, Stock.into(str(tmp_path / "read.db"))) as app:
        assert app.query(GetStock(), after=take(log, 1, 3)) == 3
        eventually(lambda: bool(app.answer(GetStock()).problems))
        assert "the supplier does not answer" in app.answer(GetStock()).problems[0]
        assert app.query(GetStock(), after=take(log, 5)) == 5
        app.rebuild(Stock)
        FAILING.clear()
        eventually(lambda: len(PERFORMED) == 6)
    assert [n for _, n in PERFORMED] == expected([1, 3, 5])


def test_the_past_and_copies_that_are_carried_have_none(log: ms.Log, tmp_path: Path) -> None:
    class Reader(ms.Projection):
        schema = "create table reader (n integer)"
        reads = (Stock,)

        @ms.on
        def taken(self, event: Taken, db: ms.Database) -> None:
            db.execute("insert into reader select n from stock")

    take(log, 1, 3)
    with app_of(log, Reader.into(str(tmp_path / "reader.db"))) as app:
        assert app.query(GetStock(), fresh=True) == 3
    with app_of(log, Stock.into(str(tmp_path / "read.db"))) as app:
        assert app.query(GetStock(), at=ms.Position(1)) == 1
        eventually(lambda: len(PERFORMED) == 4)
    assert [n for _, n in PERFORMED] == expected([1, 3])


@pytest.mark.parametrize("place", ["inline", "live", "memory"])
def test_effects_are_refused_where_they_could_not_be_performed_once(log: ms.Log, place: str) -> None:
    placement = Stock.into(":memory:") if place == "memory" else getattr(Stock, place)()
    with pytest.raises(ms.UsageError, match="has effects"):
        ms.App(log, projections=[placement])


KILLED = """
    import sys, time
    sys.path.insert(0, {tests!r})
    import millstream as ms
    import test_effects as t

    def perform(self, effect):
        with open({told!r}, "a") as file:
            print(effect.id, file=file, flush=True)
        if effect.position == 3:
            import os
            os.kill(os.getpid(), 9)

    t.Stock.perform = perform
    with ms.open({log!r}) as log, t.app_of(log, t.Stock.into({read!r})):
        time.sleep(30)
"""


def test_a_kill_repeats_at_most_what_was_not_noted_and_loses_nothing(log: ms.Log, tmp_path: Path) -> None:
    told, read = tmp_path / "told", str(tmp_path / "read.db")
    take(log, 1, 2, 3, 5)
    code = KILLED.format(tests=str(Path(__file__).parent), told=str(told), log=str(tmp_path / "log.db"), read=read)
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=60)
    assert told.read_text().split() == ["Stock:1:1", "Stock:1:2", "Stock:3:1"]
    with app_of(log, Stock.into(read)):
        eventually(lambda: len(PERFORMED) == 6)
    assert [id for id, _ in PERFORMED] == [f"Stock:{n}:{i}" for n in (1, 3, 4) for i in (1, 2)]


class Halved(ms.Event, type="EffectsHalved", schema=2):
    n: int


@ms.upcast("EffectsHalved", since=2)
def halved(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [data, data]


class Named(ms.Event, type="EffectsNamed", subject="who"):
    who: str
    name: ms.Personal[str]


def test_an_event_that_is_read_as_several_has_the_effects_of_each_and_one_forgotten_its_own(
    log: ms.Log, tmp_path: Path
) -> None:
    class Halves(ms.Projection):
        schema = "create table halves (name text)"

        @ms.on
        def halved(self, event: Halved, effects: ms.Effects) -> None:
            effects.add({"n": event.n})

        @ms.on
        def named(self, event: Named, effects: ms.Effects) -> None:
            effects.add({"name": event.name})

        def perform(self, effect: ms.Effect) -> None:
            PERFORMED.append((effect.id, *effect.body.values()))

    log.append("a", ms.Plain("EffectsHalved", {"n": 4}, schema=1))
    log.append("b", Named(who="b", name="Bob"))
    log.forget("b")
    with app_of(log, Halves.into(str(tmp_path / "read.db"))):
        eventually(lambda: len(PERFORMED) == 3)
    assert PERFORMED == [("Halves:1:1", 4), ("Halves:1:2", 4), ("Halves:2:1", "[erased]")]


def test_what_could_never_be_performed_is_refused(log: ms.Log, tmp_path: Path) -> None:
    class Nobody(ms.Projection):
        schema = "create table nobody (n integer)"

        @ms.on
        def taken(self, event: Taken, effects: ms.Effects) -> None: ...

    class Waiting(Nobody):
        async def perform(self, effect: ms.Effect) -> None: ...

    for cls, why in ((Nobody, "there is none"), (Waiting, "coroutine")):
        with pytest.raises(ms.InvalidHandler, match=why):
            cls.into(str(tmp_path / "read.db"))


def test_an_event_that_was_parked_has_its_effects_in_the_version_that_can_apply_it(log: ms.Log, tmp_path: Path) -> None:
    failing = [True]

    class Parking(Stock):
        on_failure = "park"

        @ms.on
        def taken(self, event: Taken, db: ms.Database, effects: ms.Effects) -> None:
            if failing and event.sku == "b":
                raise ValueError("not yet")
            super().taken(event, db, effects)

    with app_of(log, Parking.into(str(tmp_path / "read.db"))) as app:
        log.append("other", Taken(sku="b", left=1))
        app.query(GetStock(), after=take(log, 3))
        eventually(lambda: len(PERFORMED) == 2)
        failing.clear()
        app.rebuild(Parking)
        app.query(GetStock(), after=take(log, 5))
        eventually(lambda: len(PERFORMED) == 6)
    assert [n for _, n in PERFORMED] == expected([3, 1, 5])


class Slow(Stock):
    schema = "create table slow_stock (sku varchar(20) primary key, n bigint)"
    begun = threading.Event()
    go_on = threading.Event()

    @ms.on
    def taken(self, event: Taken, db: ms.Database, effects: ms.Effects) -> None:
        db.execute(
            "insert into slow_stock (sku, n) values (?, ?) on conflict (sku) do update set n = excluded.n",
            (event.sku, event.left),
        )
        effects.add(event.left)

    def perform(self, effect: ms.Effect) -> None:
        Slow.begun.set()
        assert Slow.go_on.wait(30)
        PERFORMED.append((effect.id, effect.body))


@pytest.fixture
def slow() -> Iterator[None]:
    Slow.begun.clear()
    Slow.go_on.clear()
    yield
    Slow.go_on.set()


def slow_app(log: ms.Log, into: Any) -> ms.App:
    app = ms.App(log, projections=[Slow.into(into)])

    @app.query
    def get_stock(query: GetStock, db: ms.Database) -> int:
        return db.query("select n from slow_stock")[0]["n"]  # type: ignore[no-any-return]

    return app


def test_rows_go_on_while_something_is_done_outside(log: ms.Log, into: Any, slow: None) -> None:
    with slow_app(log, into) as app:
        take(log, 1)
        assert Slow.begun.wait(20)
        assert app.query(GetStock(), after=take(log, 2, 3)) == 3
        assert app.query(GetStock(), after=take(log, 4)) == 4
        app.rebuild(Slow)  # nor those of the version that takes the place
        assert app.query(GetStock(), after=take(log, 5)) == 5
        assert PERFORMED == []
        Slow.go_on.set()
        eventually(lambda: len(PERFORMED) == 5)
    assert [n for _, n in PERFORMED] == [1, 2, 3, 4, 5]


def test_an_app_stops_while_something_is_done_outside_and_nothing_is_lost_or_overtaken(
    log: ms.Log, into: Any, slow: None
) -> None:
    app = slow_app(log, into)
    app.start()
    take(log, 1, 2)
    assert Slow.begun.wait(20)
    app.stop(timeout=0.1)
    assert PERFORMED == []
    take(log, 3)
    # Neither here nor in another app may anybody begin the next before that one is done.
    others = [app] if into is not None and "duckdb" in str(into) else [app, slow_app(log, into)]
    Slow.begun.clear()
    for each in others:
        each.start()
    assert not Slow.begun.wait(0.3)
    Slow.go_on.set()
    eventually(lambda: len(PERFORMED) == 3)
    for each in others:
        each.stop()
    assert [n for _, n in PERFORMED] == [1, 2, 3]
    assert len({id for id, _ in PERFORMED}) == 3


def test_so_does_an_outbox_whose_message_is_being_sent(log: ms.Log) -> None:
    begun, go_on = threading.Event(), threading.Event()
    sent: list[int] = []

    def send(message: ms.Message) -> None:
        begun.set()
        assert go_on.wait(30)
        sent.append(message.body)

    class Post(ms.Command):
        n: int

    app = ms.App(log, outboxes=[ms.Outbox("slow", send)])

    @app.command
    def post(command: Post, slow: ms.Outbox) -> None:
        slow.post(command.n, key="k")

    app.start()
    try:
        app.execute_all([Post(1), Post(2)])
        assert begun.wait(20)
        app.stop(timeout=0.1)
        assert sent == []
        app.start()
    finally:
        go_on.set()
    eventually(lambda: len(sent) == 2)
    app.stop()
    assert sent == [1, 2]


def test_a_worker_whose_code_would_end_its_thread_says_so(log: ms.Log, tmp_path: Path) -> None:
    class Leaving(ms.Projection):
        schema = "create table leaving (n bigint)"

        @ms.on
        def taken(self, event: Taken, db: ms.Database) -> None:
            if FAILING:
                raise FAILING[0]

    FAILING.append(asyncio.CancelledError("of what it calls"))
    take(log, 1)
    with ms.App(log, projections=[Leaving.into(str(tmp_path / "read.db"))]) as app:
        eventually(lambda: "of what it calls" in (app.status()[0].error or ""))
        FAILING.clear()
        eventually(lambda: app.status()[0].behind == 0)
