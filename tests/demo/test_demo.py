"""The demo from end to end: what it prints, what it leaves, and that the parquet says the same."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

import millstream as ms
from millstream.cdc import Change, table
from millstream.demo import screen
from millstream.demo.flights import DEPARTED, MINUTE, Timetable, at_local, local, read_flights
from millstream.demo.folder import Folder
from millstream.demo.play import Play
from millstream.demo.report import sighting, windows

PACKAGED = Path(ms.__file__).parent / "demo" / "january.parquet"
COMMAND = [sys.executable, "-c", "from millstream.cli import main; main()", "demo"]
ESCAPE = "\x1b"


def environment() -> dict[str, str]:
    source = str(Path(ms.__file__).parents[1])
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS")}
    return {**plain, "PYTHONPATH": source}


def run(*arguments: str | Path, timeout: float = 50) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env=environment()
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Three days, played once for all tests that only look."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = run("--quick", "--out", folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder, done.stdout


@pytest.fixture
def log(quick):
    with ms.open(str(quick[0] / "flights.db"), readonly=True) as log:
        yield log


@pytest.fixture(scope="module")
def days():
    """The first three days of the file, by Polars alone."""
    day = pl.col("scheduled").dt.convert_time_zone("America/New_York").dt.date()
    return pl.read_parquet(PACKAGED).filter(day <= date(2013, 1, 3))


# --- what is printed --------------------------------------------------------------------------------------


def test_without_a_terminal_it_prints_plain_lines_of_at_most_80_columns(quick):
    lines = quick[1].splitlines()
    assert ESCAPE not in quick[1]
    assert "\r" not in quick[1]
    assert [line for line in lines if len(line) > 80 and "millstream" not in line and "demo" not in line] == []
    assert [line for line in lines if line != line.rstrip()] == []
    assert any(re.match(r"  100 %", line) for line in lines)


def test_each_pattern_has_its_part(quick):
    for title in ("1  Event sourcing", "2  Change data capture", "3  CQRS", "4  Stream processing", "Look further"):
        assert title in quick[1]


def test_it_says_that_polars_counts_the_same(quick):
    assert "✓ Polars counts the same" in quick[1]


def test_the_commands_that_it_prints_work(quick):
    commands = [line.strip() for line in quick[1].splitlines() if re.match(r"  \S*millstream ", line)]
    assert len(commands) == 5
    for command in commands:
        words = shlex.split(command)
        done = subprocess.run(
            [*COMMAND[:-1], *words[1:]],
            capture_output=True, text=True, timeout=50, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout


def test_a_command_is_named_by_its_path_where_a_shell_would_not_find_it(monkeypatch, tmp_path):
    class Out:
        shown_log = "out/flights.db"

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "millstream").touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    for path, named in (("/nowhere", "bin/millstream"), (str(tmp_path / "bin"), "millstream")):
        monkeypatch.setenv("PATH", path)
        assert {line.split()[0] for line in screen.commands(Out, None)} == {named}


# --- what the log holds, beside the file --------------------------------------------------------------------


def test_every_flight_of_the_file_is_in_the_log(log, days):
    counts = {
        type: sum(1 for _ in log.read("aircraft-*", types=type)) for type in ("FlightScheduled", "FlightDeparted")
    }
    assert counts == {"FlightScheduled": days.height, "FlightDeparted": days["departed"].count()}
    assert sum(1 for _ in log.read("aircraft-*", types="FlightCancelled")) == days["departed"].null_count()
    assert sum(1 for _ in log.read("aircraft-*", types="FlightLanded")) == days["air_time"].count()
    assert log.stream("departures").version == days["departed"].count()


def test_the_captured_changes_are_the_statements_of_the_other_program(quick, log, days):
    cancelled = days["departed"].null_count()
    operations = [e.event.operation for e in log.read("flights", types=Change)]
    assert operations.count("INSERT") == days.height
    assert operations.count("UPDATE") == days.height - cancelled
    assert operations.count("DELETE") == cancelled
    for change in (e.event for e in log.read("flights", types=Change)):
        assert (change.before is None) == (change.operation == "INSERT")
        assert (change.after is None) == (change.operation == "DELETE")


def test_the_table_of_the_changes_is_the_table_of_the_other_program(quick, log):
    with sqlite3.connect(quick[0] / "operations.sqlite") as db:
        rows = db.execute("select id, status, delay from flights order by id").fetchall()
    assert table(log, "flights").select("id", "status", "delay").sort("id").rows() == rows


def test_the_windows_are_what_polars_counts(log, days):
    closed = log.scan("windows").collect()
    watermark = days["departed"].max() - timedelta(minutes=30)
    expected = (
        days.drop_nulls("departed")
        .group_by("origin", pl.col("departed").dt.truncate("5m").alias("window_start"))
        .agg(pl.len().cast(pl.Int64).alias("departures"))
        .filter(pl.col("window_start") + timedelta(minutes=5) <= watermark)
    )
    order = ["origin", "window_start"]
    assert closed.select(expected.columns).sort(order).rows() == expected.sort(order).rows()


def test_an_alert_comes_with_the_tenth_late_departure_within_an_hour(log, days):
    found = log.scan("alerts").collect()
    assert found.height
    for alert in found.iter_rows(named=True):
        late = days.filter(
            pl.col("origin") == alert["origin"],
            pl.col("dep_delay") >= 30,
            pl.col("departed").is_between(alert["window_start"], alert["window_end"]),
        )
        assert late.height == alert["late"] >= 10
        assert late["dep_delay"].mean() == pytest.approx(alert["mean_delay"])


def test_the_board_shows_how_each_flight_ended(quick, days):
    with sqlite3.connect(quick[0] / "board.db") as db:
        shown = dict(db.execute("select status, count(*) from board group by status"))
    cancelled = days["departed"].null_count()
    assert shown == {"departed": days.height - cancelled, "cancelled": cancelled}


def test_the_delay_by_command_is_one_event_and_shown_on_the_board(quick, log):
    [delayed] = log.read("aircraft-*", types="FlightDelayed")
    expected = local(delayed.event.expected)
    assert f"delayed {expected:%H:%M}" in quick[1]
    assert "A second one was rejected" in quick[1]


def test_the_log_verifies(log):
    assert log.verify().position == log.head


# --- time travel, on the real questions ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_aircraft(tmp_path_factory):
    """All of January for two aircraft."""
    frame = read_flights(None).filter(pl.col("tailnum").is_in(["N14228", "N13908"]))
    folder = tmp_path_factory.mktemp("aircraft")
    timetable = Timetable(frame)
    with Folder(str(folder / "out")) as out, Play(out, timetable) as play:
        for poll in timetable.polls(timetable.every):
            play.take(poll)
        play.finish()
        yield play, timetable


def of(aircraft: str, before: datetime) -> pl.DataFrame:
    frame = pl.read_parquet(PACKAGED)
    return frame.filter(pl.col("tailnum") == aircraft, pl.col("departed") <= before).sort("departed")


def test_n14228_has_no_flight_on_15_january_and_was_last_seen_on_its_way_to_boston(two_aircraft):
    noon = datetime(2013, 1, 15, 17, tzinfo=UTC)
    assert at_local(date(2013, 1, 15), 12) == noon
    seen = sighting(two_aircraft[0].log, "N14228", noon)
    last = of("N14228", noon).row(-1, named=True)
    assert seen.today == ()
    assert (seen.last.origin, seen.last.dest, seen.last.departed) == ("EWR", "BOS", last["departed"])
    assert seen.last.departed.date() == date(2013, 1, 13)
    assert seen.landed == last["departed"] + timedelta(minutes=last["air_time"])


@pytest.mark.parametrize(("aircraft", "day"), [("N14228", 9), ("N13908", 15), ("N14228", 16), ("N13908", 16)])
@pytest.mark.parametrize("hour", [0, 9, 12, 19, 23])
def test_an_aircraft_is_where_the_file_says_at_any_hour(two_aircraft, aircraft, day, hour):
    at = at_local(date(2013, 1, day), hour)
    seen = sighting(two_aircraft[0].log, aircraft, at)
    known = of(aircraft, at)
    last = known.row(-1, named=True)
    assert (seen.last.departed, seen.last.dest, seen.last.delay) == (last["departed"], last["dest"], last["dep_delay"])
    lands = last["departed"] + timedelta(minutes=last["air_time"])
    assert seen.landed == (lands if lands <= at else None)
    today = known.filter(pl.col("departed") >= at_local(date(2013, 1, day), 0))
    assert [d.delay for d in seen.today] == today["dep_delay"].to_list()


def test_windows_of_other_data_agree_too(two_aircraft):
    play, timetable = two_aircraft
    found = windows(play.log, timetable)
    assert found.agrees
    assert found.departures + found.open == timetable.frame["departed"].count()


# --- the feed -----------------------------------------------------------------------------------------------


def test_the_feed_knows_nothing_of_the_future():
    timetable = Timetable(read_flights(None), quick=True)
    polls = list(timetable.polls(30 * MINUTE))
    assert [p.at for p in polls] == sorted(p.at for p in polls)
    for poll in polls:
        assert all(poll.at - 30 * MINUTE < at <= poll.at for at, _, _ in poll.facts)
    assert sum(kind == DEPARTED for p in polls for _, kind, _ in p.facts) == timetable.frame["departed"].count()


def test_a_number_that_is_used_twice_a_day_is_two_flights():
    frame = read_flights(None).head(5)
    timetable = Timetable(pl.concat([frame, frame.with_columns(pl.lit("LGA").alias("origin"))]))
    assert len({flight.id for flight in timetable.flights}) == 10


def test_a_feed_that_is_taken_up_again_leaves_nothing_out():
    timetable = Timetable(read_flights(None), quick=True)
    polls = list(timetable.polls(30 * MINUTE))
    rest = list(timetable.polls(MINUTE, after=polls[40].at))
    assert sum(len(p.facts) for p in polls[:41]) + sum(len(p.facts) for p in rest) == len(timetable.facts)


# --- folders and data -----------------------------------------------------------------------------------------


def test_a_second_run_replaces_what_the_first_one_made(quick):
    folder = quick[0]
    few = folder.parent / "few.parquet"
    pl.read_parquet(PACKAGED).head(40).write_parquet(few)
    out = folder.parent / "twice"
    for _ in range(2):
        done = run("--data", few, "--out", out)
        assert done.returncode == 0, done.stderr
        assert "40 flights became" in done.stdout
    with ms.open(str(out / "flights.db"), readonly=True) as log:
        assert sum(1 for _ in log.read("aircraft-*", types="FlightScheduled")) == 40


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "flights.db").write_text("mine")
    with pytest.raises(ms.UsageError, match="holds other things"):
        Folder(str(tmp_path))
    assert (tmp_path / "flights.db").read_text() == "mine"


def test_two_demos_do_not_share_a_folder(tmp_path):
    with Folder(str(tmp_path / "out")), pytest.raises(ms.UsageError, match="another demo"):
        Folder(str(tmp_path / "out"))


def test_data_that_is_not_flights_is_refused(tmp_path):
    with pytest.raises(ms.NotFound):
        read_flights(str(tmp_path / "none.parquet"))
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ms.UsageError, match="cannot be read"):
        read_flights(str(tmp_path / "text.parquet"))
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(ms.UsageError, match="no column 'scheduled'"):
        read_flights(str(tmp_path / "other.parquet"))


# --- following --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_following_ends_cleanly_with_130_and_a_sound_log(tmp_path, number):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "--quick", "--follow", "--speed", "3600", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    before = []
    for line in process.stdout:
        before.append(line)
        if "left: " in line:  # an hour of live play
            break
    process.send_signal(number)
    rest, errors = process.communicate(timeout=40)
    assert process.returncode == 130
    assert errors == ""
    assert "Interrupted" in rest
    assert "Look further" in rest
    assert "✓ Polars counts the same" in rest
    assert ESCAPE not in rest
    with ms.open(str(out / "flights.db"), readonly=True) as log:
        assert log.verify().position == log.head


def test_following_to_the_end_gives_the_same_as_playing_at_once(tmp_path, days):
    few = tmp_path / "few.parquet"
    pl.read_parquet(PACKAGED).head(900).write_parquet(few)
    done = run("--data", few, "--follow", "--speed", "1000000", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "900 flights became" in done.stdout
    assert "✓ Polars counts the same" in done.stdout
