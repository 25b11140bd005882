"""``millstream projection`` and ``millstream query``: the read models of an app from the command line."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ready import ReadyCommands

APP = """
import millstream as ms


class Paid(ms.Event, type="CliPaid"):
    cents: int


class Till(ms.Projection):
    schema = "create table till (position integer primary key, cents integer)"

    @ms.on
    def paid(self, event: Paid, db: ms.Database, recorded: ms.Recorded) -> None:
        if event.cents < 0:
            raise ValueError("nobody pays that")
        db.execute("insert into till values (?, ?)", (recorded.position, event.cents))


class Takings(ms.Query[int]):
    at_least: int = 0


class Payments(ms.Query[list]):
    pass


log = ms.open("log.db")
app = ms.App(log, projections=[Till.into("read.db")])


@app.query
def takings(query: Takings, db: ms.Database) -> int:
    return db.one("select coalesce(sum(cents), 0) as n from till where cents >= ?", (query.at_least,))["n"]


@app.query
def payments(query: Payments, db: ms.Database) -> list:
    return db.query("select * from till order by position")
"""
MADE = """
import shop
for cents in (5, 7, -1, 9):
    shop.log.append("till", shop.Paid(cents=cents))
with shop.app as app:
    while app.status()[0].state != "failed":
        pass
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str], ready_commands: ReadyCommands) -> Run:
    (tmp_path / "shop.py").write_text(APP)
    subprocess.run([sys.executable, "-c", MADE], cwd=tmp_path, env=environment, check=True)

    def call(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [*ready_commands.command, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return done

    return call


def told(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)


def test_a_projection_that_stopped_is_shown_and_the_event_left_out(run: Run) -> None:
    row = told(run("projection", "ls", "shop:app"))
    assert (row["name"], row["state"], row["position"], row["behind"]) == ("Till", "failed", 2, 2)
    failure = told(run("projection", "show", "shop:app", "Till", "--failures"))
    assert (failure["position"], failure["error"]) == (3, "ValueError: nobody pays that")
    assert told(run("projection", "skip", "shop:app", "Till"))["skipped"] == 3
    row = told(run("projection", "show", "shop:app", "Till"))
    assert (row["state"], row["position"], row["versions"]) == ("not kept", 3, "1 live")


def test_a_read_model_is_compared_rebuilt_and_rolled_back(run: Run, tmp_path: Path) -> None:
    run("projection", "skip", "shop:app", "Till")
    assert "nobody pays that" in run("projection", "rebuild", "shop:app", "Till", code=1).stderr
    with closing(sqlite3.connect(tmp_path / "read.db")) as db:
        db.execute("update till set cents = 6 where position = 1")
        db.commit()
    assert told(run("query", "shop:app", "Takings"))["result"] == 13
    (tmp_path / "shop.py").write_text(APP.replace("raise ValueError", "return\n            raise ValueError"))
    compared = told(run("projection", "rebuild", "shop:app", "Till", "--check", code=1))
    assert (compared["same"], compared["differences"]) == (False, "till: 1 rows missing, 1 too many")
    assert told(run("projection", "rebuild", "shop:app", "Till"))["version"] == 3
    assert told(run("query", "shop:app", "Takings"))["result"] == 21
    assert told(run("projection", "rebuild", "shop:app", "Till", "--check"))["same"]
    assert told(run("projection", "rollback", "shop:app", "Till"))["version"] == 1
    assert told(run("query", "shop:app", "Takings"))["result"] == 13


def test_a_projection_is_paused_and_resumed(run: Run) -> None:
    run("projection", "skip", "shop:app", "Till")
    run("projection", "pause", "shop:app", "Till")
    assert told(run("projection", "ls", "shop:app"))["state"] == "paused"
    run("projection", "resume", "shop:app", "Till")
    assert told(run("projection", "ls", "shop:app"))["state"] == "not kept"


def test_partitions_are_built_as_a_new_version_and_shown(run: Run, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP.replace("schema =", "partitions = 2\n    schema =").replace("< 0", "< -9"))
    assert told(run("query", "shop:app", "Takings"))["result"] == 12
    assert told(run("projection", "rebuild", "shop:app", "Till"))["version"] == 2
    assert told(run("query", "shop:app", "Takings"))["result"] == 21
    shown = told(run("projection", "show", "shop:app", "Till"))
    assert shown["partitions"] == "Till/1 at 4 not kept, Till/2 at 4 not kept"
    assert (shown["state"], shown["position"], shown["versions"]) == ("not kept", 4, "1 previous, 2 live")


def test_queries_are_asked_of_the_present_and_the_past(run: Run) -> None:
    assert told(run("query", "shop:app", "Takings", '{"at_least": 6}'))["result"] == 7
    listed = [json.loads(line) for line in run("query", "shop:app").stdout.splitlines()]
    assert listed == [{"query": "Payments", "fields": ""}, {"query": "Takings", "fields": "at_least?"}]
    assert told(run("query", "shop:app", "Takings", "at_least=6"))["result"] == 7
    assert told(run("query", "shop:app", "Takings", "--at", "1"))["result"] == 5
    rows = [json.loads(line) for line in run("query", "shop:app", "Payments").stdout.splitlines()]
    assert rows == [{"position": 1, "cents": 5}, {"position": 2, "cents": 7}]
    followed = run("query", "shop:app", "Takings", "--follow", "--timeout", "0.1")
    assert told(followed)["result"] == 12


def test_what_is_in_memory_is_filled_to_be_asked_and_not_looked_after_from_here(run: Run, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP.replace('Till.into("read.db")', "Till.into(':memory:')"))
    assert "nobody pays that" in run("query", "shop:app", "Takings", code=1).stderr
    (tmp_path / "shop.py").write_text(
        APP.replace('Till.into("read.db")', "Till.into(':memory:')").replace("< 0", "< -9")
    )
    assert told(run("query", "shop:app", "Takings"))["result"] == 21
    assert told(run("projection", "ls", "shop:app"))["state"] == "in memory"
    assert "kept in memory" in run("projection", "rebuild", "shop:app", "Till", "--check", code=2).stderr


WRONG = [
    (["projection", "ls", "shop"], 2, "does not name an app"),
    (["projection", "ls", "nowhere:app"], 2, "nowhere cannot be imported"),
    (["projection", "ls", "shop:nothing"], 2, "shop has no nothing"),
    (["projection", "ls", "shop:log"], 2, "is no millstream.App"),
    (["projection", "show", "shop:app", "Nobody"], 3, "no projection 'Nobody'"),
    (["projection", "rollback", "shop:app", "Till"], 3, "no version to go back to"),
    (["projection", "skip", "shop:app", "Till", "-p", "77"], 3, "failed at position 77"),
    (["query", "shop:app", "Nothing"], 2, "no query 'Nothing'"),
    (["query", "shop:app", "Takings", '{"at_least": '], 2, "it is no JSON"),
    (["query", "shop:app", "Takings", '{"most": 1}'], 2, "no field 'most'"),
    (["query", "shop:app", "Takings", "at_least"], 2, "not a field and its value"),
    (["query", "shop:app", "Takings", "most=1"], 2, "no field 'most'"),
    (["query", "shop:app", "Takings", "at_least=much"], 2, "Takings"),
]


def test_what_cannot_be_done_is_told(run: Run) -> None:
    for words, code, said in WRONG:
        assert said in run(*words, code=code).stderr
