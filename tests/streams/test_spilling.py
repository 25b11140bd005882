"""State beyond a limit of memory, and in lanes: the same rows in the same order as from memory, in one piece."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killing import killed_until_done
from polars.testing import assert_frame_equal
from referee import clicks, play
from spilling_worker import FLOWS, OUTPUTS

import millstream as ms
from millstream.errors import UsageError
from millstream.streams import SpillFailed, closing, hopping, session, sliding, stream, tumbling
from millstream.streams import state as states
from millstream.streams.bodies import Body
from millstream.streams.rooms import Room
from millstream.streams.runner import Worker
from millstream.streams.spilling import Spill, size

WORKER = Path(__file__).with_name("spilling_worker.py")

source = stream("clicks", time="ts", lateness="2s")


@pytest.fixture
def few_in_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes from a few rows on."""
    monkeypatch.setattr(states, "FRESH", 24)
    monkeypatch.setattr(states, "FAN_IN", 3)
    monkeypatch.setattr(closing, "PIECE", 20)
    monkeypatch.setattr(closing, "BLOCK", 6)


def many(seed: int, count: int, *, minutes: float = 30, texts: bool = False) -> pl.DataFrame:
    """Clicks of many users, of whom some are null."""
    user = pl.when(pl.col("user").is_not_null()).then(pl.col("amount") + 50)
    if texts:
        user = pl.format("user-{}", user)
    return clicks(seed, count, minutes=minutes).with_columns(user.alias("user"))


def counted(held: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return {"seen": held["seen"] + 1, "path": f"{held['path']}{row['kind'][0]}"[-5:]}


def seen(key: ms.KeyContext, row: dict[str, Any]) -> None:
    key.held["count"] += 1
    if row["kind"] == "purchase":
        key.forget()
    else:
        key.timer(after="2m")


def rang(key: ms.KeyContext, timer: str) -> None:
    key.give(count=key.held["count"])


KEPT = {
    "tumbling": source.group_by("user", "kind").window(tumbling("5m")).agg(n=pl.len(), total=pl.col("amount").sum()),
    "hopping": source.group_by("user")
    .window(hopping("10m", every="1m"))
    .agg(n=pl.len(), first=pl.col("kind").first(), kinds=pl.col("kind").n_unique()),
    "calendar": source.group_by("user").window(ms.streams.calendar("1h", time_zone="Europe/Rome")).agg(n=pl.len()),
    "session": source.group_by("user", "kind").window(session("90s")).agg(n=pl.len(), low=pl.col("amount").min()),
    "sliding": source.group_by("user").window(sliding("5m")).agg(n=pl.len(), most=pl.col("amount").max()),
    "sliding by rows": source.group_by("user").window(sliding("5m")).agg(middle=pl.col("amount").median()),
    "distinct": source.distinct("user", "kind", within="1m"),
    "alert": source.group_by("user").window(tumbling("2m")).agg(n=pl.len()).alert(pl.col("n") > 1, cooldown="7m"),
    "enter": source.group_by("user").window(tumbling("2m")).agg(n=pl.len()).alert(pl.col("n") > 1, on="enter"),
    "process": source.group_by("user").process(
        seen, on_timer=rang, start={"count": 0}, schema={"count": pl.Int64}, gives={"count": pl.Int64}
    ),
    "fold": source.group_by("user", "kind").fold(
        counted, start={"seen": 0, "path": ""}, schema={"seen": pl.Int64, "path": pl.String}, forget="4m"
    ),
    "windows of windows": source.group_by("user", "kind")
    .window(tumbling("5m"))
    .agg(n=pl.len(), m=pl.col("amount").max())
    .with_columns(most=pl.col("m") + 1)
    .group_by("kind")
    .window(tumbling("10m"))
    .agg(n=pl.col("n").sum(), first=pl.col("most").first(), last=pl.col("user").last()),
    "bursts of windows": source.group_by("user", "kind")
    .window(tumbling("5m"))
    .agg(n=pl.len())
    .alert(pl.col("n") > 1, cooldown="11m")
    .filter(pl.col("user").is_not_null())
    .map_rows(lambda row: row["n"] * 2, schema={"twice": pl.Int64}),
    "top": source.group_by("user").window(tumbling("5m")).agg(n=pl.len()).top(3, by="n"),
    "early": source.group_by("user").window(tumbling("5m"), early="1m", allowed_lateness="5m").agg(n=pl.len()),
    "latest": source.latest("user", "kind"),
    "count": source.group_by("user").window(ms.streams.count(4)).agg(most=pl.col("amount").max()),
    "match": source.group_by("user").match(
        "click{2,} view?",
        within="9m",
        contiguity="relaxed",
        define={"click": pl.col("kind") == "click", "view": pl.col("kind") == "view"},
    ),
    "join": source.filter(pl.col("kind") == "purchase").join(
        source.filter(pl.col("kind") == "view"), on="user", back="2m", ahead="10s", how="left", prefix="seen_"
    ),
}


@pytest.mark.usefixtures("few_in_lanes")
@pytest.mark.parametrize("name", KEPT)
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), texts=st.booleans(), limit=st.sampled_from([1, 3_000]))
def test_state_on_disk_gives_the_rows_of_state_in_memory_in_their_order(
    name: str, tmp_path: Path, seed: int, texts: bool, limit: int
) -> None:
    rows = many(seed, 300, texts=texts)
    whole = play(KEPT[name], rows)
    in_pieces = play(KEPT[name], rows, seed, spill=lambda: Spill(limit, str(tmp_path)))
    assert whole.height
    assert_frame_equal(in_pieces, whole)
    assert not os.listdir(tmp_path)


