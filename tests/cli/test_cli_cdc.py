"""Capturing by the command, a SQLite file and a PostgreSQL database."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

import millstream as ms


@pytest.fixture
def shop(tmp_path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(tmp_path / "shop.sqlite", isolation_level=None)
    db.execute("create table users (id integer primary key, email text)")
    db.execute("insert into users values (1, 'a@x.org')")
    yield db
    db.close()


def answers(done) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_database_is_captured_shown_read_again_and_let_go(run, shop, tmp_path):
    done = run("cdc", "run", "log.db", "sqlite:///shop.sqlite", "--once", "-t", "users", "--prefix", "shop/")
    assert answers(done) == [{"events": 2}]
    [status] = answers(run("cdc", "status", "log.db"))
    assert (status["table"], status["done"], status["rows"]) == ("users", True, 1)
    shop.execute("insert into users values (2, 'b@x.org')")
    answers(run("cdc", "snapshot", "log.db", "sqlite:///shop.sqlite", "users"))
    run("cdc", "run", "log.db", "sqlite:///shop.sqlite", "--once", "--prefix", "shop/")
    with ms.open(str(tmp_path / "log.db")) as log:
        operations = [e.data.get("operation") for e in log.read("shop/users")]
        assert operations[-4:] == ["TRUNCATE", "READ", "READ", None]
    answers(run("cdc", "remove", "sqlite:///shop.sqlite"))
    assert not shop.execute("select 1 from sqlite_master where name like '%millstream%'").fetchall()
    again = run("cdc", "run", "log.db", "sqlite:///shop.sqlite", "--once", "--prefix", "shop/")
    assert again.returncode == 1
    assert "--resync" in again.stderr
    assert "resync=" not in again.stderr
    path = run("cdc", "run", "log.db", "shop.sqlite", "--once")
    assert (path.returncode, path.stderr.splitlines()[0]) == (2, "error: 'shop.sqlite' is no URL of a database")


def test_a_running_capture_ends_well_at_ctrl_c(start, shop, tmp_path):
    process = start("cdc", "run", "log.db", "sqlite:///shop.sqlite")
    deadline = time.monotonic() + 20
    while not (tmp_path / "log.db").exists() or time.monotonic() < deadline:
        with ms.open(str(tmp_path / "log.db")) as log:
            if log.version("users") >= 2:
                break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert b"stopping" in err


def test_check_and_doctor_name_what_is_wrong_with_the_statement_that_mends_it(run, postgres):
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute("create table notes (t text)")
        db.execute("create table users (id int primary key)")
        found = run("cdc", "check", postgres)
        assert found.returncode == 1
        findings = [json.loads(line) for line in found.stdout.splitlines()]
        [error] = [f for f in findings if f["level"] == "error"]
        assert error["mend"] == 'ALTER TABLE "public"."notes" REPLICA IDENTITY FULL'
        assert answers(run("cdc", "check", postgres, "-t", "users"))
        db.execute(error["mend"])
        assert all(f["level"] != "error" for f in answers(run("cdc", "check", postgres)))
        assert run("cdc", "run", "log.db", postgres, "--once", "-t", "users").returncode == 0
        db.execute("insert into users select generate_series(1, 5000)")
        rows = answers(run("cdc", "doctor", "log.db", postgres, "--seconds", "0.1", "--room", "1000000000"))
        assert rows[0]["behind"] > 100_000
        assert rows[0]["holder"].startswith("millstream_")
        assert rows[0]["active"] is False
        assert answers(run("cdc", "run", "log.db", postgres, "--once", "-t", "users")) == [{"events": 5000}]
        [after, *_] = answers(run("cdc", "doctor", "log.db", postgres, "--seconds", "0.1"))
        assert after["behind"] < rows[0]["behind"]
        answers(run("cdc", "remove", postgres))
        assert db.execute(
            "select count(*) from pg_replication_slots where database = current_database()"
        ).fetchone() == (0,)


def test_what_a_sink_refuses_is_shown_tried_again_and_given_up(run, shop, tmp_path):
    run("cdc", "run", "log.db", "sqlite:///shop.sqlite", "--once")
    shop.execute("insert into users values (2, 'b@x.org')")
    run("cdc", "run", "log.db", "sqlite:///shop.sqlite", "--once")
    working = False

    def deliver(change):
        if change.after["id"] == 2 and not working:
            raise ms.Rejected("no such customer")

    with ms.open(str(tmp_path / "log.db")) as log:
        followers = ms.sync(log, "users", ms.Callback(deliver, name="mail"), start=False)
        followers.catch_up()
    [found] = answers(run("cdc", "parked", "log.db"))
    assert (found["position"], found["sink"], found["state"]) == (3, "mail", "parked")
    assert "no such customer" in found["error"]
    assert answers(run("cdc", "parked", "log.db", "--table", "users", "--retry")) == [{"retried": 1}]
    working = True
    with ms.open(str(tmp_path / "log.db")) as log:
        ms.sync(log, "users", ms.Callback(deliver, name="mail"), start=False).catch_up()
    assert answers(run("cdc", "parked", "log.db")) == []
    assert answers(run("cdc", "parked", "log.db", "--skip", "--position", "3")) == [{"skipped": 0}]
    assert "no position" in run("cdc", "parked", "log.db", "--skip").stderr


def test_what_differs_from_the_source_is_named_and_mended(run, shop, tmp_path):
    run("cdc", "run", "log.db", "sqlite:///shop.sqlite", "--once")
    [same] = answers(run("cdc", "verify", "log.db", "sqlite:///shop.sqlite"))
    assert (same["table"], same["rows"], same["differ"]) == ("users", 1, 0)
    with ms.open(str(tmp_path / "log.db")) as log:
        row = {"id": 1, "email": "a@x.org"}
        log.append(
            "users", ms.Change(operation="DELETE", table="users", before=row, after=None, timestamp=datetime.now(UTC))
        )
    found = run("cdc", "verify", "log.db", "sqlite:///shop.sqlite")
    assert found.returncode == 1
    assert "users missing: id=1" in found.stderr
    assert run("cdc", "verify", "log.db", "sqlite:///shop.sqlite", "--repair").returncode == 0
    assert answers(run("cdc", "verify", "log.db", "sqlite:///shop.sqlite"))[0]["differ"] == 0


def test_a_database_that_can_be_captured_as_it_is_is_told_so(run, shop):
    shop.execute("pragma journal_mode = wal")
    done = run("cdc", "check", "sqlite:///shop.sqlite")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "nothing stands in the way of a capture\n"
