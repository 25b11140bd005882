from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import START, agree, clicks, play

import millstream as ms
from millstream.streams import FlowError, MissingColumn, run, sliding, stream, tumbling
from millstream.streams.instants import usual_instants
from millstream.streams.pipeline import Pipeline
from millstream.streams.runner import Worker
from millstream.testing import FakeClock


def seconds(*offsets: float | None) -> pl.DataFrame:
    ts = [None if s is None else START + timedelta(seconds=s) for s in offsets]
    return pl.DataFrame({"ts": ts}, schema={"ts": pl.Datetime("us", "UTC")})


def late_rows(rows: pl.DataFrame, lateness: str, sizes: list[int]) -> tuple[list[datetime | None], int]:
    pipeline = Pipeline(stream("s", time="ts", lateness=lateness).window(tumbling("1m")).agg(n=pl.len()).late_to("l"))
    rows = rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("_position"))
    state, late, at = pipeline.start(), [], 0
    while at < rows.height:
        size = sizes[at % len(sizes)]
        state, _, aside = pipeline.step(state, rows.slice(at, size))
        late += aside["ts"].to_list() if aside is not None else []
        at += size
    return late, state.late


def test_a_row_is_late_when_it_is_below_the_running_maximum_less_the_lateness() -> None:
    late, count = late_rows(seconds(10, 8, 7.9, 20, 12, 18, 17), "2s", [100])
    assert late == seconds(7.9, 12, 17)["ts"].to_list()
    assert count == 3


@pytest.mark.parametrize("sizes", [[1], [2, 5], [3, 1, 7], [1000]])
def test_the_same_rows_are_late_whatever_the_batches(sizes: list[int]) -> None:
    rows = clicks(3, 3_000, late=20)
    late, count = late_rows(rows, "2s", sizes)
    expected = rows.with_columns(pl.col("ts").cum_max().shift(1).alias("reached")).filter(
        pl.col("ts") < pl.col("reached") - timedelta(seconds=2)
    )
    assert late == expected["ts"].to_list()
    assert count == expected.height > 100


def test_late_rows_are_counted_where_the_flow_asks_for_none_of_their_columns() -> None:
    pipeline = Pipeline(stream("s", time="ts", lateness="2s").window(tumbling("1m")).agg(n=pl.len()))
    rows = seconds(10, 8, 7.9, 20, 12, 18, 17)
    state, _, _ = pipeline.step(pipeline.start(), rows.with_columns(_position=pl.int_range(pl.len(), dtype=pl.Int64)))
    assert state.late == 3


def test_late_rows_are_left_out_of_windows_even_where_those_are_still_open() -> None:
    rows = clicks(3, 3_000, late=20)
    in_time = rows.with_columns(pl.col("ts").cum_max().shift(1).alias("reached")).filter(
        pl.col("reached").is_null() | (pl.col("ts") >= pl.col("reached") - timedelta(seconds=2))
    )
    flow = stream("s", time="ts", lateness="2s").group_by("user").window(tumbling("5m")).agg(n=pl.len())
    agree(
        play(flow, rows, 3),
        """select user, time_bucket(interval '5 minute', ts) as window_start, window_start +
           interval '5 minute' as window_end, count(*) as n from rows group by 1, 2""",
        rows=in_time.drop("reached"),
    )


def test_rows_without_a_time_are_put_aside_and_counted() -> None:
    late, count = late_rows(seconds(1, None, 2), "0s", [1])
    assert (late, count) == ([None], 1)


def test_a_flow_before_its_first_window_has_no_late_rows() -> None:
    rows = seconds(10, 1)
    assert play(stream("s", time="ts").filter(pl.lit(True)), rows).height == 2


def test_late_rows_go_to_a_stream_of_their_own_as_they_are() -> None:
    log = ms.open()
    log.append("s", seconds(10, 1, None, 11).with_columns(x=pl.lit(7)), type="Row")
    flow = stream("s", time="ts").window(tumbling("1s")).agg(n=pl.len()).late_to("late").to("n", type="N")
    run(log, flow, until="head")
    assert [event.data for event in log.read("late")] == [
        {"ts": START + timedelta(seconds=1), "x": 7},
        {"ts": None, "x": 7},
    ]
    assert next(log.read("late")).type == "Late"


def test_times_may_be_text_dates_or_in_any_zone_and_unit() -> None:
    flow = stream("s", time="ts").window(tumbling("1d")).agg(n=pl.len()).select("window_start", "n")
    day = datetime(2024, 1, 15, tzinfo=UTC)
    noon = pl.Series([datetime(2024, 1, 15, 12)])
    for ts in (
        pl.Series(["2024-01-15T23:30:00+05:00"]),
        pl.Series([date(2024, 1, 15)]),
        noon,
        noon.cast(pl.Datetime("ns")),
        noon.cast(pl.Datetime("ms")).dt.replace_time_zone("America/New_York"),
    ):
        assert play(flow, pl.DataFrame({"ts": ts})).rows() == [(day, 1)]