VALUES = {
    "number": pl.Series([1, None, -3], dtype=pl.Int16),
    "float": pl.Series([0.5, float("nan"), None], dtype=pl.Float64),
    "text": pl.Series(["é", None, ""], dtype=pl.String),
    "binary": pl.Series([b"\0", b"", None], dtype=pl.Binary),
    "truth": pl.Series([True, None, False], dtype=pl.Boolean),
    "date": pl.Series([1, None, 3], dtype=pl.Int32).cast(pl.Date),
    "moment": pl.Series([1, None, 3], dtype=pl.Int64).cast(pl.Datetime("us", "Europe/Rome")),
    "span": pl.Series([1, None, 3], dtype=pl.Int64).cast(pl.Duration("ms")),
    "time": pl.Series([1, None, 3], dtype=pl.Int64).cast(pl.Time),
    "decimal": pl.Series(["1.5", None, "2.25"]).cast(pl.Decimal(10, 2)),
    "list": pl.Series([[1], [], None], dtype=pl.List(pl.Int8)),
    "struct": pl.Series([{"a": 1, "b": "x"}, {"a": None, "b": None}, {"a": 3, "b": ""}]),
    "null": pl.Series([None, None, None], dtype=pl.Null),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_of_every_type_come_back_from_disk_as_they_were(kind: str, tmp_path: Path) -> None:
    frame = pl.DataFrame({kind: VALUES[kind]})
    body = Body(frame)
    body.spill(Room(str(tmp_path)))
    assert body.spilled
    assert_frame_equal(body.frame, frame)
    assert_frame_equal(body.at(pl.Series([2, 0]).to_numpy()), frame[[2, 0]])


def test_room_that_nobody_has_any_more_is_used_again_and_files_that_are_empty_go(tmp_path: Path) -> None:
    room = Room(str(tmp_path))
    first, _ = room.put([b"a" * 100])
    second, _ = room.put([b"b" * 100])
    where = first.offset
    del first
    third, _ = room.put([b"c" * 10])
    assert third.offset == where
    assert (second.bytes(0, 3), third.bytes(0, 3)) == (b"bbb", b"ccc")
    del second, third
    room.tidy()
    assert not room._files
    assert not os.listdir(tmp_path)


def test_a_flow_tells_what_it_holds_in_memory_and_on_disk_and_gives_the_same(tmp_path: Path) -> None:
    rows = many(3, 4_000)
    counts = source.group_by("user", "kind").window(tumbling("20m")).agg(n=pl.len())
    flow = counts.to("out", type="Spilled.Counts")
    with ms.open() as whole, ms.open(str(tmp_path / "log.db")) as log:
        for each in (whole, log):
            for start in range(0, rows.height, 500):
                each.append("clicks", rows.slice(start, 500), type="Click")
        ms.run(whole, flow, until="head")
        running = ms.streams.start(log, flow, memory=2_000)
        assert running.wait(log.head, 30)
        [progress] = running.progress().values()
        running.stop()
        assert progress.spilled > 0
        assert progress.memory <= 2_000
        assert_frame_equal(log.scan("out").collect(), whole.scan("out").collect())
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} <= {"log.db", "log.db.lock"}


@pytest.mark.parametrize("processes", [1, 2])
def test_an_app_runs_its_flows_within_a_limit(tmp_path: Path, processes: int) -> None:
    flow = KEPT["distinct"].to("out", type="Spilled.InApp")
    with ms.open(str(tmp_path / "log.db")) as log:
        with pytest.raises(UsageError, match="memory="):
            ms.App(log, flows=[flow], memory="lots")
        with pytest.raises(UsageError, match="number of processes"):
            ms.App(log, flows=[flow], flow_processes=0)
        log.append("clicks", many(6, 500), type="Click")
        expected = KEPT["distinct"].over(log, final=False)
        with ms.App(log, flows=[flow], memory=100, flow_processes=processes):
            deadline = time.monotonic() + 60
            while "out" not in {found.name for found in log.streams()} and time.monotonic() < deadline:
                time.sleep(0.01)
        assert_frame_equal(log.scan("out").collect(), expected)


