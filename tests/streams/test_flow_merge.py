from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from referee import agree, clicks
from trees import in_time, play_tree, played

import millstream as ms
from millstream.streams import Flow, FlowError, hopping, run, sliding, stream, tumbling
from millstream.streams.replay import replay
from millstream.streams.runner import Worker

web = stream("web", time="ts", lateness="2s")
app = stream("app", time="ts", lateness="5s")

COUNTED = """
    select user, time_bucket(interval '5 minute', ts) as window_start,
           window_start + interval '5 minute' as window_end, count(*) as n, sum(amount)::bigint as total
    from ({rows}) group by 1, 2
"""


def two(seed: int, count: int = 800) -> dict[str, pl.DataFrame]:
    return in_time(seed, "ts", web=clicks(seed, count), app=clicks(seed + 1, count // 2, late=5))


@pytest.mark.parametrize("seed", range(4))
def test_windows_over_merged_streams_hold_what_sql_says(seed: int) -> None:
    rows = two(seed)
    flow = web.merge(app).group_by("user").window(tumbling("5m")).agg(n=pl.len(), total=pl.col("amount").sum())
    result = play_tree(flow, rows, seed)
    agree(result, COUNTED.format(rows="select * from web union all select * from app"), **rows)
    assert_frame_equal(result, play_tree(flow, rows))


def test_merged_rows_stay_in_the_order_of_the_log() -> None:
    rows = two(3)
    flow = web.merge(app).filter(pl.col("kind") == "click").with_columns(at="_position")
    for seed in (None, 1, 2):
        assert play_tree(flow, rows, seed)["at"].is_sorted()
    both = pl.concat(rows.values()).filter(pl.col("kind") == "click").sort("_position")
    assert play_tree(flow, rows, 1)["at"].to_list() == both["_position"].to_list()


def by_hand(rows: dict[str, pl.DataFrame]) -> list[int]:
    """The positions of late rows, by definition: row by row, with the least of both watermarks before it."""
    lateness = {"web": timedelta(seconds=2), "app": timedelta(seconds=5)}
    high: dict[str, object] = {}
    late = []
    log = sorted((row["_position"], name, row["ts"]) for name, frame in rows.items() for row in frame.to_dicts())
    for position, name, ts in log:
        marks = [high[each] - lateness[each] for each in lateness if each in high]  # type: ignore[operator]
        if ts is None or (len(marks) == 2 and ts < min(marks)):
            late.append(position)
        if ts is not None:
            high[name] = max(high.get(name, ts), ts)  # type: ignore[type-var]
    return late


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_a_row_is_late_by_the_least_watermark_of_all_sources_at_its_position(seed: int) -> None:
    rows = in_time(seed, "ts", web=clicks(seed, 200, late=30), app=clicks(seed + 1, 100, late=30))
    rows["web"] = rows["web"].with_columns(
        ts=pl.when(pl.int_range(pl.len()) % 37 == 5).then(None).otherwise(pl.col("ts"))
    )
    rows = {name: frame.with_columns(place=pl.col("_position")) for name, frame in rows.items()}
    flow = web.merge(app).group_by("user").window(tumbling("5m")).agg(n=pl.len()).late_to("late")
    _, late = played(flow, rows, seed)
    expected = by_hand(rows)
    assert late["place"].to_list() == expected if expected else not late.height
    assert played(flow, rows)[1].equals(late)


def test_a_source_that_was_silent_so_far_holds_the_windows_open() -> None:
    rows = two(5)
    flow = web.merge(app).window(tumbling("5m")).agg(n=pl.len())
    rows["app"] = rows["app"].with_columns(pl.col("_position") + 10_000)
    pipeline_rows = {"web": rows["web"], "app": rows["app"].head(1)}
    assert not play_tree(flow, pipeline_rows, final=False).height
    assert play_tree(flow, rows, 1, final=False).equals(play_tree(flow, rows, final=False))


@pytest.mark.parametrize("seed", range(3))
def test_flows_that_have_left_the_order_of_the_log_merge_in_order_of_time(seed: int) -> None:
    rows = two(seed)
    counts = web.group_by("user").window(tumbling("1m")).agg(n=pl.len())
    totals = app.group_by("user").window(hopping("5m", every="1m")).agg(n=pl.col("amount").sum() / 2)
    flow = counts.merge(totals)
    whole = play_tree(flow, rows)
    assert play_tree(flow, rows, seed).equals(whole)
    assert whole["window_end"].is_sorted()
    assert whole.schema["n"] == pl.Float64
    alone = [play_tree(each, {name: rows[name]}) for each, name in ((counts, "web"), (totals, "app"))]
    assert whole.height == sum(each.height for each in alone)


@pytest.mark.parametrize("seed", range(3))
def test_plain_rows_merge_with_windows_and_sliding_answers(seed: int) -> None:
    rows = two(seed)
    trailing = web.group_by("user").window(sliding("1m")).agg(n=pl.len())
    flow = app.merge(trailing).group_by("user").window(tumbling("10m")).agg(rows=pl.len(), most=pl.col("n").max())
    whole = play_tree(flow, rows)
    assert play_tree(flow, rows, seed).equals(whole)
    assert whole["rows"].sum() == rows["web"].height + rows["app"].height


def test_a_split_flow_merges_to_what_it_was() -> None:
    rows = {"web": two(1)["web"]}
    big, small = web.split(pl.col("amount") > 50)
    assert play_tree(big.merge(small), rows, 1).equals(play_tree(web, rows))
    assert play_tree(small, rows).height + play_tree(big, rows).height == rows["web"].height


def test_a_stream_of_its_own_category_is_merged_from_a_log_once_each() -> None:
    with ms.open() as log:
        for n, name in enumerate(["web", "app", "web", "other"]):
            log.append(name, clicks(n, 100), type="Click")
        flow = web.merge(app).select("user", "ts").to("both", type="Both")
        run(log, flow, until="head")
        assert log.scan("both").collect().height == 300


def test_columns_that_come_and_widen_in_one_source_change_the_rows_of_all() -> None:
    steps = [
        ("web", [{"kind": "a", "n": 1, "ts": "2024-01-15T12:00:00Z"}]),
        ("app", [{"kind": "a", "n": 1.5, "ts": "2024-01-15T12:00:05Z"}, {"kind": "b", "ts": "2024-01-15T12:00:06Z"}]),
        ("web", [{"kind": "a", "n": 2, "x": 1, "ts": "2024-01-15T12:00:07Z"}]),
        ("app", [{"kind": "a", "n": "?", "ts": "2024-01-15T12:00:09Z"}]),
        ("web", [{"kind": "a", "n": 3, "ts": "2024-01-15T12:03:00Z"}]),
        ("app", [{"kind": "a", "n": "!", "ts": "2024-01-15T12:04:00Z"}]),
    ]
    flow = web.merge(app).select("kind", "n", "ts").to("out", type="Out")
    windowed = web.merge(app).group_by("kind").window(tumbling("1m")).agg(most=pl.col("n").max()).to("max", type="M")
    with ms.open() as whole, ms.open() as steps_log:
        for log in (whole, steps_log):
            for name, rows in steps:
                log.append(name, [ms.Plain("Row", row) for row in rows])
                if log is steps_log:
                    run(log, flow, windowed, until="head")
        run(whole, flow, windowed, until="head")
        for name in ("out", "max"):
            given = [[(e.type, e.data) for e in log.read(name)] for log in (whole, steps_log)]
            assert given[0] == given[1]
            assert given[0]


def test_a_flow_of_several_sources_goes_on_after_a_restart(home: str | None) -> None:
    flow = web.merge(app).group_by("user").window(tumbling("5m")).agg(n=pl.len()).late_to("late").to("n", type="N")
    one, other = clicks(1, 400, late=20), clicks(2, 400, late=20)
    with ms.open(home) as log:
        for start in range(0, 400, 50):
            log.append("web", one.slice(start, 50), type="Click")
            log.append("app", other.slice(start, 50), type="Click")
            worker = Worker(log, flow, rows=30, commit_every=0)
            while worker.advance(log.head):
                pass
        assert_frame_equal(log.scan("n").collect(), flow.over(log, final=False))
        assert worker.state.late == log.scan("late").collect().height > 0


def test_a_column_that_no_source_has_is_named() -> None:
    flow = web.merge(app).group_by("nobody").window(tumbling("1m")).agg(n=pl.len())
    with ms.open() as log:
        log.append("web", clicks(1, 10), type="Click")
        log.append("app", clicks(1, 10), type="Click")
        with pytest.raises(ms.MissingColumn, match="'nobody'"):
            flow.over(log)


def test_a_column_that_only_a_source_without_rows_could_bring_is_null_until_it_does_or_has_come_without() -> None:
    flow = web.merge(app).filter(pl.col("beta").fill_null(False).not_()).select("user", "beta")
    with ms.open() as log:
        log.append("web", clicks(1, 10), type="Click")
        assert flow.over(log)["beta"].to_list() == [None] * 10
        assert flow.schema(log) == {"user": pl.Int64, "beta": pl.Null}
        ended = flow.to("o", type="O")
        run(log, ended, until="head")
        assert log.scan("o").collect().height == 10
        log.append("app", clicks(2, 5).with_columns(beta=pl.Series([True, False, None, True, False])), type="Click")
        run(log, ended, until="head")
        assert log.scan("o").collect()["beta"].to_list() == [None] * 10 + [False, None, False]
        assert flow.over(log).schema == flow.schema(log) == {"user": pl.Int64, "beta": pl.Boolean}
    with ms.open() as log:
        log.append("web", clicks(1, 10), type="Click")
        run(log, ended, until="head")
        log.append("app", clicks(2, 5), type="Click")
        with pytest.raises(ms.MissingColumn, match="'beta'"):
            run(log, ended, until="head")


def test_a_verb_that_needs_a_type_waits_for_none_where_a_source_has_had_no_row() -> None:
    def longer(flow: Flow) -> Flow:
        return flow.filter(pl.col("kind").str.starts_with("c")).with_columns(long=pl.col("kind").str.len_chars())

    short = longer(app).select("user", "ts", said=pl.col("kind").str.to_uppercase())
    flows = {
        "merged": longer(web).merge(longer(app)).select("user", "long"),
        "joined": longer(web).join(short, on="user", back="1h", how="left").select("user", "long", "said"),
        "as of": longer(web)
        .join_asof(short, on="user", how="left", delete=pl.col("said").str.starts_with("P"))
        .select("user", "long", "said"),
        "told": longer(web).join_latest(short.select("user", "said"), on="user").select("user", "long", "said"),
    }
    for name, flow in flows.items():
        with ms.open() as log:
            log.append("web", clicks(1, 60), type="Click")
            before = flow.over(log)
            assert before["long"].unique().to_list() == [5]
            assert before.schema == flow.schema(log)
            ended = flow.to("o", type="O")
            run(log, ended, until="head")
            log.append("app", clicks(2, 60), type="Click")
            run(log, ended, until="head")
            after = flow.over(log, final=False)
            given = log.scan("o").collect()
            assert given.select(after.columns).equals(after), name
            assert after.schema.get("said", pl.String) == pl.String


LONG = pl.col("kind").str.len_chars()
TYPED: dict[str, Flow] = {
    "agg": app.group_by("user").window(tumbling("1m")).agg(n=LONG.sum()),
    "sliding": app.group_by("user").window(sliding("1m")).agg(n=LONG.sum()).select("user", "n"),
    "match": app.group_by("user").match("x y", within="1m", define={"x": LONG > 5, "y": LONG < 6}),
    "alert": app.distinct("user", within="1s").alert(LONG > 5, on="enter").select("user", "kind"),
}


@pytest.mark.parametrize("meet", ["merged", "joined"])
@pytest.mark.parametrize("name", TYPED)
def test_an_operator_that_needs_a_type_waits_for_none_where_a_source_has_had_no_row(name: str, meet: str) -> None:
    typed = TYPED[name]
    flow = web.merge(typed) if meet == "merged" else web.join(typed, on="user", back="2m", how="left", prefix="a_")
    counted = flow.group_by("user").window(tumbling("5m")).agg(rows=pl.len()).to("n", type="N")
    with ms.open() as log:
        log.append("web", clicks(1, 200), type="Click")
        before = flow.over(log)
        assert before.height == 200
        assert set(flow.schema(log)) >= set(before.columns)
        for part in range(6):
            worker = Worker(log, counted, rows=50, commit_every=0)
            for _ in range(3):
                worker.advance(log.head)
            worker.close()
            later = clicks(part, 200).with_columns(pl.col("ts") + timedelta(minutes=20 * part))
            log.append("app" if part % 2 else "web", later, type="Click")
        run(log, counted, until="head")
        whole = counted.over(log, final=False)
        assert log.scan("n").collect().select(whole.columns).equals(whole)
        for rows in (1, 40):
            assert replay(flow, log, rows=rows).equals(flow.over(log))


def test_the_columns_of_objects_are_in_the_order_in_which_they_come_whatever_the_hashes_of_their_names() -> None:
    names = [f"field{n}" for n in range(40)]
    with ms.open() as log:
        log.append("web", ms.Plain("Wide", {"ts": "2024-01-15T12:00:00Z", **dict.fromkeys(names, 1)}))
        assert web.over(log).columns == ["ts", *names]


def test_flows_that_have_ended_do_not_merge_and_none_reads_what_it_writes() -> None:
    with pytest.raises(FlowError, match="ended"):
        web.merge(app.to("x", type="X"))
    with pytest.raises(FlowError, match="read what it writes"):
        web.merge(app).to("app", type="X")