def test_without_a_time_column_the_time_is_when_the_log_recorded_the_row() -> None:
    clock = FakeClock("2024-01-15T12:00:00Z")
    log = ms.open(clock=clock)
    for _ in range(6):
        log.append("visits", ms.Plain("Visit", {"user": 7}))
        clock.advance("40s")
    flow = stream("visits").group_by("user").window(tumbling("1m")).agg(n=pl.len())
    assert flow.over(log)["n"].to_list() == [2, 1, 2, 1]


def test_a_column_that_is_not_there_or_holds_no_time_is_named() -> None:
    flow = stream("s", time="when").window(tumbling("1m")).agg(n=pl.len())
    with pytest.raises(MissingColumn, match="'when'"):
        play(flow, seconds(1))
    with pytest.raises(FlowError, match="which is no time"):
        play(stream("s", time="ts").window(tumbling("1m")).agg(n=pl.len()), pl.DataFrame({"ts": [1.5]}))
    timed = stream("s", time="ts")
    for broken in (
        timed.group_by("nobody").window(tumbling("1m")).agg(n=pl.len()),
        timed.group_by("nobody").window(sliding("1m")).agg(n=pl.len()),
        timed.group_by("nobody").match("a", within="1m", define={"a": pl.col("ts").is_not_null()}),
        timed.filter(pl.col("nobody") > 1),
        timed.window(tumbling("1m")).agg(n=pl.col("nobody").sum()),
        timed.window(sliding("1m")).agg(n=pl.col("nobody").sum()),
        timed.match("a", within="1m", define={"a": pl.col("nobody")}),
    ):
        with pytest.raises(MissingColumn, match="'nobody'"):
            play(broken, seconds(1, 2))


def test_rows_that_no_window_has_put_into_order_stay_in_the_order_of_the_log() -> None:
    rows = clicks(2, 500, late=30)
    flow = stream("s", time="ts").filter(pl.col("kind") == "click")
    expected = rows.filter(pl.col("kind") == "click")
    for seed in (None, 1, 2):
        assert play(flow, rows, seed).equals(expected)
        assert play(flow.alert(pl.col("amount") > 0), rows, seed).equals(expected.filter(pl.col("amount") > 0))


def test_each_text_is_read_for_itself_whatever_stands_beside_it() -> None:
    texts = [
        "2024-01-01T00:00:00",
        "2024-01-01T00:00:01Z",
        "2024-01-01",
        "2024-01-01 00:00:02.5",
        "2024-01-01T05:30:03+05:30",
        "2024-01-01T00:01",
        "2024-01-01T00:01Z",
        "2024-01-01t00:01:01.123456789z",
        "soon",
        None,
        "2024-01-02",
    ]
    start = datetime(2024, 1, 1, tzinfo=UTC)
    offsets = [0, 1, 0, 2.5, 3, 60, 60, 61.123456, None, None, 86_400]
    expected = [None if o is None else start + timedelta(seconds=o) for o in offsets]
    flow = stream("s", time="ts", lateness="1d").window(sliding("1s")).agg(n=pl.len()).select("ts", "window_end")
    for order in (list(range(11)), list(range(10, -1, -1))):
        rows = pl.DataFrame({"ts": [texts[i] for i in order]})
        for seed in (None, 1, 2):
            read = dict(play(flow, rows, seed).rows())
            assert read == {t: e for t, e in zip(texts, expected, strict=True) if e is not None}


class Visit(ms.Event):
    user: int


def test_rows_are_the_events_of_the_chosen_types_and_never_the_end_of_a_stream() -> None:
    log = ms.open()
    log.append("visits-1", [Visit(user=7), ms.Plain("Odd", {"user": 7}), ms.Plain("Other", {"user": "x"})])
    log.close_stream("visits-1", reason="over")
    for types, count in ((None, 3), ([Visit], 1), (Visit, 1), (["Visit", "Odd"], 2), ("Odd", 1)):
        flow = stream("visits-*", types=types).window(tumbling("1d")).agg(n=pl.len())
        assert flow.over(log)["n"].to_list() == [count]
    run(log, stream("visits-1", types=["Odd"]).select("user").to("odd", type="O"), until="head")
    assert [event.data for event in log.read("odd")] == [{"user": 7}]


