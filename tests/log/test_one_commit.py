"""Requests of one commit: each happens or is refused by itself, whatever those beside it come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import millstream as ms
from millstream.log.log import Log
from millstream.storage.base import Receipt, Request


class Joined(ms.Event, type="TogetherJoined"):
    email: str


SEEN: list[str] = []


class Members(ms.Projection):
    name = "TogetherMembers"
    schema = "create table together_members (email text primary key)"

    @ms.on
    def joined(self, event: Joined, db: ms.Database) -> None:
        SEEN.append(event.email)
        db.execute("insert into together_members (email) values (?)", (event.email,))
        if event.email == "odd":
            raise ms.UsageError("no such address")


@pytest.fixture
def log(home: str | None) -> Iterator[Log]:
    with ms.open(home) as log:
        ms.App(log, projections=[Members.inline()])
        yield log


def joins(log: Log, emails: Sequence[str], *, expect: int | None = None) -> list[Any]:
    """What becomes of one request for each, in one commit; those that happened as where they stand after the first."""
    requests = [
        Request([log.stage(f"member-{email}-{number}", [Joined(email=email)], expect=expect)])
        for number, email in enumerate(emails)
    ]
    head = log.head
    found = log.commit_all(requests)
    return [each.position - head if isinstance(each, Receipt) else type(each) for each in found]


def held(log: Log) -> set[str]:
    with log.connect() as database:
        return {row["email"] for row in database.query("select email from together_members")}


def test_one_that_fails_takes_nobody_with_it_however_often(log: Log) -> None:
    expected: set[str] = set()
    for round in range(3):
        a, b, c = f"a{round}", f"b{round}", f"c{round}"
        assert joins(log, [a, b, a, "odd", c]) == [1, 2, ms.ConstraintViolated, ms.UsageError, 3]
        expected |= {a, b, c}
        assert held(log) == expected
        assert {each.event.email for each in log.read(types=[Joined])} == expected
        assert log.version(f"member-{a}-2") == log.version("member-odd-3") == 0


def test_one_that_was_refused_before_it_did_anything_has_nobody_done_anew(log: Log) -> None:
    log.append("member-x-1", Joined(email="first"))
    SEEN.clear()
    assert joins(log, ["y", "x", "z"], expect=0) == [1, ms.VersionConflict, 2]
    assert SEEN == ["y", "z"]


def test_what_fails_alone_leaves_nothing_and_the_log_as_it_was(log: Log) -> None:
    assert joins(log, ["odd"]) == [ms.UsageError]
    assert held(log) == set()
    assert joins(log, ["a", "b"]) == [1, 2]
    assert held(log) == {"a", "b"}
    log.verify()


def test_the_same_id_twice_happens_once_also_beside_one_that_fails(log: Log) -> None:
    def request(email: str, id: str) -> Request:
        return Request([log.stage(f"member-{id}", [Joined(email=email)])], id, email.encode())

    found = log.commit_all([request("a", "1"), request("a", "1"), request("odd", "2"), request("b", "3")])
    assert found[0] == found[1]
    assert isinstance(found[2], ms.UsageError)
    assert held(log) == {"a", "b"}
    assert log.head == 2
