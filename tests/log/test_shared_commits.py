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


def test_a_conflict_with_a_request_that_is_undone_is_none(log):
    ms.App(log, projections=[Guarded.inline()])
    assert committed(log, ("s-1", 1, None), ("s-1", 2, 0), ("s-2", 2, None)) == [ms.ConstraintViolated, 1, 2]
    assert [(each.stream, each.data["n"]) for each in log.read()] == [("s-1", 2), ("s-2", 2)]


def test_an_interrupt_of_one_request_leaves_the_others_with_answers_that_are_true(log):
    interrupts = [KeyboardInterrupt]

    def handler(db: ms.Database, runs: list[ms.Run]) -> None:
        if runs[0].events(Noted)[0].n == 1 and interrupts:
            raise interrupts.pop()

    log.inline("interrupted", Noted, handler)
    assert committed(log, ("s-1", 1, None), ("s-1", 2, 0), ("s-2", 2, None)) == [KeyboardInterrupt, 1, 2]
    assert [(each.stream, each.data["n"]) for each in log.read()] == [("s-1", 2), ("s-2", 2)]


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


def test_a_handler_whose_transaction_sqlite_has_given_up_rejects_its_own_request_alone(tmp_path):
    def handler(db: ms.Database, runs: list[ms.Run]) -> None:
        if runs[0].events(Noted)[0].n == 2:
            try:
                db.execute("insert into pictures values (zeroblob(1000000))")
            except ms.DiskFull as error:
                raise ms.Rejected("there is no room") from error

    with ms.open(tmp_path / "log.db") as log:
        log.commit(work=lambda db, receipt: db.executescript("create table pictures (bytes blob)"))
        log.inline("pictures", Noted, handler)
        connection = log.store.writer.connection
        pages = connection.execute("pragma page_count").fetchone()[0]
        connection.execute(f"pragma max_page_count = {pages + 10}")
        assert committed(log, ("s-1", 1, None), ("s-2", 2, None), ("s-3", 3, None)) == [1, ms.Rejected, 2]
