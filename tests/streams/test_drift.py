from __future__ import annotations

import random
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import polars as pl
import pytest
from referee import START

import millstream as ms
from millstream.streams import Flow, MissingColumn, UnsupportedExpression, hopping, run, sliding, stream, tumbling
from millstream.streams.replay import replay
from millstream.streams.runner import Worker

HOURS = [f"2024-01-01T{hour:02}:00:00Z" for hour in range(24)]
source = stream("s", time="ts", lateness="2h")

DRIFTS: list[tuple[Any, Any]] = [
    (1, 2.5),
    (2.5, 1),
    (1, "one"),
    (True, 1),
    (1, 2**63),
    ({"a": 1}, {"a": 1, "b": 2}),
    ({"a": None}, {"a": 1}),
    ({"a": 1}, {"a": "x"}),
    ([{"a": 1}], [{"a": 1, "b": 2}]),
    ({}, {"a": 1}),
    (None, 3),
    ([1], "x"),
]


def rows_of(log: ms.Log, name: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.data.items() if v is not None} for event in log.read(name)]


def texts(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as text, in which 1 and 1.0 are the same, and times are as JSON has them."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime):
            return value.isoformat().replace("+00:00", "Z")
        return float(value) if isinstance(value, int | float) else value

    return [str({k: plain(v) for k, v in row.items() if v is not None}) for row in rows]


@pytest.mark.parametrize(("first", "then"), DRIFTS, ids=str)
def test_a_field_that_a_flow_does_not_read_may_be_anything(first: Any, then: Any) -> None:
    flow = stream("s", time="ts").group_by("k").window(tumbling("1h")).agg(n=pl.len()).to("o", type="O")
    log = ms.open()
    for hour, value in [(0, first), (2, then), (4, first)]:
        log.append("s", ms.Plain("E", {"k": "a", "v": value, "ts": HOURS[hour]}))
        run(log, flow, until="head")
    assert [row["n"] for row in rows_of(log, "o")] == [1, 1]
    assert flow.over(log)["n"].to_list() == [1, 1, 1]


@pytest.mark.parametrize(("first", "then"), DRIFTS, ids=str)
def test_a_field_that_a_flow_passes_on_may_be_anything(first: Any, then: Any) -> None:
    log = ms.open()
    for hour, value in [(0, first), (2, then), (4, first)]:
        log.append("s", ms.Plain("E", {"k": "a", "v": value, "ts": HOURS[hour]}))
        for number, flow in enumerate([source, source.group_by("k").window(sliding("9h")).agg(n=pl.len())]):
            run(log, flow.to(f"o{number}", type="O"), until="head")
    assert len(rows_of(log, "o0")) == 3
    assert [row["n"] for row in rows_of(log, "o1")] == [1]
    assert source.group_by("k").window(sliding("9h")).agg(n=pl.len()).over(log)["n"].to_list() == [1, 2, 3]


def objects(seed: int) -> ms.Log:
    """Objects whose fields change their type as time goes on, some absent, some null; a run each, or several."""
    r = random.Random(seed)
    log = ms.open()
    hour = 0.0
    for part in range(12):
        events = []
        for _ in range(r.choice([1, 1, 2, 5, 9])):
            hour += r.random() / 3
            at = min(int(max(hour - r.random() * 3, 0) * 3600), 86399)
            event: dict[str, Any] = {"ts": f"2024-01-01T{at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}Z"}
            key: list[Any] = [9, 10, None, 2]
            if part > 3:
                key += [2.0, 2.5]
            if part > 6:
                key += ["2", "x", True]
            if r.random() < 0.9:
                event["k"] = r.choice(key)
            if part > 1:
                event["v"] = r.choice([1, 2, None] if part < 5 else [1, 2.5])
            if r.random() < 0.5:
                event["o"] = r.choice([{}, {"a": 1}, {"a": "x"}, {"b": [1]}, None])
            events.append(ms.Plain("E", event))
        log.append("s", events)
    return log


FLOWS: dict[str, Flow] = {
    "tumbling": source.group_by("k").window(tumbling("1h")).agg(n=pl.len(), v=pl.col("v").sum(), m=pl.col("k").min()),
    "hopping": source.group_by("k").window(hopping("2h", every="30m")).agg(n=pl.len(), v=pl.max("v")),
    "late": source.group_by("k").window(tumbling("1h")).agg(n=pl.len()).late_to("late"),
    "sliding": source.group_by("k").window(sliding("3h")).agg(n=pl.len()).select("k", "n", "v"),
    "plain": source.filter(pl.col("v").is_null() | (pl.col("v") > 1)).select("k", "v"),
    "match": source.group_by("k").match(
        "a{2,} b?", within="4h", define={"a": pl.col("v").is_null() | (pl.col("v") > 1), "b": pl.col("v") == 1}
    ),
    "alert": source.group_by("k").window(tumbling("30m")).agg(n=pl.len()).alert(pl.col("n") > 0, cooldown="2h"),
    "chain": source.group_by("k")
    .window(tumbling("10m"))
    .agg(n=pl.len(), v=pl.max("v"))
    .group_by("k")
    .window(tumbling("1h"))
    .agg(n=pl.col("n").sum(), v=pl.max("v")),
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(("seed", "small"), [(0, 1), (1, 2), (2, 7), (3, 1)])
def test_output_is_the_same_whatever_the_batches_though_types_drift(name: str, seed: int, small: int) -> None:
    outputs, lates = [], []
    flow = FLOWS[name]
    for size in (small, 100_000):
        log = objects(seed)
        head = log.head
        for restarts in (False, True):
            worker = Worker(log, flow.to(f"o{restarts}", type="O"), rows=size, commit_every=0 if restarts else 9)
            while worker.advance(head):
                if restarts:
                    worker = Worker(log, flow.to("oTrue", type="O"), rows=size, commit_every=0)
            outputs.append(rows_of(log, f"o{restarts}"))
        lates.append(rows_of(log, "late"))
        past = replay(flow, log, until=None, final=False, rows=size)
        assert texts(past.to_dicts()) == texts(outputs[-1]) or any(isinstance(t, pl.String) for t in past.dtypes)
        assert past.height == len(outputs[-1])
    assert outputs[0]
    assert all(output == outputs[0] for output in outputs)
    assert all(late == lates[0] for late in lates)


def mixed(seed: int, *, frames: bool) -> ms.Log:
    """Objects and, if they are wanted, frames by turns in one stream: times are text here and times there."""
    r = random.Random(seed)
    log = ms.open()
    hour = 0.0
    for part in range(14):
        rows: list[dict[str, Any]] = []
        for _ in range(r.choice([1, 2, 5, 9])):
            hour += r.random() / 4
            at = timedelta(seconds=min(int(max(hour - r.random() * 3, 0) * 3600), 86399))
            key = r.choice([9, 10, None, 2]) if part < 8 else r.choice([2, "2", "x"])
            rows.append({"k": key, "v": r.choice([1, 2, None] if part < 5 else [1, 2.5, None]), "ts": START + at})
        if r.random() < 0.5 and all(not isinstance(row["k"], str) for row in rows) and frames:
            frame = pl.DataFrame(rows, schema={"k": pl.Int32, "v": pl.Float64, "ts": pl.Datetime("ms", "UTC")})
            log.append("s", frame, type="E")
        else:
            log.append("s", [ms.Plain("E", {**row, "ts": row["ts"].isoformat()}) for row in rows])
    return log


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "plain"])
@pytest.mark.parametrize(("seed", "small"), [(0, 1), (1, 3), (2, 2)])
def test_objects_and_frames_of_other_types_in_one_stream_are_rows_of_one_flow(name: str, seed: int, small: int) -> None:
    flow = FLOWS[name]
    outputs = []
    for size in (small, 100_000):
        log = mixed(seed, frames=True)
        head = log.head
        worker = Worker(log, flow.to("o", type="O"), rows=size, commit_every=0)
        while worker.advance(head):
            worker = Worker(log, flow.to("o", type="O"), rows=size, commit_every=0)
        outputs.append(rows_of(log, "o"))
    assert outputs[0]
    assert all(output == outputs[0] for output in outputs)
    alone = mixed(seed, frames=False)
    run(alone, flow.to("o", type="O"), until="head")
    counts = [[row["n" if "n" in row else "events"] for row in rows] for rows in (outputs[0], rows_of(alone, "o"))]
    assert counts[0] == counts[1]


