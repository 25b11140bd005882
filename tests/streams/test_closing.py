"""Windows that close with very many keys: the same rows in the same order, in pieces, in one commit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from referee import play
from test_spilling import many

import millstream as ms
from millstream.streams import Flow, closing, committing, course, runner, state, stream
from millstream.streams.committing import Committer
from millstream.streams.runner import Worker
from millstream.streams.spilling import Spill

source = stream("clicks", time="ts", lateness="2s")

WINDOWS = {
    "tumbling": source.group_by("user", "kind").window(ms.tumbling("3h")).agg(n=pl.len(), low=pl.col("amount").min()),
    "hopping": source.group_by("user").window(ms.hopping("2h", every="20m")).agg(n=pl.len()),
    "calendar": source.group_by("user", "kind").window(ms.calendar("1d", time_zone="Asia/Tokyo")).agg(n=pl.len()),
    "early": source.group_by("user", "kind")
    .window(ms.tumbling("3h"), early="1h")
    .agg(n=pl.len(), last=pl.col("ts").last()),
    "allowed": source.group_by("user").window(ms.hopping("2h", every="1h"), allowed_lateness="4h").agg(n=pl.len()),
    "session": source.group_by("user", "kind").window(ms.session("20m")).agg(n=pl.len(), low=pl.col("amount").min()),
    "top": source.group_by("user").window(ms.hopping("2h", every="20m")).agg(n=pl.len()).top(3, by="n"),
    "top of many": source.group_by("user", "kind")
    .window(ms.tumbling("3h"))
    .agg(n=pl.len())
    .filter(pl.col("n") > 1)
    .top(1, by="n", descending=False, per="user")
    .match("some more", within="4h", define={"some": pl.col("n") >= 1, "more": pl.col("n") >= 1}, contiguity="relaxed"),
    "alert": source.group_by("user").window(ms.tumbling("3h")).agg(n=pl.len()).alert(pl.col("n") > 1),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few rows."""
    monkeypatch.setattr(state, "FRESH", 24)
    monkeypatch.setattr(state, "FAN_IN", 3)
    monkeypatch.setattr(closing, "PIECE", 30)
    monkeypatch.setattr(closing, "BLOCK", 3)
    monkeypatch.setattr(runner, "OUTPUT", 40)
    monkeypatch.setattr(committing, "PIECE", 60)


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each piece had that windows gave."""
    heights: list[int] = []
    whole = closing.in_order

    def spied(*args: object) -> Iterator[pl.DataFrame]:
        for piece in whole(*args):  # type: ignore[arg-type]
            heights.append(piece.height)
            yield piece

    monkeypatch.setattr(course, "in_order", spied)
    return heights


def filled(log: ms.Log, seed: int = 1, count: int = 600) -> pl.DataFrame:
    """A log with clicks of many users within half an hour, and one of the day after next."""
    rows = many(seed, count, texts=bool(seed % 2))
    last = rows[-1:].with_columns(pl.col("ts") + timedelta(days=2))
    for part in (*rows.iter_slices(100), last):
        log.append("clicks", part, type="ClosingClick")
    return pl.concat([rows, last])


def work(log: ms.Log, *flows: Flow, memory: str | None = None) -> None:
    """Have flows take in the log, batch by batch."""
    for flow in flows:
        worker = Worker(log, flow, rows=100, spill=None if memory is None else Spill.beside(log, memory))
        try:
            while worker.advance(log.head):
                pass
            worker.flush()
        finally:
            worker.close()


def ahead_of(log: ms.Log) -> int:
    """How many bodies are noted that were put ahead of a commit."""
    with log.connect() as database:
        return len(database.query(f"select ref from {database.own('flow_ahead')}"))


@pytest.mark.parametrize("name", WINDOWS)
def test_what_closes_in_pieces_is_what_closes_in_one(
    name: str, home: str | None, pieces: list[int], request: pytest.FixtureRequest
) -> None:
    # By turns: each window and each home are with a limit and without.
    homes = ["memory", "sqlite", "postgres"]
    limited = (list(WINDOWS).index(name) + homes.index(request.node.callspec.params["home"])) % 2
    with ms.open(home) as log:
        filled(log, seed=len(name))
        whole = WINDOWS[name].over(log, final=False)
        assert not pieces
        flow = WINDOWS[name].to("out", type=f"Closed.{name}")
        work(log, flow, memory="2KB" if limited else None)
        assert len(pieces) > 3
        assert max(pieces) < sum(pieces) / 2
        assert_frame_equal(log.scan("out").collect(), whole)
        assert ahead_of(log) == 0
        log.verify()


OFTEN = {
    "sessions": source.group_by("user").window(ms.session("2m")).agg(n=pl.len(), last=pl.col("kind").last()),
    "early": source.group_by("user").window(ms.tumbling("20m"), early="4m").agg(n=pl.len(), last=pl.col("kind").last()),
    "corrected": source.group_by("user", "kind")
    .window(ms.hopping("8m", every="4m"), allowed_lateness="6m")
    .agg(low=pl.col("amount").min()),
    "early and corrected": stream("clicks", time="ts")
    .filter(pl.col("amount") > -45)
    .group_by("user")
    .window(ms.tumbling("4m"), early="2m", allowed_lateness="4m")
    .agg(n=pl.len()),
    "best of sessions": source.group_by("user", "kind")
    .window(ms.session("3m"))
    .agg(low=pl.col("amount").min())
    .top(2, by="low", per="kind")
    .group_by("kind")
    .window(ms.tumbling("5m"))
    .agg(n=pl.len(), who=pl.col("user").last()),
    "sessions of two keys": source.group_by("user", "kind").window(ms.session("8m")).agg(low=pl.col("amount").min()),
}


@pytest.mark.parametrize("name", OFTEN)
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), texts=st.booleans(), limit=st.sampled_from([1, 3_000]))
def test_what_closes_in_pieces_again_and_again_is_what_closes_in_one(
    name: str, tmp_path: Path, pieces: list[int], seed: int, texts: bool, limit: int
) -> None:
    rows = many(seed, 1_200, texts=texts)
    whole = play(OFTEN[name], rows)
    pieces.clear()
    assert_frame_equal(play(OFTEN[name], rows, seed, spill=lambda: Spill(limit, str(tmp_path))), whole)
    assert whole.height
    assume(pieces)  # now and then nothing is large enough; where it never is, the test fails


def test_what_waited_for_the_first_watermark_comes_in_pieces(home: str | None, pieces: list[int]) -> None:
    counts = source.merge(stream("views", time="ts")).group_by("user").window(ms.tumbling("10m"), early="5m")
    flow = counts.agg(n=pl.len(), last=pl.col("kind").last())
    with ms.open(home) as log:
        rows = filled(log)
        log.append("views", rows[-5:].with_columns(pl.col("ts") + timedelta(days=3)), type="ClosingView")
        whole = flow.over(log, final=False)
        assert not pieces
        work(log, flow.to("out", type="Closed.First"))
        assert len(pieces) > 3
        assert_frame_equal(log.scan("out").collect(), whole)
        assert {"early", "final"} == set(whole["status"])


def test_rows_in_pieces_go_to_files_and_functions_too(tmp_path: Path) -> None:
    given: list[pl.DataFrame] = []
    flow = WINDOWS["tumbling"]
    with ms.open(str(tmp_path / "log.db")) as log:
        filled(log)
        files, function = flow.to_files(tmp_path / "files"), flow.to_function(given.append, name="function")
        work(log, files, function, memory="2KB")
        whole = flow.over(log, final=False)
    assert len(given) > 1
    assert_frame_equal(pl.concat(given), whole)
    written = sorted((tmp_path / "files").iterdir(), key=lambda path: int(path.name.split("-")[-1].split(".")[0]))
    assert len(written) == len(given)
    assert_frame_equal(pl.concat(pl.read_parquet(path) for path in written), whole)


def test_an_inline_projection_sees_rows_that_were_put_ahead(home: str | None) -> None:
    with ms.open(home) as log:
        filled(log)
        seen: list[pl.DataFrame] = []
        log.inline("seen", ["Closed.Inline"], lambda database, runs: seen.extend(run.frame() for run in runs))
        work(log, WINDOWS["hopping"].to("out", type="Closed.Inline"))
        assert_frame_equal(pl.concat(seen), log.scan("out").collect())


def test_rows_that_do_not_fit_their_stream_any_more_are_put_ahead_as_objects(home: str | None) -> None:
    with ms.open(home) as log:
        log.append("out", pl.DataFrame({"user": [1]}), type="Closed.Drifted")
        rows = filled(log)
        work(log, WINDOWS["tumbling"].to("out", type="Closed.Drifted"))
        found = [event.data["user"] for event in log.read("out")]
        assert found[1:] == WINDOWS["tumbling"].over(rows, final=False)["user"].to_list()
        assert ahead_of(log) == 0


def test_what_was_put_ahead_of_a_commit_that_did_not_come_goes_when_the_flow_is_taken_up(
    shared_home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow: Flow = WINDOWS["tumbling"].to("out", type="Closed.Orphans")
    with ms.open(shared_home) as log:
        filled(log)
        whole = WINDOWS["tumbling"].over(log, final=False)
        commit = log.commit

        def refused(appends: Sequence[object] = (), **options: Any) -> object:
            if len(appends) > 1:
                raise OSError("killed here")
            return commit(appends, **options)  # type: ignore[arg-type]

        with monkeypatch.context() as patched, pytest.raises(OSError, match="killed here"):
            patched.setattr(log, "commit", refused)
            patched.setattr(Committer, "_drop", lambda *given: None)
            work(log, flow, memory="2KB")
        with log.connect() as database:
            refs = [row["ref"] for row in database.query(f"select ref from {database.own('flow_ahead')}")]
        assert len(refs) > 1
        assert len(log.store.body_infos(refs)) == len(refs)
        work(log, flow)
        assert ahead_of(log) == 0
        assert not log.store.body_infos(refs)
        assert_frame_equal(log.scan("out").collect(), whole)


def test_a_worker_that_was_fenced_leaves_nothing_that_it_has_put_ahead(shared_home: str) -> None:
    flow = WINDOWS["tumbling"].to("out", type="Closed.Fenced")
    with ms.open(shared_home) as log:
        filled(log)
        first = Worker(log, flow, rows=100, spill=Spill.beside(log, "2KB"))
        work(log, flow)
        whole = log.scan("out").collect()
        with pytest.raises(ms.ConsumerFenced):
            while first.advance(log.head):
                pass
            first.flush()
        first.close()
        assert ahead_of(log) == 0
        assert_frame_equal(log.scan("out").collect(), whole)
