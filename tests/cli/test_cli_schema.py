"""millstream schema check."""

from __future__ import annotations

import json
import sys

import pytest

import millstream as ms

EVENTS = """
import millstream as ms

class Weighed(ms.Event, type="cli.Weighed", names=["cli.Scaled"], schema=2):
    grams: int

@ms.upcast(Weighed, since=2)
def in_grams(data):
    return {"grams": data["kilograms"] * 1000}
"""


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "shop.db")
    with ms.open(path) as log:
        log.append("a-1", [ms.Plain("cli.Weighed", {"kilograms": n}, schema=1) for n in (1, 2)])
        log.append("a-1", ms.Plain("cli.Scaled", {"grams": 5}, schema=2))
        log.append("a-1", ms.Plain("cli.Free", {"n": 1}))
    return path


@pytest.fixture
def events(tmp_path):
    """A module of event classes beside the log."""
    (tmp_path / "cli_shop_events.py").write_text(EVENTS)
    yield "cli_shop_events"
    sys.modules.pop("cli_shop_events", None)


def test_each_type_and_schema_is_told(run, path, events):
    done = run("schema", "check", path, "--import", events)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["type"], row["schema"], row["count"], row["ok"], row["reason"]) for row in found] == [
        ("cli.Free", 1, 1, 1, "no class"),
        ("cli.Scaled", 2, 1, 1, ""),
        ("cli.Weighed", 1, 2, 2, ""),
    ]


def test_what_fails_is_told_with_its_first_position_and_ends_with_one(run, path, events):
    with ms.open(path) as log:
        log.append("a-1", [ms.Plain("cli.Weighed", data, schema=1) for data in ({}, {"kilograms": 1}, {})])
    done = run("schema", "check", path, "-i", events, "-o", "json")
    assert done.returncode == 1
    [*_, last] = json.loads(done.stdout)
    assert (last["ok"], last["failed"], last["position"]) == (3, 2, 5)
    assert "KeyError: 'kilograms'" in last["reason"]
    assert "1 of 3 types and schemas" in done.stderr


def test_a_type_without_a_class_fails_only_when_that_is_asked_for(run, path):
    assert run("schema", "check", path).returncode == 0
    assert run("schema", "check", path, "--strict").returncode == 1


@pytest.mark.parametrize("name", ["cli_no_such_module", "cli_no_such.module", "", "..x"])
def test_a_module_that_is_not_there_is_an_error_of_use(run, path, name):
    done = run("schema", "check", path, "--import", name)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")


def test_reads_show_the_schema_of_data_where_it_is_not_the_first(run, path):
    lines = [json.loads(line) for line in run("read", path).stdout.splitlines()]
    assert [line.get("schema") for line in lines] == [None, None, 2, None]