@settings(max_examples=60)
@given(
    st.sampled_from([0, 1, 3, 6]),
    st.lists(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)), min_size=1, max_size=20),
    st.one_of(st.none(), st.tuples(st.integers(0, 26), st.sampled_from([*"0123459:-TZ.,+ ", "ü", "٣"]))),
)
def test_the_quick_way_reads_text_as_the_parser_does(digits: int, moments: list[datetime], change: Any) -> None:
    texts = []
    for moment in moments:
        fraction = f".{moment.microsecond:06d}"[: digits + 1] if digits else ""
        texts.append(f"{moment.year:04d}-{moment:%m-%dT%H:%M:%S}{fraction}Z")
    if change is not None and change[0] < len(texts[0]):
        place, sign = change
        texts[0] = texts[0][:place] + sign + texts[0][place + 1 :]
    text = pl.Series("ts", texts)
    parsed = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", time_zone="UTC", strict=False)
    quick = usual_instants(text)
    if quick is None:
        # Left to the parser; but only when something was changed.
        assert change is not None
    else:
        assert quick.equals(parsed.dt.epoch("us"))


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [None],
        ["2023-02-29T00:00:00Z"],
        ["2024-01-01T24:00:00Z"],
        ["2024-01-01T00:00:60Z"],
        ["2024-00-01T00:00:00Z"],
        ["2024-13-01T00:00:00Z"],
        ["0000-01-01T00:00:00Z"],
        ["2024-01-01T00:00:00.Z"],
        ["2024-01-01T00:00:00Z", "2024-01-01T00:00:00.1Z"],
        ["2024-01-01T00:00:00Z", None],
    ],
)
def test_what_is_not_of_the_usual_form_is_left_to_the_parser(texts: list[str | None]) -> None:
    assert usual_instants(pl.Series("ts", texts, dtype=pl.String)) is None
    assert usual_instants(pl.Series("ts", ["2024-02-29T23:59:59.5Z"], dtype=pl.String)).to_list() == [1709251199500000]


def test_many_texts_of_one_day_and_of_several_are_read_alike() -> None:
    begin = 1_709_164_800_000_000  # 2024-02-29
    micros = pl.Series("ts", [begin + n * 4_000_017 for n in range(40_000)])
    text = micros.cast(pl.Datetime("us", "UTC")).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
    assert text.str.slice(0, 10).n_unique() == 2
    assert micros.equals(usual_instants(text))
    # One that is odd, after many that are not.
    assert usual_instants(text.set(pl.Series(range(40_000)) == 39_999, "2024-02-30T00:00:00.000000Z")) is None
    assert usual_instants(text.str.replace("T", " ")) is None


@pytest.mark.parametrize(
    ("dtype", "day", "most"),
    [
        (pl.Date, 1, 2**31 - 1),
        (pl.Datetime("ms"), 86_400_000, 2**63 - 1),
        (pl.Datetime("us", "UTC"), 86_400_000_000, 2**63 - 1),
    ],
    ids=str,
)
def test_a_time_near_the_end_of_its_type_is_none_and_closes_nothing(dtype: Any, day: int, most: int) -> None:
    far = [most, -most - 1, most - 1, 30_000_000 * day, -30_000_000 * day]
    near = [day, 20_000_000 * day, 2 * day]
    times = pl.Series(far[:3] + near + far[3:], dtype=pl.Int32 if dtype == pl.Date else pl.Int64).cast(dtype)
    source = stream("rows", time="ts")
    for window in (ms.tumbling("1h"), ms.sliding("1h"), ms.session("1h"), ms.calendar("1d", time_zone="UTC")):
        flow = source.window(window).agg(n=pl.len())
        assert flow.over(pl.DataFrame({"ts": times}))["n"].to_list() == [1, 1]
        # The last of those that are near comes late, as any would.
        assert flow.late_over(pl.DataFrame({"ts": times})).height == len(far) + 1


@pytest.mark.parametrize("text", [False, True])
def test_late_rows_are_what_they_are_wherever_a_batch_ends(text: bool) -> None:
    ones, others = (stream(name, time="ts") for name in ("ones", "others"))
    if text:
        others = others.with_columns(v=pl.col("v").cast(pl.String), more=1)
    counts = [each.group_by("user").window(tumbling("1m")).agg(n=pl.len()) for each in (ones, others)]
    flow = counts[0].join(counts[1], on="user", back="0s", prefix="other_").late_to("left").to("out", type="LeftOut")
    told = []
    for size in (1, 2, 3, 100):
        with ms.open() as log:
            for second in (100, 10, 20, 200, 30):
                for name in ("others", "ones"):
                    rows = pl.DataFrame({"user": [1], "v": [second], "ts": [START + timedelta(seconds=second)]})
                    log.append(name, rows, type="LeftOver")
            worker = Worker(log, flow, rows=size, commit_every=0)
            while worker.advance(log.head):
                pass
            worker.flush()
            worker.close()
            told.append([event.data for event in log.read("left")])
    assert [row["v"] for row in told[0]] == (["10", 10, "20", 20, "30", 30] if text else [10, 10, 20, 20, 30, 30])
    assert all(rows == told[0] for rows in told)


def test_rows_without_a_time_are_left_out_in_the_order_of_the_log_among_late_ones() -> None:
    flow = stream("s", time="ts").latest("user").group_by("user").window(tumbling("1m")).agg(n=pl.len())
    rows = seconds(100, 20, None, 30, None, 140, 50).with_columns(user=pl.int_range(pl.len()) % 5)
    assert flow.late_over(rows)["user"].to_list() == [1, 2, 3, 4, 1]