def test_frames_of_a_category_whose_types_differ_become_what_holds_all_values() -> None:
    log = ms.open()
    whole, broken = 2**53 + 1, 2.5
    for name, value in [("a", 1), ("b", broken), ("c", 3), ("d", whole), ("e", datetime(2024, 1, 1)), ("f", "x")]:
        log.append(f"s-{name}", pl.DataFrame({"v": [value], "ts": [START]}), type="E")
    for rows in (1, 100):
        given = replay(stream("s-*", time="ts").select("v"), log, rows=rows)
        # Text since the number that no float is: what came before stays what it was when it came.
        assert given["v"].to_list() == ["1", "2.5", "3.0", str(whole), "2024-01-01T00:00:00", "x"]
    assert stream("s-*", time="ts").select("v").schema(log) == {"v": pl.String}
    few = stream("s-*", time="ts").filter(pl.col("_stream").is_in(["s-a", "s-b", "s-c"]))
    assert few.window(tumbling("1h")).agg(n=pl.len()).over(log)["n"].to_list() == [3]


def test_a_column_that_no_row_has_had_is_missed_before_anything_is_written() -> None:
    log = ms.open()
    log.append("s", [ms.Plain("E", {"ts": HOURS[0]}), ms.Plain("E", {"ts": HOURS[5]})])
    flow = source.group_by("k").window(tumbling("1h")).agg(n=pl.len())
    with pytest.raises(MissingColumn, match="'k'"):
        flow.over(log)
    with pytest.raises(MissingColumn, match="'k'"):
        run(log, flow.to("o", type="O"), until="head")
    log.append("s", ms.Plain("E", {"ts": HOURS[5], "k": 7}))
    run(log, flow.to("o", type="O"), until="head")
    assert [event.data["k"] for event in log.read("o")] == [None]


