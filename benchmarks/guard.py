"""What a guard costs: an append with ``unless=`` beside a plain one, in a log of 10 M tagged events.

Give a number of events for another size: ``python benchmarks/guard.py 1000000``.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import time
from pathlib import Path

import millstream as ms
from timing import Report, folder

MARK = 0.001
"""Seconds that a guard may add to an append."""
ROUNDS = 300
GROUP = 10
"""Events of a course: it is opened, two students register, seven places are taken."""


class CourseOpened(ms.Event):
    course: int


class StudentRegistered(ms.Event):
    student: int


class Enrolled(ms.Event):
    course: int
    student: int


class TermClosed(ms.Event):
    term: int


_EACH = """
    with recursive n (i) as (select 1 union all select i + 1 from n where i < :last)
"""
_COURSE, _PLACE = f"((i - 1) / {GROUP} + 1)", f"((i - 1) % {GROUP})"
_STUDENT = (
    f"(case when {_PLACE} in (1, 2) then 2 * {_COURSE} + {_PLACE} - 2 else (i * 2654435761) % (:last / 5) + 1 end)"
)


def build(path: Path, events: int) -> None:
    """A log of so many events, each tagged with its tenant, and with its course or student or both.

    The rows are those that appends would write, but for their hashes, which nothing here reads; they are written
    by hand, in the order of each index, so that 10 M of them take a minute or two.
    """
    with ms.open(str(path)) as log:
        log.append("course-0", CourseOpened(course=0))
        log.append("student-0", StudentRegistered(student=0))
        log.append("enrolment-0", [Enrolled(course=0, student=0), TermClosed(term=0)])
    base = 4
    last = events - events % GROUP
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode = off")
    connection.execute("pragma synchronous = off")
    connection.execute("pragma cache_size = -400000")
    connection.execute("pragma temp_store = memory")
    names = ("runs_stream", "runs_kind", "runs_merged", "tags_position")
    marks = ",".join("?" * len(names))
    indexes = [row[0] for row in connection.execute(f"select sql from sqlite_master where name in ({marks})", names)]
    for name in names:
        connection.execute(f"drop index {name}")
    kinds = dict(connection.execute("select type, id from kinds"))
    streams = dict(connection.execute("select name, id from streams"))
    bind = {"last": last, "base": base}
    connection.execute("begin")
    connection.execute(
        f"{_EACH} insert into runs (position, count, stream, version, kind, recorded, format, body_hash, hash, body)"
        f" select i + :base, 1, case when {_PLACE} = 0 then {streams['course-0']} when {_PLACE} in (1, 2) then"
        f" {streams['student-0']} else {streams['enrolment-0']} end, i + 1,"
        f" case when {_PLACE} = 0 then {kinds['CourseOpened']} when {_PLACE} in (1, 2) then"
        f" {kinds['StudentRegistered']} else {kinds['Enrolled']} end,"
        " (select max(recorded) from runs), 1, zeroblob(32), zeroblob(32),"
        f" '{{\"course\":' || {_COURSE} || ',\"student\":' || {_STUDENT} || '}}' from n",
        bind,
    )
    connection.execute(
        f"{_EACH} insert into tags (tag, position) select tag, at from ("
        " select 'tenant:1' as tag, i + :base as at from n"
        f" union all select 'course:' || {_COURSE}, i + :base from n where {_PLACE} not in (1, 2)"
        f" union all select 'student:' || {_STUDENT}, i + :base from n where {_PLACE} > 0) order by tag, at",
        bind,
    )
    for sql in indexes:
        connection.execute(sql)
    connection.execute("commit")
    connection.execute("pragma journal_mode = wal")
    connection.close()


def guards(head: int) -> dict[str, ms.Matching]:
    """Guards that hold, by what is hard about them."""
    M = ms.Matching
    return {
        "a course or a student, as a decision asks": M(tags=["course:77777"], after=head)
        | M(tags=["student:4242"], after=head),
        "two rare tags, never together": M(tags=["course:77777", "student:1"]),
        "a rare tag and a frequent one, never together": M(tags=["tenant:1", "course:none"]),
        "a frequent tag near the head": M(tags=["tenant:1"], after=head),
        "a type and a frequent tag near the head": M(types=[Enrolled], tags=["tenant:1"], after=head),
        "a type near the head": M(types=[Enrolled], after=head),
        "a rare type and a frequent tag, from the beginning": M(types=[TermClosed], tags=["tenant:1"]),
    }


def guard(report: Report, events: int = 10_000_000) -> None:
    """An append with a guard beside one without, in turns, in a log of so many events."""
    with folder() as here:
        begin = time.perf_counter()
        build(here / "log.db", events)
        print(f"built in {time.perf_counter() - begin:.0f} s", flush=True)
        with ms.open(str(here / "log.db")) as log:
            event = ms.Plain("Looked", {"n": 1})
            for name, query in guards(log.head).items():
                plain, guarded = [], []
                for _ in range(ROUNDS):
                    for times, unless in ((plain, None), (guarded, query)):
                        begin = time.perf_counter()
                        log.append("audit", event, unless=unless)
                        times.append(time.perf_counter() - begin)
                base, whole = statistics.median(plain), statistics.median(guarded)
                report.row(
                    f"guard: {name}, {events / 1e6:.0f} M events",
                    f"{whole * 1e3:.2f} ms, plain {base * 1e3:.2f} ms",
                    f"< {MARK * 1e3:.0f} ms more",
                    whole - base < MARK,
                )


def main(arguments: list[str]) -> None:
    report = Report("Guards")
    guard(report, *(int(each) for each in arguments[:1]))
    print(report.markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
