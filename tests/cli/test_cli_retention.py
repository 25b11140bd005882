"""millstream retain, trim and archive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

import millstream as ms


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "shop.db")
    with ms.open(path) as log:
        for n in range(10):
            log.append("clicks", pl.DataFrame({"n": range(n * 10, n * 10 + 10)}), type="Click")
            log.append("account-1", ms.Plain("Deposited", {"n": n}))
    return path


def rows(done):
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_rules_are_set_listed_and_removed(invoke, path):
    [rule] = rows(invoke("retain", path, "clicks", "--keep", "30", "--by", "ann"))
    assert rule == {"pattern": "clicks", "keep": "30", "archive": None, "by": "ann"}
    rows(invoke("retain", path, "account-*", "--keep", "10GB", "--archive", "old"))
    assert [r["keep"] for r in rows(invoke("retain", path))] == ["10GB", "30"]
    assert rows(invoke("retain", path, "clicks", "--off")) == [{"pattern": "clicks"}]
    assert [r["pattern"] for r in rows(invoke("retain", path))] == ["account-*"]


@pytest.mark.parametrize(
    "words",
    [
        ("retain", "shop.db", "clicks"),
        ("retain", "shop.db", "clicks", "--keep", "1", "--off"),
        ("retain", "shop.db", "--keep", "1"),
        ("retain", "shop.db", "*", "--keep", "1"),
        ("retain", "shop.db", "clicks", "--keep", "soon"),
        ("retain", "shop.db", "clicks", "--keep", "1", "--archive", "ftp://x"),
        ("trim", "shop.db", "--keep", "1"),
        ("trim", "shop.db", "*", "--keep", "1"),
        ("archive", "run", "shop.db", "clicks"),
        ("archive", "ls", "shop.db", "--to", "x"),
        ("archive", "verify", "shop.db", "clicks"),
        ("archive", "relocate", "shop.db", "--to", "x"),
        ("archive", "burn", "shop.db"),
    ],
)
def test_what_is_not_understood_is_told_and_changes_nothing(invoke, path, words):
    done = invoke(*words)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    with ms.open(path, readonly=True) as log:
        assert log.version("$retention") == 0


def test_a_trim_is_shown_before_it_is_done(invoke, path):
    invoke("retain", path, "clicks", "--keep", "30")
    plan = rows(invoke("trim", path, "--dry-run"))
    assert [(r["stream"], r["events"], r["rule"]) for r in plan] == [("clicks", 70, "keep 30")]
    assert rows(invoke("trim", path, "--by", "ann")) == plan
    assert rows(invoke("trim", path)) == []
    assert [r["events"] for r in rows(invoke("trim", path, "account-1", "--keep", "4"))] == [6]
    [found] = rows(invoke("verify", path))
    assert [(t["stream"], t["events"]) for t in found["trimmed"]] == [("account-1", 6), ("clicks", 70)]
    assert found["trimmed"][1]["by"] == "ann"


def test_an_archive_is_filled_listed_checked_moved_and_restored(invoke, path, tmp_path):
    assert rows(invoke("archive", "run", path, "clicks", "--to", "old", "--keep", "50")) == [
        {"streams": 1, "runs": 5, "events": 50}
    ]
    [file] = rows(invoke("archive", "ls", path))
    assert (file["stream"], file["rows"], file["location"]) == ("clicks", 50, str(tmp_path / "old"))
    assert rows(invoke("archive", "verify", path)) == [{"files": 1, "cleaned": 0, "faults": []}]
    shutil.move("old", "new")
    done = invoke("archive", "verify", path)
    assert done.exit_code == 1
    assert "depot-file-missing" in done.stdout
    assert "error: 1 files cannot be read" in done.stderr
    assert invoke("read", path, "clicks").exit_code == 1
    assert rows(invoke("archive", "relocate", path, "--from", "old", "--to", "new")) == [
        {"locations": [str(tmp_path / "new")]}
    ]
    assert len(rows(invoke("read", path, "clicks"))) == 100
    assert rows(invoke("verify", path))[0]["archived"] == 50
    assert rows(invoke("archive", "restore", path, "clicks")) == [{"runs": 5, "events": 50}]
    [found] = rows(invoke("archive", "verify", path, "--clean"))
    assert [fault["code"] for fault in found["faults"]] == ["orphan"]
    assert len(list(Path("new").rglob("*.parquet"))) == 1


def test_a_rule_with_an_archive_is_carried_out_by_trim_and_by_run(invoke, path):
    invoke("retain", path, "clicks", "--keep", "30", "--archive", "old")
    assert [r["events"] for r in rows(invoke("trim", path))] == [70]
    assert rows(invoke("archive", "run", path)) == [{"streams": 0, "runs": 0, "events": 0}]
    assert len(rows(invoke("read", path, "clicks"))) == 100
