"""Flows that wait, are kept, are looked at as they were, are told compatible or not, and are forked."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from referee import START, clicks
from test_explain import ALL
from test_flow_check import filled

import millstream as ms
from millstream.errors import ConsumerFenced, NotFound, UsageError
from millstream.log.log import Log
from millstream.streams import Flow, FlowChanged, FlowError, Running, run, sliding, stream, tumbling
from millstream.streams.compatible import _comparable
from millstream.streams.describing import coded
from millstream.streams.runner import Worker
from millstream.streams.savepoints import flows_of
from millstream.testing import FakeClock

source = stream("a", time="ts", lateness="5s")
amount = pl.col("amount")


def counts(least: int = -100, size: str = "1m", name: str | None = None) -> Flow:
    """Counts of the greater amounts in each minute; a flow to be changed."""
    rows = source.filter(amount >= least).group_by("user").window(tumbling(size))
    return rows.agg(n=pl.len(), total=amount.sum()).to("counts", type="OperatedCount", name=name)


def rows_of(log: Log, name: str) -> pl.DataFrame:
    return log.scan(name).collect()


def append(log: Log, part: int) -> int:
    rows = clicks(part, 120, minutes=5).with_columns(pl.col("ts") + timedelta(minutes=5 * part))
    return log.append("a", rows, type="OperatedClick").position


# --- pause and resume -------------------------------------------------------------------------------------


def test_a_paused_flow_takes_in_nothing_and_goes_on_where_it_was(home: str | None) -> None:
    with ms.open(home) as log:
        append(log, 0)
        with Running(log, counts(), counts(50, name="other")) as running:
            assert running.wait(log.head, timeout=20)
            assert running.pause("other")
            before = running.progress()["other"].position
            last = append(log, 1)
            assert not running.wait(last, timeout=0.3)
            found = running.progress()
            assert (found["other"].position, found["other"].paused) == (before, True)
            assert found["counts/OperatedCount"].position >= last
            assert running.resume()
            assert running.wait(last, timeout=20)
        with pytest.raises(UsageError, match="no flow 'nobody'"):
            running.pause("nobody")
        assert_frame_equal(_sorted(rows_of(log, "counts")), _sorted(_both(log)), check_dtypes=False)


def _both(log: Log) -> pl.DataFrame:
    return pl.concat([counts().over(log, final=False), counts(50).over(log, final=False)])


def _sorted(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.sort(rows.columns)


def test_a_pause_is_noted_in_the_log_and_holds_after_a_restart(shared_home: str) -> None:
    flow = counts()
    with ms.open(shared_home) as log:
        append(log, 0)
        run(log, flow, until="head")
        written = rows_of(log, "counts").height
        flow.pause(log)
        append(log, 1)
    with ms.open(shared_home) as log, ms.open(shared_home) as elsewhere:
        run(log, flow, until="head")
        assert rows_of(log, "counts").height == written
        with Running(log, flow) as running:
            flow.resume(elsewhere)
            assert running.wait(log.head, timeout=20)
        assert rows_of(log, "counts").height > written
        assert flow.check(log).equal


# --- savepoints and the past ------------------------------------------------------------------------------


def test_a_flow_of_the_same_shape_starts_from_a_savepoint_as_if_it_had_been_there_before(home: str | None) -> None:
    flow = counts()
    with ms.open(home) as log:
        append(log, 0)
        run(log, flow, until="head")
        saved = flow.savepoint(log, "first")
        before = rows_of(log, "counts").height
        append(log, 1)
        run(log, flow, until="head")
        flow.savepoint(log, "second")
        assert [each.label for each in flow.savepoints(log)] == ["first", "second"]
        assert saved == flow.savepoints(log)[0]
        other = (
            source.filter(amount >= -100).group_by("user").window(tumbling("1m")).agg(n=pl.len(), total=amount.sum())
            .to("copy", type="OperatedCopy")
        )  # fmt: skip
        other.start_from(log, saved)
        run(log, other, until="head")
        assert_frame_equal(rows_of(log, "copy"), rows_of(log, "counts").slice(before))
        with pytest.raises(FlowError, match="has been run already"):
            other.start_from(log, saved)
        with pytest.raises(FlowChanged):
            counts(size="2m", name="wider").start_from(log, saved)
        flow.drop_savepoint(log, "first")
        with pytest.raises(NotFound, match="no savepoint 'first'"):
            flow.drop_savepoint(log, "first")
        with pytest.raises(UsageError, match="has a savepoint 'second'"):
            flow.savepoint(log, "second")
        with pytest.raises(FlowError, match="has not been run"):
            counts(name="never").savepoint(log, "x")


@pytest.mark.parametrize("name", ["hopping", "session", "sliding", "full", "as of", "absence", "distinct", "fold"])
def test_what_is_open_and_what_was_given_are_together_what_the_past_gives(name: str) -> None:
    flow = ALL[name]
    with filled(4, 160) as log:
        given, whole = flow.over(log, final=False), flow.over(log)
        still = flow.at(log)
        assert given.height + still.height == whole.height
        if still.height:
            assert_frame_equal(still, whole.tail(still.height), check_dtypes=False, rel_tol=1e-12)


def test_the_past_is_played_from_the_nearest_savepoint_and_is_the_same_as_from_the_beginning() -> None:
    clock = FakeClock(START)
    flow = counts()
    with ms.open(clock=clock) as log:
        moments = []
        for part in range(4):
            append(log, part)
            clock.advance("1h")
            moments.append(log.now())
            run(log, flow, until="head")
            if part in (1, 2):
                flow.savepoint(log, f"after {part}")
            clock.advance("1h")
        fresh = counts(name="never run")
        for moment in moments:
            assert_frame_equal(flow.at(log, moment), fresh.at(log, moment))
            assert flow.at(log, moment).height
        assert_frame_equal(flow.at(log), fresh.at(log))
        assert flow.at(log, START).height == 0


# --- changed flows ----------------------------------------------------------------------------------------


def test_a_changed_flow_is_told_whether_it_can_go_on_and_what_has_changed() -> None:
    with ms.open() as log:
        append(log, 0)
        assert not counts().compatible(log).found
        run(log, counts(), until="head")
        same = counts().compatible(log)
        assert (same.goes_on, same.changes) == (True, ())
        condition = counts(50).compatible(log)
        assert condition.goes_on
        assert condition.changes == ("- filter: amount >= -100", "+ filter: amount >= 50")
        size = counts(size="2m").compatible(log)
        assert not size.goes_on
        assert [line[:14] for line in size.changes] == ["- tumbling 1m:", "+ tumbling 2m:"]
        assert "cannot go on" in str(size)


def test_what_columns_and_measures_are_computed_by_and_where_rows_go_is_told() -> None:
    def flow(factor: int = 2, least: int = 50, measured: str = "max", type: str = "OperatedMatch") -> Flow:
        rows = source.with_columns(double=amount * factor).group_by("user")
        measures = {"top": getattr(ms.matched, measured)("b.amount")}
        define = {"a": amount > least, "b": pl.col("double") < 60}
        return rows.match("a b+", within="1m", define=define, measures=measures).to("m", type=type, name="m")

    with ms.open() as log:
        append(log, 0)
        run(log, flow(), until="head")
        assert flow().compatible(log).changes == ()
        for changed, said in (
            (flow(factor=3), "* 3"),
            (flow(least=40), "amount > 40"),
            (flow(measured="min"), "min"),
            (flow(type="OperatedOther"), "to m: OperatedOther"),
        ):
            found = changed.compatible(log)
            assert found.goes_on
            assert [line[0] for line in found.changes] == ["-", "+"]
            assert said in found.changes[1]
        with pytest.raises(FlowError, match="cannot be compared"):
            flow(type="OperatedOther").fork(log)


FUNCTIONS = """
from dataclasses import dataclass
from functools import partial
import polars as pl
import millstream as ms

