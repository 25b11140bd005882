"""Captures, syncs and flows go on in the new home where they were in the old one; projections are made anew."""

import sqlite3
import time

import polars as pl

import millstream as ms
from millstream.log.moving import Segments, copy, open_segments, promote, restore, switch
from millstream.storage.raw import CARRIED


class Ordered(ms.Event, type="moving.Ordered"):
    total: int


class Totals(ms.Projection):
    schema = "create table totals (total integer)"

    @ms.on
    def ordered(self, event: Ordered, db: ms.Database) -> None:
        db.execute("insert into totals values (?)", (event.total,))


class Due(ms.Event, type="moving.Due"):
    pass


class Reminding(ms.Process):
    name = "MovingReminding"

    @ms.on
    def ordered(self, event: Ordered) -> None:
        self.after("1h", Due())
        self.post("moving", event.total, key="k")

    @ms.on
    def due(self, event: Due) -> None:
        self.post("moving", "due", key="k")


def clicks(start: int, count: int) -> pl.DataFrame:
    times = (pl.Series(range(start, start + count)) * 1_000_000).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame({"user": [n % 3 for n in range(count)], "ts": times})


def counts() -> ms.Flow:
    rows = ms.stream("clicks", time="ts", lateness="2s").group_by("user")
    return rows.window(ms.tumbling("10s")).agg(n=pl.len()).to("counts", type="Count")


def columns(path: str) -> dict[str, list[tuple[str, str]]]:
    connection = sqlite3.connect(path)
    try:
        return {
            table.name: [(row[1], row[2].lower()) for row in connection.execute(f"pragma table_info({table.name})")]
            for table in CARRIED
        }
    finally:
        connection.close()


def work(log: ms.Log, start: int, database: str) -> None:
    """Some clicks through a flow, some changes through a capture."""
    log.append("clicks", clicks(start, 35), type="Click")
    ms.run(log, counts(), until="head")
    connection = sqlite3.connect(database)
    connection.execute("create table if not exists users (id integer primary key, name text)")
    connection.execute("insert into users (name) values (?)", (f"user {start}",))
    connection.commit()
    connection.close()
    ms.capture(f"sqlite:///{database}", tables=["users"]).catch_up(log)


def outcome(log: ms.Log) -> tuple:
    rows = log.scan("counts").collect().sort("window_start", "user").rows()
    return rows, [(e.data["operation"], e.data["after"]["name"]) for e in log.read("users", types="Change")]


def expected(tmp_path) -> tuple:
    with ms.open(str(tmp_path / "expected.db")) as log:
        for start in (0, 35, 70):
            work(log, start, str(tmp_path / "expected.sqlite"))
        return outcome(log)


def test_the_tables_that_are_carried_are_those_that_the_patterns_make(tmp_path):
    path = str(tmp_path / "log.db")
    with ms.open(path) as log:
        work(log, 0, str(tmp_path / "users.sqlite"))
        ms.sync(log, "users", ms.Callback(lambda change: None, name="nothing"), start=False).catch_up()
        ms.App(log, processes=[Reminding], outboxes=[ms.Outbox("moving", print)])
    sqlite = {"text": "text", "integer": "bigint", "blob": "blob"}
    assert columns(path) == {table.name: [(name, sqlite[type]) for name, type in table.columns] for table in CARRIED}


def test_flows_and_captures_go_on_after_a_switch_and_repeat_nothing(source, target, tmp_path):
    with ms.open(str(tmp_path / "old.db")) as old:
        work(old, 0, str(tmp_path / "users.sqlite"))
        copy(old, target)
        work(old, 35, str(tmp_path / "users.sqlite"))
        switch(old, target)
    work(target, 70, str(tmp_path / "users.sqlite"))
    assert outcome(target) == expected(tmp_path)


def test_they_go_on_from_a_level_copy_whose_source_is_lost(target, tmp_path):
    with ms.open(str(tmp_path / "old.db")) as old:
        work(old, 0, str(tmp_path / "users.sqlite"))
        copy(old, target)
        work(old, 35, str(tmp_path / "users.sqlite"))
        copy(old, target)
    assert promote(target).state_at == target.head
    work(target, 70, str(tmp_path / "users.sqlite"))
    assert outcome(target) == expected(tmp_path)


def test_they_go_on_from_a_depot(target, tmp_path):
    place = str(tmp_path / "depot")
    with ms.open(str(tmp_path / "old.db")) as old:
        work(old, 0, str(tmp_path / "users.sqlite"))
        copy(old, Segments(place))
        work(old, 35, str(tmp_path / "users.sqlite"))
        copy(old, Segments(place))
        copy(old, Segments(place))
    restore(open_segments(place), target)
    work(target, 70, str(tmp_path / "users.sqlite"))
    assert outcome(target) == expected(tmp_path)


def test_an_inline_projection_is_made_anew_in_the_new_home(target, tmp_path):
    with ms.open(str(tmp_path / "old.db")) as old:
        app = ms.App(old, projections=[Totals.inline()])
        with app:
            for total in (3, 4):
                old.append("order-1", Ordered(total=total))
        switch(old, target)
    with ms.App(target, projections=[Totals.inline()]):
        target.append("order-1", Ordered(total=5))
    with target.connect() as db:
        assert [row["total"] for row in db.query("select total from totals")] == [3, 4, 5]


def test_processes_and_outboxes_go_on_after_a_switch_and_repeat_nothing(target, tmp_path):
    sent: list[object] = []

    def play(log: ms.Log, until: int) -> None:
        app = ms.App(log, processes=[Reminding], outboxes=[ms.Outbox("moving", lambda m: sent.append(m.body))])
        with app:
            give_up = time.monotonic() + 20
            while len(sent) < until or any(status.behind for status in app.status()):
                assert time.monotonic() < give_up
                time.sleep(0.01)

    with ms.open(str(tmp_path / "old.db")) as old:
        ms.App(old, processes=[Reminding])
        old.append("order-1", Ordered(total=3))
        play(old, 1)
        switch(old, target)
    target.append("order-1", Ordered(total=4))
    play(target, 2)
    with target.connect() as db:
        waiting = db.query(f"select due from {db.own('millstream_timers')} order by due")
    assert sent == [3, 4]
    assert len(waiting) == 2


def test_an_unchanged_state_is_not_given_again(tmp_path):
    place = str(tmp_path / "depot")
    with ms.open(str(tmp_path / "old.db")) as old:
        work(old, 0, str(tmp_path / "users.sqlite"))
        copy(old, Segments(place))
        before = len(Segments(place).segments())
        copy(old, Segments(place))
        assert len(Segments(place).segments()) == before