def test_what_is_read_back_at_a_restart_stays_within_the_limit(tmp_path: Path) -> None:
    rows = many(4, 3_000, minutes=2)
    flow = KEPT["distinct"].to("out", type="Spilled.Distinct")
    with ms.open(str(tmp_path / "log.db")) as log:
        log.append("clicks", rows, type="Click")
        worker = Worker(log, flow, rows=200)
        while worker.advance(log.head):
            pass
        worker.flush()
        held = worker.progress(log.head).memory
        worker.close()
        again = Worker(log, flow, spill=Spill(held // 2, str(tmp_path)))
        progress = again.progress(log.head)
        again.close()
        assert progress.memory <= held // 2 + 1_000
        assert progress.spilled >= held // 3


def test_flows_killed_again_and_again_under_a_tiny_limit_give_what_undisturbed_ones_give(tmp_path: Path) -> None:
    rows = many(21, 2_000, minutes=60)
    with ms.open() as log:
        log.append("clicks", rows, type="Click")
        ms.run(log, *FLOWS, until="head")
        whole = {name: log.scan(name).collect() for name in OUTPUTS}
    home = str(tmp_path / "log.db")
    with ms.open(home) as log:
        for start in range(0, rows.height, 100):
            log.append("clicks", rows.slice(start, 100), type="Click")
    assert killed_until_done(WORKER, home, seed=3, kills=4, longest=0.6, rounds=30) >= 2
    with ms.open(home) as log:
        for name in OUTPUTS:
            assert whole[name].height
            assert_frame_equal(log.scan(name).collect(), whole[name])


def test_no_room_on_disk_is_told_and_the_flow_goes_on_where_it_was(tmp_path: Path) -> None:
    flow = KEPT["tumbling"].to("out", type="Spilled.NoRoom")
    rows = many(5, 1_000)
    with ms.open() as whole, ms.open(str(tmp_path / "log.db")) as log:
        for each in (whole, log):
            each.append("clicks", rows, type="Click")
        ms.run(whole, flow, until="head")
        worker = Worker(log, flow, rows=100, spill=Spill(1, str(tmp_path / "not there")))
        with pytest.raises(SpillFailed, match="No such file") as refused:
            while worker.advance(log.head):
                pass
        worker.close()
        assert refused.value.size > 0
        assert refused.value.folder.endswith("not there")
        ms.run(log, flow, until="head", memory="1MB")
        assert_frame_equal(log.scan("out").collect(), whole.scan("out").collect())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a limit of a process's own")
def test_a_file_that_may_not_grow_further_is_told_too(tmp_path: Path) -> None:
    """As a disk that is full: the system refuses to write on, here by the process's limit for files."""
    import subprocess
    import sys

    code = f"""
import resource
import polars as pl
from millstream.streams import SpillFailed
from millstream.streams.bodies import Body
from millstream.streams.rooms import Room
room = Room({str(tmp_path)!r})
few, many = (Body(pl.DataFrame({{"n": range(count)}})) for count in (10, 100_000))
few.spill(room)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    many.spill(room)
except SpillFailed as error:
    print(error.code, many.spilled, many.frame["n"].sum(), few.frame["n"].sum())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["spill-failed", "False", "4999950000", "45"]


@pytest.mark.parametrize(
    ("text", "found"), [("512MB", 512_000_000), ("2 GiB", 2 << 30), ("1.5kb", 1_500), (4_096, 4_096)]
)
def test_a_limit_is_a_size(text: str | int, found: int) -> None:
    assert size(text) == found


@pytest.mark.parametrize("text", ["", "much", "5m", "-1MB", "0B", 0, -5, True, None, 1.5])
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(UsageError, match="memory="):
        size(text)
    if text is not None:
        with ms.open() as log, pytest.raises(UsageError, match="memory="):
            ms.run(log, KEPT["distinct"].to("out", type="Spilled.Refused"), memory=text)


def test_merges_are_bounded_and_lanes_are_caught_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "FRESH", 512)
    largest: list[int] = []

    def merge(frame: pl.DataFrame) -> pl.DataFrame:
        largest.append(frame.height)
        return frame.group_by("k").agg(pl.col("n").sum(), pl.col("at").max())

    r = random.Random(1)
    parts, rows = states.Parts(), 0
    for _ in range(300):
        frame = pl.DataFrame({"k": [r.randrange(8_000) for _ in range(100)], "n": 1, "at": rows})
        rows += frame.height
        parts = parts.add_by(merge(frame), "at").compact(merge, by=["k"])
    lanes = [part.lane for part in parts.items]
    assert len({lane for lane in lanes if lane is not None}) == 32
    assert max(lanes.count(lane) for lane in set(lanes) if lane is not None) < 24
    assert max(largest) < 3_000
    total = pl.concat(part.frame.select("k", "n") for part in parts.items)
    assert total["n"].sum() == rows
