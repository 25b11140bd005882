"""Commands of threads that come at the same time are decided together, and each is its caller's alone."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import millstream as ms
from millstream.cqrs.crowd import _Caller
from millstream.cqrs.deciding import Waiting

caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller")


class Counted(ms.Event, type="CrowdCounted"):
    n: int
    by: str
    thread: int


class Counter(ms.Aggregate):
    total: int = 0

    @ms.on
    def counted(self, event: Counted) -> None:
        self.total += event.n


class Count(ms.Command):
    counter: ms.Ref[Counter]
    n: int
    bad: str = ""


class Totals(ms.Projection):
    name = "CrowdTotals"
    schema = "create table totals (stream text primary key, total integer not null check (total < 1000))"

    @ms.on
    def counted(self, event: Counted, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute(
            "insert into totals values (?, ?) on conflict (stream) do update set total = totals.total + excluded.total",
            (recorded.stream, event.n),
        )


def make(log: ms.Log, also: Callable[[ms.App, Count], None] | None = None) -> ms.App:
    app = ms.App(log, projections=[Totals.inline()])

    @app.command
    def count(command: Count, counter: Counter) -> None:
        if command.bad == "rejected":
            raise ms.Rejected(f"not {command.n}")
        if command.bad == "failed":
            raise ZeroDivisionError(command.n)
        if also is not None:
            also(app, command)
        by = caller.get("nobody")
        counter.record(Counted(n=command.n, by=by, thread=threading.get_ident()))

    app.execute(Count("first", 1))  # how long its handler takes is known from here on
    return app


def together(*works: Callable[[], object]) -> list[BaseException]:
    """Run functions in threads of their own at the same time; what they have raised."""
    raised: list[BaseException] = []
    ready = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        ready.wait(30)
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return raised


def test_each_thread_gets_the_receipt_or_the_error_of_its_own_command(log: ms.Log) -> None:
    app = make(log)
    wrong: list[Any] = []

    def work(k: int) -> None:
        caller.set(f"caller {k}")
        for n in range(40):
            bad = {3: "rejected", 5: "failed"}.get(n % 7, "")
            stream, number = f"c-{k}", 2_000 if n % 7 == 6 else n
            try:
                receipt = app.execute(Count(stream, number, bad=bad))
            except ms.Rejected as error:
                ok = bad == "rejected" and f"not {n}" in str(error)
            except ZeroDivisionError as error:
                ok = bad == "failed" and error.args == (n,)
            except ms.ConstraintViolated:
                ok = number == 2_000
            else:
                event = list(log.read(stream))[-1]
                ok = receipt.version == event.version and (event.event.n, event.event.by, bad) == (n, f"caller {k}", "")
            if not ok:
                wrong.append((k, n))

    assert together(*(lambda k=k: work(k) for k in range(16))) == []  # type: ignore[misc]
    assert wrong == []
    expected = sum(n for n in range(40) if n % 7 not in (3, 5, 6))
    with log.connect() as db:
        rows = {row["stream"]: row["total"] for row in db.query("select stream, total from totals")}
    assert rows == {"first": 1, **{f"c-{k}": expected for k in range(16)}}
    events = [event.event for k in range(16) for event in log.read(f"c-{k}")]
    assert len({event.thread for event in events}) > 1


@pytest.fixture
def held(log: ms.Log, monkeypatch: pytest.MonkeyPatch) -> tuple[ms.App, Callable[[], None]]:
    """An app of which a thread leads, held up in the handler of its command; and what lets it come to its end."""
    monkeypatch.setattr("millstream.cqrs.deciding._QUICK", 1e9)
    monkeypatch.setattr("millstream.cqrs.deciding._WAITS", 1e9)
    monkeypatch.setattr("millstream.cqrs.crowd._PATIENCE", 60.0)
    entered, go = threading.Event(), threading.Event()

    def hold(app: ms.App, command: Count) -> None:
        if command.counter == "held":
            entered.set()
            assert go.wait(30)

    app = make(log, hold)
    leader = threading.Thread(target=app.execute, args=(Count("held", 1),), daemon=True)
    leader.start()
    assert entered.wait(30)

    def go_on() -> None:
        go.set()
        leader.join(30)

    return app, go_on


def test_one_thread_decides_for_those_that_wait(log: ms.Log, held: tuple[ms.App, Callable[[], None]]) -> None:
    app, go_on = held
    commits = log.head
    others = [threading.Thread(target=app.execute, args=(Count(f"o-{k}", 1),), daemon=True) for k in range(5)]
    for thread in others:
        thread.start()
    until = time.monotonic() + 30
    while len(app._crowd._queue) < 5 and time.monotonic() < until:
        time.sleep(0.001)
    go_on()
    for thread in others:
        thread.join(30)
    events = [next(iter(log.read(f"o-{k}"))) for k in range(5)]
    assert len({event.event.thread for event in events}) == 1
    assert len({event.recorded for event in events}) == 1  # one commit
    assert log.head == commits + 6


def test_handlers_that_wait_are_not_gathered_until_they_are_tried_again(
    log: ms.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.cqrs.deciding._QUICK", 1e9)
    pause = 0.005

    def wait(app: ms.App, command: Count) -> None:
        time.sleep(pause)

    app = make(log, wait)
    handler, context = app._execution.begin(Count("one", 1))
    assert app._deciding.takes(handler)
    app._deciding.decided([Waiting(handler, context) for _ in range(5)])
    assert not app._deciding.takes(handler)
    assert together(*(lambda k=k: app.execute(Count(f"c-{k}", 1)) for k in range(4))) == []  # type: ignore[misc]
    assert [log.version(f"c-{k}") for k in range(4)] == [1] * 4
    monkeypatch.setattr("millstream.cqrs.deciding._AGAIN", -1.0)
    assert app._deciding.takes(handler)


def test_who_waits_for_a_handler_that_waits_for_it_goes_alone(log: ms.Log) -> None:
    def nested(app: ms.App, command: Count) -> None:
        if command.counter.startswith("outer"):
            app.execute(Count(f"inner-{command.counter}", 1))
            other = threading.Thread(target=app.execute, args=(Count(f"beside-{command.counter}", 1),), daemon=True)
            other.start()
            other.join(30)
            assert not other.is_alive()

    app = make(log, nested)
    assert together(*(lambda k=k: app.execute(Count(f"outer-{k}", 1)) for k in range(4))) == []  # type: ignore[misc]
    names = {name for k in range(4) for name in (f"outer-{k}", f"inner-outer-{k}", f"beside-outer-{k}")}
    assert {name for name in names if log.version(name) == 1} == names


def test_a_thread_that_is_thrown_out_while_it_waits_takes_nothing_with_it(
    log: ms.Log, held: tuple[ms.App, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, go_on = held

    class Gate:
        """As a lock that is waited for until it is free; then the thread is thrown out."""

        def __init__(self, lock: Any) -> None:
            self.lock = lock

        def acquire(self, timeout: float = -1) -> bool:
            self.lock.acquire(timeout=timeout)
            raise SystemExit

        def release(self) -> None:
            self.lock.release()

    crowd = app._crowd
    heir = _Caller(*app._execution.begin(Count("heir", 1)))
    heir.waiter._gate = Gate(heir.waiter._gate)  # type: ignore[assignment]
    crowd._queue.append(heir)
    monkeypatch.setattr("millstream.cqrs.crowd.MOST", 1)  # so that it is to lead, and is not taken along
    go_on()
    with pytest.raises(SystemExit):
        crowd._leads(heir)
    assert crowd._leader is None
    assert together(lambda: app.execute(Count("after", 1))) == []
    assert (log.version("heir"), log.version("after")) == (0, 1)


def test_a_thread_inside_a_transaction_is_refused_and_nobody_else(tmp_path: Path) -> None:
    with ms.open(tmp_path / "a.db") as log:
        app = make(log)

        def inside() -> None:
            for n in range(50):
                with log.transaction() as tx:
                    if n % 2:
                        tx.db.query("select 1")
                    with pytest.raises(ms.UsageError, match="inside a transaction"):
                        app.execute(Count("inside", 1))

        def work(k: int) -> None:
            for _ in range(50):
                app.execute(Count(f"c-{k}", 1))

        assert together(inside, *(lambda k=k: work(k) for k in range(4))) == []  # type: ignore[misc]
        assert [log.version(f"c-{k}") for k in range(4)] == [50] * 4
        assert log.version("inside") == 0
