"""Single events by the thousand are the same events, whether they are read as runs or as columns."""

import random
import sqlite3
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

import polars as pl
import pytest

import millstream as ms
from millstream.log.framing import frame_of
from millstream.log.reading import scope_of
from millstream.log.singles import Singles


class Poured(ms.Event, type="singles.Poured"):
    litres: float
    tank: int
    note: str | None = None
    kind: Literal["hot", "cold"] = "hot"
    price: Decimal | None = None
    at: datetime | None = None


class Nested(ms.Event, type="singles.Nested"):
    tags: list[str] = []


def poured(random, number):
    return Poured(
        litres=random.choice([1, 2.5, -0.0, 1e300]),
        tank=random.choice([number, -number, 2**62]),
        note=random.choice([None, "", 'näß\n\t"quoted", and more', "\u2028"]),
        price=random.choice([None, Decimal("1.50"), Decimal("-3")]),
        at=random.choice([None, datetime(2024, 2, 1, 12, tzinfo=UTC)]),
    )


def filled(seed):
    """A log whose stretches differ in what there is: single events, longer runs, frames, other types and metadata."""
    chosen = random.Random(seed)
    log = ms.open()
    number = 0
    ways = ["single", "metadata", "bulk", "frame", "mixed", "effective", "tagged"]
    for way in ["single", *chosen.choices(ways, k=chosen.randint(2, 6)), "metadata"]:
        staged = []
        for _ in range(chosen.choice([3, 90, 300] if way != "single" else [300])):
            number += 1
            stream = f"tank-{chosen.randint(1, 3)}"
            event = poured(chosen, number)
            options = {}
            if way == "metadata":
                options["metadata"] = {"by": f"{number}\n"}
            elif way == "bulk":
                event = [event, poured(chosen, number)]
            elif way == "frame":
                event, options["type"] = pl.DataFrame({"litres": [1.0, 2.0], "tank": [number, 2]}), "singles.Poured"
            elif way == "mixed":
                event = chosen.choice([event, Nested(tags=["a"]), ms.Plain("singles.Other", {"n": number})])
            elif way == "effective":
                options["effective"] = datetime(2023, 1, 1, tzinfo=UTC)
            elif way == "tagged":
                options["tags"] = [f"n:{number}"]
            staged.append(log.stage(stream, event, **options))
        log.commit(staged)
    return log