LIMITS = {LIMITS}

def within(limits):
    # A comment may be another.
    def row(row, most=9):
        return min(row["amount"] {SIGN} 1, most, limits["most"]) if row["kind"] in {{"a", "b"}} else 0
    return row

@dataclass
class Rule:
    least: int
    def batch(self, frame):
        return frame.select(b=pl.col("amount") {SIGN} self.least)

def hold(held, row, step=1):
    return held["n"] + step

def seen(key, row):
    key.timer(after="1m")

def rang(key, timer):
    key.give(text=str({TEXT}))

source = ms.stream("a", time="ts")
mapped = (source.map_rows(within(LIMITS), schema={{"a": pl.Int64}})
          .map_batches(Rule({LEAST}).batch, schema={{"b": pl.Int64}}).to("o", type="OperatedMapped", name="mapped"))
held = (source.group_by("user").fold(partial(hold, step={STEP}), start={{"n": {FIRST}}}, schema={{"n": pl.Int64}})
        .to("o", type="OperatedHeld", name="held"))
timed = (source.group_by("user").process(seen, on_timer=rang, gives={{"text": pl.String}})
         .to("o", type="OperatedTimed", name="timed"))
"""
SAME = {"LIMITS": '{"most": 5}', "SIGN": "+", "TEXT": 1, "LEAST": 2, "STEP": 1, "FIRST": 0}


def functions(**changed: object) -> dict[str, Flow]:
    """Flows whose functions are compiled anew."""
    names: dict[str, Any] = {}
    exec(FUNCTIONS.format(**{**SAME, **changed}), names)
    return {name: names[name] for name in ("mapped", "held", "timed")}


def test_a_python_function_that_has_changed_is_told_and_one_that_was_loaded_anew_is_not(shared_home: str) -> None:
    with ms.open(shared_home) as log:
        append(log, 0)
        run(log, *functions().values(), until="head")
        for name, flow in functions().items():
            assert flow.compatible(log).changes == (), name
        for changed, name in (
            ({"LIMITS": '{"most": 6}'}, "mapped"),
            ({"SIGN": "-"}, "mapped"),
            ({"LEAST": 3}, "mapped"),
            ({"STEP": 2}, "held"),
            ({"FIRST": 1}, "held"),
            ({"TEXT": 2}, "timed"),
        ):
            found = functions(**changed)[name].compatible(log)
            assert found.goes_on
            assert {line[0] for line in found.changes} == {"-", "+"}, changed
    told = (
        "import sys, millstream as ms; sys.path.insert(0, sys.argv[2]); import test_operating as t\n"
        "with ms.open(sys.argv[1]) as log:\n"
        "    print([flow.compatible(log).changes for flow in t.functions().values()])"
    )
    # Texts have other hashes there, so that sets of them are in another order.
    done = subprocess.run(
        [sys.executable, "-c", told, shared_home, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "[(), (), ()]\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_flow_that_asks_for_more_than_the_rows_it_holds_have_does_not_go_on(tmp_path: Path, processes: int) -> None:
    rows = source.filter(amount > 0).with_columns(twice=amount * 2).group_by("user").window(sliding("1m"))

    def flow(*columns: str) -> Flow:
        return rows.agg(n=pl.len()).select("user", "ts", "n", *columns).to("spans", type="OperatedSpan")

    with ms.open(tmp_path / "log.db") as log:
        append(log, 0)
        run(log, flow("amount"), until="head", processes=processes)
        assert flow().compatible(log).goes_on
        for more in ("kind", "twice"):
            found = flow("amount", more).compatible(log)
            assert not found.goes_on
            assert any(line.startswith("+   holds rows with") and f'"{more}"' in line for line in found.changes)
            with pytest.raises(FlowChanged, match=more):
                run(log, flow("amount", more), until="head", processes=processes)
        # With less than before it goes on; then what it has let go is not there any more.
        run(log, flow(), until="head", processes=processes)
        with pytest.raises(FlowChanged, match="amount"):
            run(log, flow("amount"), until="head", processes=processes)
        flow("kind").fork(log).switch()
        before = rows_of(log, "spans").height
        append(log, 1)
        run(log, flow("kind"), until="head", processes=processes)
        # Also those that waited for the watermark meanwhile.
        added = rows_of(log, "spans")[before:]
        assert added["ts"].min() < START + timedelta(minutes=5)
        assert added["kind"].null_count() == 0


def test_a_savepoint_whose_rows_lack_what_a_flow_asks_of_them_is_not_begun_with() -> None:
    rows = source.filter(amount > 0).group_by("user").window(sliding("1m"))

    def flow(*columns: str, name: str = "spans") -> Flow:
        return rows.agg(n=pl.len()).select("user", "ts", "n", *columns).to(name, type="OperatedSpan", name=name)

    with ms.open() as log:
        append(log, 0)
        run(log, flow("amount"), until="head")
        saved = flow("amount").savepoint(log, "here")
        # What the flow was when the savepoint was made counts, not what has become of it.
        flow("amount", "kind").fork(log).switch()
        with pytest.raises(FlowChanged, match="kind"):
            flow("amount", "kind", name="more").start_from(log, saved)
        flow("amount", name="same").start_from(log, saved)
        with pytest.raises(FlowChanged, match="kind"):
            run(log, flow("amount", "kind", name="same"), until="head")
        append(log, 1)
        run(log, flow("amount", name="same"), until="head")
        assert rows_of(log, "same")["amount"].null_count() == 0
        # Nor is the past played from there.
        whole = flow("amount", "kind").at(log)
        assert whole.height > 0
        assert whole["kind"].null_count() == 0
        flow("amount").drop_savepoint(log, "here")
        assert flow("amount").savepoint(log, "here").label == "here"


def test_rows_that_are_joined_have_what_is_asked_of_them() -> None:
    def flow(*columns: str) -> Flow:
        left, right = source.filter(amount > 0), stream("b", time="ts", lateness="5s")
        joined = left.join(right, on="user", back="1m", ahead="1m", prefix="b_")
        return joined.select("user", "ts", *columns).to("pairs", type="OperatedPair")

    with ms.open() as log:
        append(log, 0)
        log.append("b", clicks(1, 120, minutes=5), type="OperatedClick")
        run(log, flow("kind"), until="head")
        assert flow().compatible(log).goes_on
        assert not flow("kind", "b_amount").compatible(log).goes_on
        assert not flow("amount", "kind").compatible(log).goes_on


def test_functions_that_another_python_has_compiled_are_compared_by_name() -> None:
    before, now = ["map rows: f: n; code 3.1-0123456789ab", "to a: B"], [f"map rows: f: n; {coded(len)}", "to a: B"]
    assert _comparable(before, now) == (["map rows: f: n", "to a: B"],) * 2
    told = [f"map rows: f: n; {coded(repr)}", "to a: B"]
    assert _comparable(told, now) == (told, now)


@pytest.mark.parametrize("how", ["switch", "start_from"])
def test_a_flow_that_goes_on_with_the_state_of_another_is_checked_by_what_it_wrote_itself(how: str) -> None:
    with ms.open() as log:
        append(log, 0)
        run(log, counts(), until="head")
        if how == "switch":
            flow = counts(size="2m")
            flow.fork(log).switch()
        else:
            flow = counts(name="again")
            flow.start_from(log, counts().savepoint(log, "here"))
        append(log, 1)
        run(log, flow, until="head")
        found = flow.check(log)
        assert found.equal, str(found)
        assert 0 < found.rows < flow.over(log, final=False).height
        append(log, 2)
        run(log, flow, until="head")
        assert flow.check(log).equal


def test_a_fork_is_backfilled_compared_and_put_in_the_place_of_the_flow(home: str | None) -> None:
    old, new = counts(), counts(size="2m")
    with ms.open(home) as log:
        append(log, 0)
        running = Worker(log, old)
        _catch_up(running, log)
        fork = new.fork(log)
        assert fork.run() == running.position
        found = fork.compare()
        assert found.position == running.position
        assert (found.rows, found.forked) == (rows_of(log, "counts").height, rows_of(log, "fork-counts").height)
        assert found.only_after.height > 0
        append(log, 1)
        _catch_up(running, log)
        position = running.position
        before = rows_of(log, "counts")
        assert fork.switch() == position
        append(log, 2)
        with pytest.raises(ConsumerFenced):
            _catch_up(running, log)
        running.close()
        run(log, new, until="head")
        after = rows_of(log, "counts")
        assert_frame_equal(after.head(before.height), before)
        # What the fork gave up to the switch, and the flow after it, are what the changed flow gives of all.
        whole = pl.concat([rows_of(log, "fork-counts"), after.slice(before.height)])
        assert_frame_equal(whole, new.over(log, final=False))
        assert new.compatible(log).changes == ()
        with pytest.raises(FlowChanged):
            run(log, old, until="head")


def _catch_up(worker: Worker, log: Log) -> None:
    while worker.advance(log.head):
        pass
    worker.flush()


def test_a_fork_with_another_condition_names_the_rows_that_differ() -> None:
    with ms.open() as log:
        append(log, 0)
        old = source.filter(amount > 10).to("big", type="OperatedBig")
        run(log, old, until="head")
        fork = source.filter((amount > 20) | (amount < 0)).to("big", type="OperatedBig").fork(log, stream="tried")
        found = fork.compare()
        rows = rows_of(log, "a")
        assert found.only_before.height == rows.filter((amount > 10) & (amount <= 20)).height > 0
        assert found.only_after.height == rows.filter(amount < 0).height > 0
        assert found.same == rows.filter(amount > 20).height
        fork.drop()
        assert log.scan("tried").collect().height == found.forked
        run(log, old, until="head")


def test_what_was_never_run_or_would_write_to_its_own_stream_is_not_forked() -> None:
    with ms.open() as log:
        append(log, 0)
        with pytest.raises(FlowError, match="nothing to fork"):
            counts().fork(log)
        run(log, counts(), until="head")
        with pytest.raises(FlowError, match="cannot write to 'counts'"):
            counts(5).fork(log, stream="counts")
        with pytest.raises(FlowError, match="has no name"):
            source.fork(log)


@pytest.mark.parametrize("stream", ["files", "function"])
def test_a_flow_is_not_behind_by_what_it_wrote_to_a_stream_that_is_named_like_another_end(stream: str) -> None:
    with ms.open() as log:
        read = append(log, 0)
        run(log, source.to(stream, type="OperatedCopyOf"), until="head")
        [found] = flows_of(log)
        assert (found.position, found.behind) == (read, 0)


def test_a_flow_that_writes_to_files_is_behind_by_a_stream_of_that_name(tmp_path: Path) -> None:
    with ms.open() as log:
        append(log, 0)
        run(log, source.to_files(tmp_path / "a: b", format="csv", name="f"), until="head")
        run(log, source.to_function(len, name="g"), until="head")
        log.append("files", pl.DataFrame({"x": [1, 2]}), type="OperatedOther")
        log.append("function", pl.DataFrame({"x": [1, 2]}), type="OperatedOther")
        assert [found.behind for found in flows_of(log)] == [4, 4]


def test_a_flow_is_behind_by_nothing_that_it_has_written_itself(home: str | None) -> None:
    with ms.open(home) as log:
        flow = counts().late_to("late")
        for part in (0, 1, 0):
            read = append(log, part)
        run(log, flow, until="head")
        assert 0 < log.version("late") < log.head - read
        [found] = flows_of(log)
        assert (found.position, found.behind) == (read, 0)
        log.append("b", pl.DataFrame({"x": [1, 2]}), type="OperatedOther")
        read = append(log, 2)
        assert flows_of(log)[0].behind == 122
        run(log, counts(name="other").late_to("other-late"), until="head")
        found, other = flows_of(log)
        # The one writes to a stream of the other, who does not read it either; its late rows are other ones.
        assert (found.name, found.behind) == ("counts/OperatedCount", 122 + log.version("other-late"))
        assert (other.position, other.behind) == (read, 0)