def test_what_is_missed_is_the_column_also_where_no_verb_can_do_without_its_type() -> None:
    log = ms.open()
    log.append("s", [ms.Plain("E", {"ts": HOURS[0]}), ms.Plain("E", {"ts": HOURS[5]})])
    length = pl.col("k").str.len_chars()
    windows = source.window(tumbling("1h"))
    flows = [source.filter(length > 1), *(windows.agg(n=each) for each in (length.sum(), length.median()))]
    for number, flow in enumerate(flows):
        with pytest.raises(MissingColumn, match="needs column 'k'"):
            run(log, flow.to("o", type="O", name=str(number)), until="head")
    log.append("s", ms.Plain("E", {"ts": HOURS[5], "k": "seven"}))
    for number, flow in enumerate(flows):
        run(log, flow.to("o", type="O", name=str(number)), until="head")


def test_a_field_without_a_value_so_far_is_named_where_a_verb_needs_its_type_and_a_cast_gives_it_one() -> None:
    log = ms.open()
    log.append("s", [ms.Plain("E", {"ts": HOURS[0], "k": None})])
    flow = source.with_columns(n=pl.col("k").str.len_chars()).to("o", type="O")
    with pytest.raises(UnsupportedExpression, match=r"No row so far has a value in 'k': say its type, pl.col\('k'\)"):
        run(log, flow, until="head")
    flow = source.with_columns(n=pl.col("k").cast(pl.String).str.len_chars()).to("o", type="O", name="typed")
    run(log, flow, until="head")
    log.append("s", ms.Plain("E", {"ts": HOURS[1], "k": "seven"}))
    run(log, flow, until="head")
    assert [event.data["n"] for event in log.read("o")] == [None, 5]