@pytest.mark.parametrize("seed", range(12))
def test_spans_hold_the_runs_that_pages_hold(seed):
    log = filled(seed)
    chosen = random.Random(seed)
    seen = 0
    for stream, types in [(None, None), (None, [Poured]), ("tank-2", None), ("tank-*", [Poured, Nested])]:
        scope = scope_of(stream, types)
        for _ in range(4):
            low = chosen.choice([0, chosen.randint(0, log.head)])
            high = chosen.choice([log.head + 1, chosen.randint(0, log.head + 1)])
            spans = list(log.spans(scope, low, high))
            expected = [run for page in log.pages(scope, low, high, False, None) for run in page]
            assert [_told(run) for span in spans for run in span] == [_told(run) for run in expected]
            seen += sum(isinstance(span, Singles) for span in spans)
            for span in spans:
                if isinstance(span, Singles):
                    assert (span.position, span.last, span.count) == (span[0].position, span[-1].last, len(span))
                    assert _told(span[len(span) // 2]) == _told(list(span)[len(span) // 2])
                    given = frame_of([span], envelope=True)
                    assert given.equals(frame_of(list(span), envelope=True), null_equal=True)
                    known = {name: dtype for name, dtype in given.schema.items() if not name.startswith("_")}
                    assert frame_of([span], columns=known).equals(frame_of(list(span), columns=known))
    assert seen


def _told(run):
    return run.position, run.stream, run.version, run.type, run.recorded, run.metadata, run.effective, run.data()


@pytest.mark.parametrize("seed", range(8))
def test_a_scan_of_single_events_is_their_data(seed):
    log = filled(seed)
    rows = log.scan("tank-*", types=[Poured], envelope=True).collect()
    events = list(log.read("tank-*", types=[Poured]))
    assert rows["_position"].to_list() == [each.position for each in events]
    assert rows["_stream"].to_list() == [each.stream for each in events]
    assert rows["_version"].to_list() == [each.version for each in events]
    assert rows["tank"].to_list() == [each.event.tank for each in events]
    assert rows["litres"].to_list() == [each.event.litres for each in events]
    assert rows["_time"].to_list() == [each.time for each in events]
    if "note" in rows.columns:
        assert rows["note"].to_list() == [each.event.note for each in events]
    middle = events[len(events) // 2].position
    part = log.scan("tank-*", types=[Poured]).select("tank").collect()
    assert part["tank"].equals(rows["tank"])
    assert rows.filter(pl.col("_position") <= middle).height == len(events) // 2 + 1


def test_events_whose_class_fits_only_some_of_them_are_read_as_before():
    log = ms.open()
    log.commit([log.stage("s-1", ms.Plain("singles.Poured", {"litres": 1.0, "tank": n})) for n in range(200)])
    log.commit([log.stage("s-1", ms.Plain("singles.Poured", {"litres": "much", "tank": n})) for n in range(200)])
    rows = log.scan("s-1").collect()
    assert rows.schema["litres"] == pl.String
    assert rows["litres"].to_list() == ["1.0"] * 200 + ["much"] * 200
    assert rows["tank"].to_list() == [*range(200)] * 2


def test_whole_numbers_beyond_64_bits_are_read_as_before():
    log = ms.open()
    log.commit([log.stage("s-1", Poured(litres=1, tank=2**70 + n)) for n in range(100)])
    assert log.scan("s-1").select("tank").collect()["tank"].to_list() == [str(2**70 + n) for n in range(100)]


def test_a_frame_of_single_events_costs_no_header_of_theirs(monkeypatch):
    log = ms.open()
    log.commit([log.stage(f"s-{n % 7}", ms.Plain("singles.N", {"n": n})) for n in range(3_000)])
    pages = []
    page = log.store.page
    monkeypatch.setattr(log.store, "page", lambda *args: pages.append(found := page(*args)) or found)
    assert log.scan("s-*").select(pl.col("n").sum()).collect().item() == sum(range(3_000))
    assert sum(map(len, pages)) == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_flow_over_single_events_gives_what_it_gives_over_longer_runs(seed):
    chosen = random.Random(seed)
    singles, bulk = ms.open(), ms.open()
    start = datetime(2024, 1, 1, tzinfo=UTC).timestamp()
    events = [
        Poured(litres=chosen.randint(0, 9), tank=chosen.randint(1, 4), at=datetime.fromtimestamp(start + n, UTC))
        for n in range(700)
    ]
    for at in range(0, 700, 100):
        singles.commit([singles.stage("pours", event) for event in events[at : at + 100]])
        bulk.append("pours", events[at : at + 100])
    flow = ms.stream("pours", time="at").group_by("tank").window(ms.tumbling("1m")).agg(litres=pl.col("litres").sum())
    assert flow.over(singles).equals(flow.over(bulk))
    for log in (singles, bulk):
        ms.run(log, flow.to("sums", type="singles.Sum"), until="head")
    assert singles.scan("sums").collect().equals(bulk.scan("sums").collect())


def test_an_event_that_is_no_json_is_told_by_its_position(tmp_path):
    path = tmp_path / "log.db"
    with ms.open(path) as log:
        log.commit([log.stage("s-1", Poured(litres=1, tank=n)) for n in range(200)])
    with sqlite3.connect(path) as connection:
        connection.execute("update runs set body = '{broken' where position = 150")
    with ms.open(path) as log, pytest.raises(ms.DamagedLog, match="150"):
        log.scan("s-1").collect()


class Litres(ms.Projection):
    name = "SinglesLitres"
    schema = "create table litres (total real)"

    @ms.on_batch(Poured)
    def on_poured(self, rows: pl.DataFrame, db: ms.Database) -> None:
        db.execute("insert into litres values (?)", (rows["litres"].sum(),))


def test_a_read_model_that_takes_frames_needs_no_run_for_each_event(monkeypatch, tmp_path):
    with ms.open(tmp_path / "log.db") as log:
        log.commit([log.stage(f"tank-{n % 3}", Poured(litres=1, tank=n)) for n in range(3_000)])
        gone_through = []
        one_by_one = Singles.__iter__
        monkeypatch.setattr(Singles, "__iter__", lambda self: gone_through.append(self) or one_by_one(self))
        with ms.App(log, projections=[Litres.into(tmp_path / "litres.db")]) as app:

            class Total(ms.Query[float]): ...

            @app.query
            def total(query: Total, db: ms.Database) -> float:
                return db.one("select sum(total) as total from litres")["total"]

            assert app.query(Total(), fresh=True) == 3_000
        assert not gone_through


@pytest.mark.parametrize("metadata", [None, {"by": "a\nb, c"}])
def test_single_events_that_are_cut_are_the_same_events(metadata):
    log = ms.open()
    log.commit(
        [log.stage(f"tank-{i % 3}", ms.Plain("Cut", {"n": i, "s": "a,b\n"}), metadata=metadata) for i in range(99)]
    )
    [whole] = log.spans(scope_of(None, None), 0, log.head + 1)
    assert isinstance(whole, Singles)
    for count in (1, 50, 98):
        parts = whole.split(count)
        assert [part.count for part in parts] == [count, 99 - count]
        assert [_told(run) for part in parts for run in part] == [_told(run) for run in whole]
