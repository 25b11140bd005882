"""Python functions with state and timers per key."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import START, agree, clicks, play

import millstream as ms
from millstream.streams import Flow, FlowChanged, FlowError, MissingColumn, run, stream

source = stream("clicks", time="ts", lateness="2s")
GAP = timedelta(seconds=40) - timedelta(microseconds=1)


def seen(key: ms.KeyContext, row: dict[str, Any]) -> None:
    if key.held["rows"] == 0:
        key.held["first"] = key.time
    key.held = {**key.held, "rows": key.held["rows"] + 1, "total": key.held["total"] + row["amount"]}
    key.timer(after=GAP)


def silent(key: ms.KeyContext, timer: str) -> None:
    key.give(rows=key.held["rows"], total=key.held["total"], first=key.held["first"])
    key.forget()


def sessions(*keys: str, of: Flow = source, **options: Any) -> Flow:
    return of.group_by(*keys).process(
        seen,
        on_timer=silent,
        start={"rows": 0, "total": 0, "first": None},
        schema={"rows": pl.Int64, "total": pl.Int64, "first": pl.Datetime("us", "UTC")},
        gives={"rows": pl.Int64, "total": pl.Int64, "first": pl.Datetime("us", "UTC")},
        reads=["amount"],
        **options,
    )


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_sessions_by_a_timer_are_those_of_session_windows(seed: int, both: bool, texts: bool) -> None:
    rows = clicks(seed, 300, minutes=20, texts=texts)
    keys = ("user", "kind") if both else ("user",)
    result = play(sessions(*keys), rows, seed)
    windows = play(
        source.group_by(*keys).window(ms.session("40s")).agg(rows=pl.len(), total=pl.col("amount").sum()), rows
    )
    agree(
        result.select(*keys, "first", "time", "rows", "total"),
        f"""select {", ".join(keys)}, window_start as first, window_end - interval 1 microsecond as time,
            rows::bigint as rows, total from windows""",
        windows=windows,
    )
    assert result.equals(play(sessions(*keys), rows))
    assert result["time"].is_sorted()
    assert play(sessions(*keys, forget="1h"), rows, seed + 1).equals(result)


def script(rows: list[tuple[float, str]], flow: Flow, *, seed: int | None = None, final: bool = True) -> list[Any]:
    frame = pl.DataFrame(
        {"ts": [START + timedelta(seconds=at) for at, _ in rows], "what": [what for _, what in rows]},
    )
    made = play(flow, frame, seed, final=final)
    if not made.width:
        return []
    return [((at - START).total_seconds(), text) for at, text in made.select("time", "text").iter_rows()]


def by_word(function: Any, on_timer: Any = None, **options: Any) -> Flow:
    whole = stream("words", time="ts").with_columns(k=pl.lit(1)).group_by("k")
    return whole.process(function, on_timer=on_timer, gives={"text": pl.String}, **options)


def obey(key: ms.KeyContext, row: dict[str, Any]) -> None:
    verb, *rest = row["what"].split()
    if verb == "set":
        key.timer(START + timedelta(seconds=float(rest[1])), name=rest[0])
    elif verb == "cancel":
        key.cancel(rest[0])
    elif verb == "forget":
        key.forget()
    key.give(text=f"{row['what']}: {', '.join(sorted(key.timers))}")


def told(key: ms.KeyContext, timer: str) -> None:
    key.give(text=f"rang {timer}")


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_timers_ring_in_order_of_time_after_the_rows_of_their_moment(seed: int | None) -> None:
    flow = by_word(obey, told)
    rows = [
        (0.0, "set b 5"),
        (1.0, "set a 5"),
        (2.0, "set c 9"),
        (3.0, "set c 6"),
        (5.0, "row of the moment"),
        (7.0, "set past 1"),
        (8.0, "set d 20"),
        (9.0, "cancel d"),
        (10.0, "set e 11"),
        (10.5, "forget"),
        (30.0, "end"),
    ]
    assert script(rows, flow, seed=seed) == [
        (0.0, "set b 5: b"),
        (1.0, "set a 5: a, b"),
        (2.0, "set c 9: a, b, c"),
        (3.0, "set c 6: a, b, c"),
        (5.0, "row of the moment: a, b, c"),
        (5.0, "rang a"),
        (5.0, "rang b"),
        (6.0, "rang c"),
        (7.0, "set past 1: past"),
        (7.0, "rang past"),
        (8.0, "set d 20: d"),
        (9.0, "cancel d: "),
        (10.0, "set e 11: e"),
        (10.5, "forget: e"),
        (30.0, "end: "),
    ]


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_timer_may_set_the_next_and_the_end_of_a_replay_is_an_end(seed: int | None) -> None:
    def begin(key: ms.KeyContext, row: dict[str, Any]) -> None:
        key.timer(after="10s")

    def again(key: ms.KeyContext, timer: str) -> None:
        key.held["n"] += 1
        key.give(text=str(key.held["n"]))
        key.timer(after="10s")

    flow = by_word(begin, again, start={"n": 0}, schema={"n": pl.Int64})
    rows = [(0.0, "x"), (25.0, "x"), (36.0, "x")]
    assert script(rows, flow, seed=seed, final=False) == [(10.0, "1"), (20.0, "2"), (35.0, "3")]
    assert script(rows, flow, seed=seed) == [(10.0, "1"), (20.0, "2"), (35.0, "3"), (46.0, "4")]


def test_a_key_is_forgotten_after_a_time_without_rows_and_timers() -> None:
    def count(key: ms.KeyContext, row: dict[str, Any]) -> None:
        key.held["n"] += 1
        if row["what"] == "timer":
            key.timer(after="1m")
        key.give(text=str(key.held["n"]))

    flow = by_word(count, told, start={"n": 0}, schema={"n": pl.Int64}, forget="10s")
    rows = [(0.0, "x"), (9.9, "x"), (19.9, "timer"), (60.0, "x"), (89.8, "x"), (99.9, "x")]
    for seed in (None, 1, 2, 3):
        made = script(rows, flow, seed=seed)
        assert [text for _, text in made] == ["1", "2", "1", "2", "rang ", "3", "1"]


def test_timers_ring_in_a_run_that_was_stopped_in_between_and_by_an_idle_source() -> None:
    now = START
    with ms.open(clock=lambda: now) as log:
        flow = sessions("user", of=stream("clicks", time="ts", idle="1m"))
        flow = flow.to("silences", type="TimerSilence")
        for minutes, users in ((0, [1, 2]), (0.5, [1]), (1, [3])):
            now = START + timedelta(minutes=minutes)
            log.append(
                "clicks", pl.DataFrame({"user": users, "ts": [now] * len(users), "amount": 1}), type="TimerClick"
            )
            run(log, flow, until="head")
        got = [(event.data["user"], event.data["rows"]) for event in log.read("silences")]
        assert got == [(2, 1)]
        now = START + timedelta(minutes=5)
        with ms.Running(log, flow):
            deadline = datetime.now() + timedelta(seconds=20)
            while log.head and len(list(log.read("silences"))) < 3 and datetime.now() < deadline:
                now += timedelta(minutes=1)
        got = [(event.data["user"], event.data["rows"]) for event in log.read("silences")]
        assert got == [(2, 1), (1, 2), (3, 1)]
        changed = sessions("user", of=source, forget="1d").to("silences", type="TimerSilence")
        with pytest.raises(FlowChanged):
            run(log, changed, until="head")


def test_keys_that_were_forgotten_leave_the_state() -> None:
    pipeline_rows = pl.DataFrame(
        {"user": list(range(2_000)), "ts": [START + timedelta(seconds=n) for n in range(2_000)], "amount": 1}
    )
    with ms.open() as log:
        flow = sessions("user").to("out", type="TimerOut")
        for part in pipeline_rows.iter_slices(50):
            log.append("clicks", part, type="TimerMany")
            run(log, flow, until="head")
        running = ms.Running(log, flow)
        running.run(until="head")
        [progress] = running.progress().values()
        # The rows of the last 42 seconds wait or are open; of those that were forgotten few remain.
        assert sum(progress.held) < 1_000
        assert Counter(event.data["rows"] for event in log.read("out")) == {1: 1_958}


def test_what_makes_a_row_of_a_timer_is_told() -> None:
    with ms.open() as log:
        rows = clicks(3, 60, users=3, minutes=10)
        log.append("clicks", rows, type="TimerExplained")
        flow = sessions("user")
        last = flow.over(log).row(-1, named=True)
        behind = flow.explain(log, last)
        mine = rows.with_row_index("_position", offset=1).filter(
            pl.col("user").eq_missing(last["user"]) & (pl.col("ts") <= last["time"])
        )
        assert behind.positions == mine["_position"].to_list()
        with pytest.raises(ms.CannotCheck, match="process"):
            flow.check(log)
        assert "process" in flow.graph()


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_call_that_fails_gives_its_reason_and_leaves_what_is_held(seed: int | None) -> None:
    def count(key: ms.KeyContext, row: dict[str, Any]) -> None:
        key.held["seen"].append(row["what"])
        key.timer(after="10s")
        if row["what"] == "bad":
            key.timer(after="1s")
            key.forget()
            raise ValueError("bad row")
        key.give(text=str(len(key.held["seen"])))

    def ring(key: ms.KeyContext, timer: str) -> None:
        key.held["seen"].clear()
        raise KeyError("no")

    options = {"start": {"seen": []}, "schema": {"seen": pl.List(pl.String)}, "errors": "problem"}
    whole = stream("words", time="ts").with_columns(k=pl.lit(1)).group_by("k")
    flow = whole.process(count, on_timer=ring, gives={"text": pl.String}, **options)  # type: ignore[arg-type]
    ts = [START + timedelta(seconds=n) for n in (0, 5, 12, 60)]
    found = play(flow, pl.DataFrame({"ts": ts, "what": ["a", "bad", "b", "c"]}), seed)
    # The timer of the first row, which the second did not move, rings at 10, and does not empty what is held.
    assert found["text"].to_list() == ["1", None, None, "2", None, "3", None]
    assert [(at - START).total_seconds() for at in found["time"]] == [0, 5, 10, 12, 22, 60, 70]
    reasons = [problem.strip().splitlines()[-1] if problem else None for problem in found["problem"]]
    assert reasons == [None, "ValueError: bad row", "KeyError: 'no'", None, "KeyError: 'no'", None, "KeyError: 'no'"]


def test_what_fails_names_the_row_or_the_timer() -> None:
    rows = [(0.0, "set a 5"), (9.0, "x")]

    def raises(*given: Any) -> None:
        raise RuntimeError("no")

    with pytest.raises(FlowError, match=r"row at position 1 \(RuntimeError: no\)"):
        script(rows, by_word(raises))
    with pytest.raises(FlowError, match=r"timer .a. of .* \(RuntimeError: no\)"):
        script(rows, by_word(obey, raises))
    with pytest.raises(FlowError, match="on_timer="):
        script(rows, by_word(obey))
    with pytest.raises(FlowError, match="no later time"):
        script(rows, by_word(obey, lambda key, timer: key.timer(after="0s", name="b")))
    with pytest.raises(FlowError, match="names no 'other'"):
        script(rows, by_word(lambda key, row: key.give(other=1)))
    with pytest.raises(FlowError, match=r"position 1 \(TypeError: 1 is no str\)"):
        script(rows, by_word(lambda key, row: key.give(text=1)))
    with pytest.raises(FlowError, match="position 1"):
        script(rows, by_word(lambda key, row: key.held.clear(), start={"n": 0}, schema={"n": pl.Int64}))
    with pytest.raises(FlowError, match="names no 'm'"):
        script(rows, by_word(lambda key, row: key.held.update(m=1), start={"n": 0}, schema={"n": pl.Int64}))
    with pytest.raises(FlowError, match="at= or after="):
        script(rows, by_word(lambda key, row: key.timer(), told))
    with pytest.raises(ms.InvalidTime, match="time zone"):
        script(rows, by_word(lambda key, row: key.timer(datetime(2024, 1, 1)), told))
    with pytest.raises(FlowError, match="9999"):
        script(rows, by_word(lambda key, row: key.timer(after="9000000d"), told))
    with pytest.raises(MissingColumn, match="'nothing'"):
        script(rows, by_word(obey, told, reads=["nothing"]))
    with pytest.raises(ms.UsageError, match="gives no column"):
        source.group_by("user").process(obey, gives={})
    with pytest.raises(ms.UsageError, match="no function"):
        source.group_by("user").process(3, gives={"x": pl.Int64})  # type: ignore[arg-type]
    with pytest.raises(ms.UsageError, match="two output columns"):
        source.group_by("user").process(obey, gives={"time": pl.Int64})
    with pytest.raises(ms.UsageError, match="different columns"):
        source.group_by("user").process(obey, gives={"x": pl.Int64}, start={"x": 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": {"__gone": 1}, "schema": {"__gone": pl.Int64}}, "'__gone'"),
        ({"start": {"__timers": 1}, "schema": {"__timers": pl.Int64}}, "'__timers'"),
        ({"start": {"n": 1}, "schema": {"n": None}}, "'n' no type"),
        ({"start": {"n": 1}, "schema": {"n": "text"}}, "'n' no type"),
        ({"start": {"n": []}, "schema": {"n": pl.List}}, "'n' no type"),
        ({"start": {3: 1}, "schema": {3: pl.Int64}}, "names a column 3"),
        ({"gives": {"text": None}}, "'text' no type"),
        ({"gives": {"_position": pl.Int64}}, "'_position'"),
        ({"gives": ["text"]}, "gives="),
    ],
)
def test_a_column_that_cannot_be_held_or_given_is_refused_when_the_flow_is_made(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ms.UsageError, FlowError), match=message):
        source.group_by("user").process(obey, **{"gives": {"text": pl.String}, **options})