OBJECTS: list[list[Any]] = [
    [{"a": 1, "b": "x"}, {"a": 2, "b": None}, None, {"a": 3}],
    [{"a": 1}, {}, {"a": 2}],
    [{"a": 1}, {"a": None}, {"a": 2}, None],
    [{"a": 1, "c": {"d": True}}, {"a": 2, "c": {"d": False}}, {"a": 3, "c": None}, {"a": 4, "c": {}}],
    [{"a": 1}, {"a": 2}, {"a": 2, "b": 1}, {"a": 2**63}],
    [{"a": 1.5}, {"a": 2}, {"a": 2**60}],
    [{"a": 1}, {"a": 2}, "text"],
]


class DriftedPlace(msgspec.Struct):
    city: str
    zip: int | None = None


class DriftedParcel(ms.Event, type="DriftedParcel", kw_only=True):
    k: int
    ts: datetime
    note: str | None = None
    price: Decimal | None = None
    day: date | None = None
    left: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    tags: list[str] | None = None
    place: DriftedPlace | None = None
    kind: Literal["a", "b"] | None = None


def parcels(seed: int) -> list[DriftedParcel]:
    """Events whose fields have no value at first, and one by one get some."""
    r = random.Random(seed)
    some: dict[str, list[Any]] = {
        "note": ["x", "longer"],
        "price": [Decimal("1"), Decimal("2.50")],
        "day": [date(2024, 1, 1), date(2023, 1, 1)],
        "left": [START, START + timedelta(days=1)],
        "tags": [[], ["a", "b"]],
        "place": [DriftedPlace(city="Rome", zip=1), DriftedPlace(city="Oslo")],
        "kind": ["a", "b"],
    }
    return [
        DriftedParcel(
            k=r.randrange(3),
            ts=START + timedelta(minutes=number),
            **{name: r.choice([*values, None]) for name, values in some.items() if number > r.randrange(60)},
        )
        for number in range(80)
    ]


TYPED = source.with_columns(
    long=pl.col("note").str.len_chars(),
    late=pl.col("day") < date(2024, 1, 1),
    hour=pl.col("left").dt.hour(),
    tags=pl.col("tags").list.len(),
    city=pl.col("place").struct.field("city"),
    twice=pl.col("price") * 2,
)
SUMS = {name: pl.col(name).sum() for name in ("long", "late", "hour", "tags", "twice")}


@pytest.mark.parametrize("seed", range(4))
def test_a_field_without_a_value_so_far_has_the_type_that_its_class_says(seed: int) -> None:
    events = parcels(seed)
    whole = pl.DataFrame([msgspec.to_builtins(event, builtin_types=(datetime, date, Decimal)) for event in events])
    expected = whole.select(
        long=pl.col("note").str.len_chars().sum(),
        late=(pl.col("day") < date(2024, 1, 1)).sum(),
        hour=pl.col("left").dt.hour().sum(),
        tags=pl.col("tags").list.len().sum(),
        twice=(pl.col("price") * 2).sum(),
    )
    outputs = []
    for size in (1, 3, 1000):
        log = ms.open()
        for event in events:  # a run each, from the first of which on they have types
            log.append("s", event)
        given = replay(TYPED.group_by("city").window(tumbling("1d")).agg(**SUMS), log, rows=size)
        assert given.select(pl.col(expected.columns).sum()).row(0) == expected.row(0)
        outputs.append(given)
    assert all(output.equals(outputs[0]) for output in outputs)
    plain = [replay(TYPED, log, rows=size) for size in (1, 7, 1000)]
    assert all(given.equals(plain[0]) for given in plain)
    first = ms.open()
    first.append("s", DriftedParcel(k=1, ts=START))
    assert TYPED.over(first).schema == TYPED.schema(first)
    assert TYPED.schema(first)["late"] == pl.Boolean
    assert TYPED.over(first).row(0, named=True)["long"] is None
    first.append("t", pl.DataFrame({"ts": [START], "note": [None]}), type="DriftedParcel")
    assert stream("t", time="ts").over(first).schema["note"] == pl.String


