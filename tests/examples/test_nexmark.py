"""The queries of Nexmark give what DuckDB gives, row by row."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import millstream as ms
from millstream.streams.replay import replay

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from nexmark.generator import BASE, Site, fill, generate, longest  # noqa: E402
from nexmark.proof import answer, differences, side_input  # noqa: E402
from nexmark.queries import queries  # noqa: E402

RATE = 100
QUERIES = queries(timedelta(milliseconds=longest(RATE)))


def out_of_order(site: Site, seed: int, seconds: float) -> Site:
    """The same events, each up to so many seconds late."""
    r = np.random.default_rng(seed)

    def late(rows: pl.DataFrame) -> pl.DataFrame:
        came = rows["dateTime"].dt.epoch("us").to_numpy() + r.random(rows.height) * seconds * 1e6
        return rows[np.argsort(came)]

    return Site(*(late(rows) for rows in site))


@pytest.fixture(scope="module")
def log() -> Iterator[ms.Log]:
    """A minute and a half, out of order by less than the four seconds that flows wait."""
    with ms.open() as log:
        side_input(log)
        fill(log, out_of_order(generate(9_000, seed=3, rate=RATE), 3, 3.9), rounds=20)
        yield log


@pytest.fixture(scope="module")
def days() -> Iterator[ms.Log]:
    """The events of four days."""
    with ms.open() as log:
        side_input(log)
        fill(log, generate(6_000, seed=4, rate=6_000 / (4 * 86_400)))
        yield log


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_gives_the_rows_that_sql_gives(log: ms.Log, name: str) -> None:
    query = QUERIES[name]
    found = query.flow.over(log)
    missing, excess = differences(log, name, answer(query, found))
    assert not missing.height, missing
    assert not excess.height, excess
    assert found.height > 4 or name == "q15"
    assert replay(query.flow, log, rows=500).equals(found)


@pytest.mark.parametrize("name", ["q14", "q15", "q16", "q17"])
def test_what_depends_on_the_day_and_the_hour_is_as_in_sql(days: ms.Log, name: str) -> None:
    found = QUERIES[name].flow.over(days)
    assert [frame.height for frame in differences(days, name, found)] == [0, 0]
    if name == "q14":
        assert found["bidTimeType"].n_unique() == 3
    else:
        assert found["day"].n_unique() == 4


def test_the_proof_sees_a_row_that_is_wrong(log: ms.Log) -> None:
    found = QUERIES["q2"].flow.over(log)
    assert [
        f.height
        for f in differences(log, "q2", found.with_columns(price=pl.col("price").replace(found["price"][0], 1)))
    ] == [1, 1]
    assert [f.height for f in differences(log, "q2", pl.concat([found, found[:2]]))] == [0, 2]


def test_the_events_are_the_same_every_time_and_have_the_shares_of_nexmark() -> None:
    site = generate(5_000, seed=7)
    assert [rows.height for rows in site] == [100, 300, 4_600]
    assert all(one.equals(other) for one, other in zip(site, generate(5_000, seed=7), strict=True))
    assert not site.bid.equals(generate(5_000, seed=8).bid)
    assert min(rows["dateTime"].min() for rows in site) == BASE
    # Half of the bids go to the hot auction, which is one in a hundred; some go to auctions that are still to come.
    hot = site.bid.filter((pl.col("auction") - 1000) % 100 == 0).height / site.bid.height
    assert 0.45 < hot < 0.55
    begun = site.bid.join(site.auction.select(auction="id", begun="dateTime"), on="auction")
    assert begun.filter(pl.col("begun") > pl.col("dateTime")).height > 0


def test_a_flow_that_runs_writes_what_sql_gives(log: ms.Log) -> None:
    ms.run(log, QUERIES["q5"].flow.to("hot", type="NexmarkHotItem"), until="head")
    written = log.scan("hot").collect()
    missing, excess = differences(log, "q5", written)
    assert not excess.height
    # What is still open at the end is not written yet.
    assert written.height > 20
    assert missing["window_end"].min() > written["window_end"].max()


def test_the_files_of_q10_hold_what_sql_gives(log: ms.Log, tmp_path: Path) -> None:
    ms.run(log, QUERIES["q10"].flow.to_files(tmp_path, partition_by=["dt", "hm"], name="q10"), until="head")
    assert (tmp_path / "dt=2015-07-15" / "hm=00%3A01").is_dir()
    written = pl.read_parquet(tmp_path / "**/*.parquet", hive_partitioning=False)
    assert [frame.height for frame in differences(log, "q10", written)] == [0, 0]


@pytest.mark.parametrize("words", [["q5"], ["1000", "q99"], ["0"]], ids=" ".join)
def test_what_nobody_can_be_asked_is_told_in_a_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from nexmark.__main__ import main

    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "nexmark: error: " in capsys.readouterr().err
