"""``millstream flow``."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

import millstream as ms
from millstream.streams import run

noon = datetime(2024, 1, 15, 12, tzinfo=UTC)
FLOWS = """
import millstream as ms
import polars as pl

clicks = ms.stream("clicks", time="ts")
counts = clicks.group_by("page").window(ms.tumbling("1m")).agg(n=pl.len()).to("counts", type="CliCount")
matched = ms.stream("clicks").match("x", within="1m", define={"x": pl.lit(True)})

def make():
    return counts

other = 7
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "cliflows.py").write_text(FLOWS)
    with ms.open(str(tmp_path / "clicks.db")) as log:
        log.append("clicks", pl.DataFrame({"page": ["a", "b", "a"], "ts": [noon, noon, noon]}), type="CliClick")
    return tmp_path


def test_a_flow_is_checked_before_it_has_run_and_after(place, invoke):
    done = invoke("flow", "check", "clicks.db", "cliflows:counts")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["equal"], found["rows"], found["compared"]) == (True, 2, "computed now")
    with ms.open(str(place / "clicks.db")) as log:
        import cliflows

        run(log, cliflows.counts, until="head")
        log.append("clicks", pl.DataFrame({"page": ["z"], "ts": [noon + timedelta(hours=1)]}), type="CliClick")
        run(log, cliflows.counts, until="head")
        log.append("counts", pl.DataFrame({"page": ["c"], "n": [1]}), type="CliCount")
    done = invoke("flow", "check", "clicks.db", "cliflows:make")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["excess"] == 1
    assert "different" in done.stderr
    done = invoke("flow", "check", "clicks.db", "cliflows:make", "--rows")
    assert [json.loads(line)["side"] for line in done.stdout.splitlines()] == ["excess"]


def test_the_events_behind_a_row_are_shown(place, invoke):
    with ms.open(str(place / "clicks.db")) as log:
        import cliflows

        log.append("clicks", pl.DataFrame({"page": ["z"], "ts": [noon + timedelta(hours=1)]}), type="CliClick")
        run(log, cliflows.counts, until="head")
        rows = {event.data["page"]: event.position for event in log.read("counts")}
    done = invoke("flow", "explain", "clicks.db", "cliflows:counts", str(rows["a"]))
    assert [json.loads(line)["position"] for line in done.stdout.splitlines()] == [1, 3]
    assert invoke("flow", "explain", "clicks.db", "cliflows:counts", "999").exit_code != 0


def test_flows_are_listed_paused_and_resumed(place, invoke):
    assert invoke("flow", "ls", "clicks.db").stdout == ""
    with ms.open(str(place / "clicks.db")) as log:
        import cliflows

        run(log, cliflows.counts, until="head")
    assert invoke("flow", "pause", "clicks.db", "counts/CliCount").exit_code == 0
    [found] = map(json.loads, invoke("flow", "ls", "clicks.db").stdout.splitlines())
    assert (found["name"], found["position"], found["paused"]) == ("counts/CliCount", 3, True)
    with ms.open(str(place / "clicks.db")) as log:
        log.append("clicks", pl.DataFrame({"page": ["z"], "ts": [noon + timedelta(hours=1)]}), type="CliClick")
        run(log, cliflows.counts, until="head")
        assert log.head == 4
    assert invoke("flow", "resume", "clicks.db", "counts/CliCount").exit_code == 0
    with ms.open(str(place / "clicks.db")) as log:
        run(log, cliflows.counts, until="head")
        assert log.head == 6
    done = invoke("flow", "pause", "clicks.db", "nobody")
    assert done.exit_code == 3
    assert "no flow 'nobody'" in done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cliflows", "does not name a flow"),
        ("cliflows:nothing", "has no nothing"),
        ("cliflows:other", "no millstream.Flow"),
        ("cliflows:matched", "match cannot be checked"),
    ],
)
def test_what_is_no_flow_or_cannot_be_checked_is_told(place, invoke, name, said):
    done = invoke("flow", "check", "clicks.db", name)
    assert done.exit_code == 2
    assert said in done.stderr
