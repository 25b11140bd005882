"""Requests that share a commit: each fares as if it had come alone, whatever becomes of those beside it."""

from __future__ import annotations

import pytest

import millstream as ms


class Noted(ms.Event, type="SharedNoted"):
    n: int


class Guarded(ms.Projection):
    schema = """
    create table parents (id bigint primary key);
    create table children (id bigint references parents deferrable initially deferred);
    """

    @ms.on
    def noted(self, event: Noted, db: ms.Database) -> None:
        if event.n == 1:
            db.execute("insert into children values (7)")
        if event.n == 3:
            db.execute("insert into parents values (7)")


@pytest.fixture
def log(home):
    with ms.open(home) as log:
        yield log


def committed(log: ms.Log, *requests: tuple[str, int, int | None]) -> list[object]:
    """The position or the error of each of some requests that share a commit: stream, number, expected version."""
    jobs = log.store.committer.submit_all(
        [log.request(stream, Noted(n=n), expect=expect) for stream, n, expect in requests]
    )
    return [type(job.error) if job.error is not None else job.result().position for job in jobs]


def test_a_handler_of_the_log_sees_no_event_of_the_requests_behind(log):
    seen = []

    def handler(db: ms.Database, runs: list[ms.Run]) -> None:
        seen.append((db.query(f"select count(*) as n from {db.own('runs')}")[0]["n"], [run.stream for run in runs]))

    log.inline("counting", Noted, handler)
    committed(log, ("s-1", 1, None), ("s-2", 2, None), ("s-3", 3, None))
    assert seen == [(1, ["s-1"]), (2, ["s-2"]), (3, ["s-3"])]


def test_what_a_request_owes_to_a_deferred_constraint_the_next_one_does_not_pay(postgres):
    with ms.open(postgres) as log:
        ms.App(log, projections=[Guarded.inline()])
        assert committed(log, ("s-1", 1, None), ("s-2", 2, None), ("s-3", 3, None)) == [ms.ConstraintViolated, 1, 2]
