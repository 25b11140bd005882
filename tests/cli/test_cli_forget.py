"""``millstream forget``."""

from __future__ import annotations

import json

import pytest

import millstream as ms


class Joined(ms.Event, subject="member"):
    member: str
    name: ms.Personal[str]


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "club.db")
    with ms.open(path) as log:
        log.append("member-1", Joined(member="member-1", name="Ann Smith"))
        log.append("joined", [Joined(member=f"member-{n}", name=f"Person {n}") for n in (1, 2)])
    return path


def test_a_subject_is_forgotten_and_told_of(invoke, path):
    done = invoke("forget", path, "member-1", "--yes")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {
        "subject": "member-1",
        "events": 2,
        "first": 1,
        "last": 2,
        "streams": [{"stream": "joined", "events": 1}, {"stream": "member-1", "events": 1}],
        "models": [],
    }
    assert invoke("forget", path, "member-1", "--yes").stdout == done.stdout
    with ms.open(path) as log:
        assert [e.data["name"] for e in log.read(types=[Joined])] == [ms.Erased, ms.Erased, "Person 2"]
    assert invoke("verify", path).exit_code == 0


def test_nobody_is_forgotten_unless_it_is_said_that_it_is_meant(invoke, path):
    done = invoke("forget", path, "member-1")
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    with ms.open(path) as log:
        assert next(log.read("member-1")).event.name == "Ann Smith"


def test_the_keys_may_be_elsewhere(invoke, tmp_path):
    path, keys = str(tmp_path / "club.db"), str(tmp_path / "elsewhere")
    with ms.open(path, keys=keys) as log:
        log.append("member-1", Joined(member="member-1", name="Ann Smith"))
    assert invoke("forget", path, "member-1", "--yes", "--keys", keys).exit_code == 0
    with ms.open(path, keys=keys) as log:
        assert next(log.read("member-1")).event.name is ms.Erased


def test_without_keys_for_a_log_in_postgres_nobody_is_forgotten(run, postgres):
    ms.open(postgres).close()
    done = run("forget", postgres, "member-1", "--yes")
    assert done.returncode == 2
    assert "keys" in done.stderr


def test_what_is_read_and_exported_is_plain_and_then_erased(invoke, path):
    assert json.loads(invoke("read", path, "member-1").stdout)["data"]["name"] == "Ann Smith"
    invoke("forget", path, "member-1", "--yes")
    assert json.loads(invoke("read", path, "member-1").stdout)["data"]["name"] == "[erased]"
    exported = [json.loads(line) for line in invoke("export", path).stdout.splitlines()]
    assert [line.get("personal") for line in exported] == [["name"], ["name"], ["name"], None]


@pytest.mark.parametrize(
    "words",
    [
        ["read"],
        ["tail"],
        ["export"],
        ["export", "-", "--stream", "member-1"],
        ["sql", 'select name from "member-1"'],
        ["schema check", "--output", "json"],
    ],
)
def test_what_reads_takes_keys_that_are_elsewhere(invoke, shared_home, tmp_path, words):
    keys = str(tmp_path / "elsewhere")
    with ms.open(shared_home, keys=keys) as log:
        log.append("member-1", Joined(member="member-1", name="Ann Smith"))
    command, *rest = words
    done = invoke(*command.split(), shared_home, *rest, "--keys", keys)
    assert done.exit_code == 0, done.stderr
    if command != "schema check":
        assert "Ann Smith" in done.stdout
    assert invoke(*command.split(), shared_home, *rest).exit_code != 0