@pytest.mark.parametrize("values", OBJECTS, ids=str)
def test_objects_in_objects_are_the_same_rows_by_whichever_way_they_are_read(
    values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = stream("s", time="ts").select("v", "n")
    with ms.open() as log:
        for n, value in enumerate(values * 2):
            log.append("s", ms.Plain("E", {"v": value, "n": n, "ts": HOURS[n]}))
        whole = flow.over(log)
        assert whole["n"].to_list() == list(range(len(values) * 2))
        assert all(replay(flow, log, rows=rows).equals(whole) for rows in (1, 2, 3))
        monkeypatch.setattr("millstream.streams.rows.quick_frame", lambda *_: None)
        assert flow.over(log).equals(whole)
        assert replay(flow, log, rows=1).equals(whole)


class DriftedVisit(ms.Event):
    ts: datetime


def test_times_that_are_datetimes_in_some_events_and_text_in_others_are_all_times() -> None:
    flow = source.window(tumbling("24h")).agg(n=pl.len())
    with ms.open() as log:
        for hour in (0, 1, 2):
            log.append("s", DriftedVisit(ts=datetime.fromisoformat(HOURS[hour])))
            log.append("s", ms.Plain("DriftedText", {"ts": HOURS[hour]}))
        assert flow.over(log)["n"].to_list() == [6]
        assert source.lateness(log)[0].late == 0


def test_decimals_keep_their_precision_over_a_restart() -> None:
    prices = pl.Series([Decimal("1.10"), Decimal("-3.00"), None], dtype=pl.Decimal(20, 2))
    rows = pl.DataFrame({"price": prices, "ts": [datetime(2024, 1, 1, hour) for hour in range(3)]})
    flow = stream("s", time="ts").group_by("price").window(tumbling("1h")).agg(n=pl.len())
    with ms.open() as log:
        for each in range(3):
            log.append("s", rows.slice(each, 1), type="DriftPriced")
            run(log, flow.to("out", type="DriftPrices"), until="head")
        assert log.scan("out").collect().schema["price"] == prices.dtype == flow.over(log).schema["price"]


def test_rows_that_are_objects_since_a_type_has_drifted_are_read_back_in_one_form() -> None:
    flow = stream("s", time="ts").group_by("k").window(tumbling("1m")).agg(v=pl.col("v").max())
    ended = flow.to("out", type="DriftedBack")
    again = stream("out", time="window_end").window(tumbling("1h")).agg(n=pl.len())
    with ms.open() as log:
        for n, value in enumerate([1, 2, "x", "y", 3]):
            at = (START + timedelta(minutes=2 * n)).isoformat()
            log.append("s", ms.Plain("DriftedRow", {"k": 1, "v": value, "ts": at}))
            run(log, ended, until="head")
        texts = log.scan("out").collect()["window_start"]
        assert set(texts.str.len_chars()) == {len("2024-01-15T12:00:00Z")}
        assert texts.str.ends_with("Z").all()
        assert again.over(log)["n"].sum() == len(texts) == 4

        class DriftedBack(ms.Event):
            window_start: datetime
            v: int | str

        times = log.scan("out").collect()["window_start"]
        assert times.dtype == pl.Datetime("us", "UTC")
        assert [event.event.window_start for event in log.read("out")] == times.to_list()


@pytest.mark.parametrize("window", [tumbling("1h"), sliding("1h")], ids=["tumbling", "sliding"])
@pytest.mark.parametrize("value", [2, 2.5])
def test_what_had_no_value_yet_adds_up_to_nothing_in_whatever_batches(window: Any, value: float) -> None:
    flow = stream("s", time="ts").group_by("k").window(window).agg(total=pl.col("v").sum())
    with ms.open() as log:
        for hour, field in [(0, {}), (2, {"v": None}), (4, {"v": value}), (6, {}), (8, {})]:
            log.append("s", ms.Plain("DriftAdded", {"k": "a", "ts": HOURS[hour], **field}))
        for rows in (1, 2, 100):
            found = replay(flow, log, rows=rows)["total"]
            assert found.to_list() == [0, 0, value, 0, 0]
            assert found.dtype == (pl.Int64 if value == 2 else pl.Float64)
