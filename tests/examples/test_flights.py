"""The example of the flights gives what its page shows, and what DuckDB says of the file itself."""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import polars as pl
import pytest

import millstream as ms
from millstream.demo.flights import read_flights

duckdb = pytest.importorskip("duckdb")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HERE = EXAMPLES / "flights"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of the example, with its log and its picture; and what it printed."""
    folder = tmp_path_factory.mktemp("flights")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        patch.setattr(sys, "argv", ["flights", "--log", str(folder / "f.db"), "--picture", str(folder / "f.svg")])
        from flights.__main__ import main

        printed = io.StringIO()
        with redirect_stdout(printed):
            main()
    return folder, printed.getvalue()


def agree(folder: Path, stream: str, query: str) -> int:
    """Assert that a flow wrote the very rows that a query over the file gives; and how many."""
    with ms.open(str(folder / "f.db"), readonly=True) as log, duckdb.connect() as db:
        found = log.scan(stream).collect()
        db.execute("set timezone = 'UTC'")
        db.register("flights", read_flights(None).to_arrow())
        db.register("found", found.to_arrow())
        columns = ", ".join(found.columns)
        db.execute(f"create temp table expected as select {columns} from ({query})")
        for one, other in (("expected", "found"), ("found", "expected")):
            odd = db.sql(f"select {columns} from {one} except all select {columns} from {other}").pl()
            assert not odd.height, f"only in {one}: {odd}"
    return found.height


def test_it_tells_the_story_that_its_page_shows(played: tuple[Path, str]) -> None:
    [shown] = re.findall(
        r"^\$ python -m flights\n(.*?)^```", (HERE / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert played[1] == shown


def test_it_draws_the_picture_of_its_page(played: tuple[Path, str]) -> None:
    assert (played[0] / "f.svg").read_text() == (HERE / "january.svg").read_text()


def test_each_hour_of_each_airport_holds_what_sql_says(played: tuple[Path, str]) -> None:
    rows = agree(
        played[0],
        "per-hour",
        """select origin, date_trunc('hour', departed) as window_start, window_start + interval '1 hour' as window_end,
           count(*) as departures, count(*) filter (dep_delay >= 30) as late
           from flights where departed is not null group by 1, 2""",
    )
    assert rows > 1_000


def test_the_rolling_delay_of_each_carrier_is_what_sql_says(played: tuple[Path, str]) -> None:
    rows = agree(
        played[0],
        "rolling",
        """select carrier, departed as window_end, count(*) over w as flights, avg(dep_delay) over w as mean
           from flights where departed is not null
           window w as (partition by carrier order by departed range between interval '6 hours' preceding
                        and current row)""",
    )
    assert rows > 20_000


def test_aircraft_that_were_late_three_times_in_a_row_are_those_of_sql(played: tuple[Path, str]) -> None:
    # Rows of one time are in the order in which the feed told them. A run is told once it has ended: with a leg that
    # was not late, or with the thirty days that the pattern gives it.
    query = """
        with legs as (
            select tailnum, departed, dep_delay, dep_delay >= 30 as late,
                   carrier || flight || ' ' || (scheduled at time zone 'America/New_York')::date as id,
                   row_number() over (partition by tailnum order by departed, scheduled) as nth
            from flights where departed is not null and tailnum is not null
        ), runs as (
            select *, nth - row_number() over (partition by tailnum order by nth) as run from legs where late
        )
        select tailnum, min(departed) as match_start, max(departed) as match_end, count(*) as events,
               arg_min(id, nth) as first, max(dep_delay) as worst
        from runs join (select tailnum, max(nth) as final from legs group by tailnum) using (tailnum)
        group by tailnum, run, final
        having count(*) >= 3 and (max(nth) < final or min(departed) + interval '30 days' < (
            select greatest(max(departed), max(scheduled)) + interval '47 hours' from flights))
    """
    assert agree(played[0], "late-aircraft", query) > 50


def test_flights_that_never_left_are_those_without_a_departure(played: tuple[Path, str]) -> None:
    query = """
        select carrier || flight || ' ' || (scheduled at time zone 'America/New_York')::date
               || case when again > 1 then ' #' || again else '' end as id, carrier, scheduled
        from (select *, row_number() over (partition by carrier, flight,
                     (scheduled at time zone 'America/New_York')::date order by scheduled) as again from flights)
        where departed is null
    """
    assert agree(played[0], "never-left", query) == 521
    with ms.open(str(played[0] / "f.db"), readonly=True) as log:
        assert log.scan("never-left").collect().select(pl.col("id").n_unique()).item() == 521


@pytest.mark.parametrize("words", [["nothing.parquet"], ["--log", "nowhere/f.db"], ["--picture", "nowhere/f.svg"]])
def test_a_path_that_leads_nowhere_is_told_in_a_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["flights", *words])
    from flights.__main__ import main

    with pytest.raises(SystemExit, match="2"):
        main()
    assert "flights: error: there is no " in capsys.readouterr().err
