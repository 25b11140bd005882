"""Commands that coroutines await at the same time are decided together, and each is answered by itself."""

import asyncio
import contextvars
import threading
import time

import pytest

import millstream as ms
from millstream.cqrs import deciding

WHO = contextvars.ContextVar("WHO", default="nobody")


class Put(ms.Event, type="gathering.Put"):
    n: int
    by: str


class Box(ms.Aggregate):
    total: int = 0

    def put(self, n: int, by: str) -> None:
        if n < 0:
            raise ms.Rejected("nothing can be taken out", field="n")
        self.record(Put(n=n, by=by))

    @ms.on
    def on_put(self, event: Put) -> None:
        self.total += event.n


class Fill(ms.Command):
    box: ms.Ref[Box]
    n: int
    wait: float = 0.0
    meet: bool = False


class Kept(ms.Projection):
    name = "GatheringKept"
    schema = "create table kept (box text, n integer not null check (n <> 13))"

    @ms.on
    def on_put(self, event: Put, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into kept values (?, ?)", (recorded.stream, event.n))


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("of the error's own text")


class Seen:
    """On which threads handlers ran."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.meeting = threading.Barrier(1)


@pytest.fixture
def always_quick(monkeypatch):
    monkeypatch.setattr(deciding, "_QUICK", 1e9)
    monkeypatch.setattr(deciding, "_WAITS", 1e9)


@pytest.fixture
def app(tmp_path):
    with ms.open(tmp_path / "log.db") as log:
        seen = Seen()
        app = ms.App(log, projections=[Kept.inline()], services=[seen])

        @app.command
        def fill(command: Fill, box: Box, seen: Seen) -> None:
            seen.threads.add(threading.get_ident())
            time.sleep(command.wait)
            if command.meet:
                seen.meeting.wait(30)
            if command.n == 99:
                raise ZeroDivisionError("of the handler's own")
            if command.n == 98:
                raise StopIteration
            if command.n == 97:
                raise Unspeakable
            box.put(command.n, WHO.get())

        app.seen = seen
        yield app


def test_each_of_many_gets_its_own_answer(app, always_quick):
    async def one(n):
        WHO.set(f"user {n}")
        try:
            receipt = await app.aexecute(Fill(f"box-{n % 7}", n), id=f"fill-{n}")
        except Exception as error:
            return type(error)
        return next(app.log.read(after=receipt.first - 1, until_position=receipt.first + 1)).event

    async def all_of_them():
        await app.aexecute(Fill("box-0", 0))  # of a handler that was never called nobody knows how long it takes
        app.seen.threads.clear()
        return await asyncio.gather(*[one(n if n != 50 else -1) for n in range(150)])

    found = asyncio.run(all_of_them())
    refused = {13: ms.ConstraintViolated, 50: ms.Rejected, 97: Unspeakable, 98: RuntimeError, 99: ZeroDivisionError}
    assert found == [refused.get(n) or Put(n=n, by=f"user {n}") for n in range(150)]
    good = [n for n in range(150) if n not in refused]
    boxes = ms.Repository(app.log, Box)
    assert sum(boxes.get(f"box-{n}").total for n in range(7)) == sum(good)
    with app.log.connect() as db:
        assert db.one("select count(*) as n, sum(n) as sum from kept") == {"n": len(good) + 1, "sum": sum(good)}
    assert len(app.seen.threads) < 10
    # The same commands with the same ids take effect no more.
    head = app.log.head
    asyncio.run(all_of_them())
    assert app.log.head == head + 1


def test_a_handler_that_waits_holds_up_nobody(app):
    app.seen.meeting = threading.Barrier(4)

    async def all_four():
        await app.aexecute(Fill("box-slow", 1, wait=0.02))
        # Each waits for the three others: on one thread they would wait for ever.
        await asyncio.gather(*[app.aexecute(Fill(f"box-{n}", 1, meet=True)) for n in range(4)])

    asyncio.run(all_four())
    assert [ms.Repository(app.log, Box).get(f"box-{n}").total for n in range(4)] == [1] * 4


def test_one_request_that_is_awaited_several_times_at_once_takes_effect_once(app, always_quick):
    async def some():
        await app.aexecute(Fill("box-a", 1))
        return await asyncio.gather(*[app.aexecute(Fill("box-a", 2), id="twice") for _ in range(20)])

    assert len({receipt.position for receipt in asyncio.run(some())}) == 1
    assert ms.Repository(app.log, Box).get("box-a").total == 3


def test_one_that_is_cancelled_leaves_the_others(app, always_quick):
    async def some():
        await app.aexecute(Fill("box-a", 1))
        waiting = [asyncio.ensure_future(app.aexecute(Fill("box-a", 1))) for _ in range(20)]
        await asyncio.sleep(0)
        waiting[7].cancel()
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = asyncio.run(some())
    assert [type(each) for each in found if not isinstance(each, ms.Receipt)] == [asyncio.CancelledError]
    assert 20 <= ms.Repository(app.log, Box).get("box-a").total <= 21


def test_conflicts_with_other_writers_are_decided_anew(app, always_quick):
    stop = threading.Event()

    def rival():
        boxes = ms.Repository(app.log, Box)
        while not stop.is_set():
            boxes.update("box-a", lambda box: box.put(1, "rival"))
            time.sleep(0.002)

    async def some():
        await app.aexecute(Fill("box-a", 0))
        await asyncio.gather(*[app.aexecute(Fill("box-a", 1000)) for _ in range(60)])

    thread = threading.Thread(target=rival)
    thread.start()
    try:
        asyncio.run(some())
    finally:
        stop.set()
        thread.join()
    events = [each.event for each in app.log.read("box-a")]
    assert sum(each.n == 1000 for each in events) == 60
    assert ms.Repository(app.log, Box).get("box-a").total == sum(each.n for each in events)


def test_all_are_told_that_the_log_was_closed(app, always_quick):
    async def some():
        await app.aexecute(Fill("box-a", 1))
        waiting = [asyncio.ensure_future(app.aexecute(Fill("box-a", 1))) for _ in range(50)]
        await asyncio.sleep(0)
        app.log.close()
        found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
        with pytest.raises(ms.LogClosed):
            await app.aexecute(Fill("box-a", 1))
        return found

    assert {type(each) for each in asyncio.run(some())} <= {ms.LogClosed, ms.Receipt}


def test_with_middleware_each_goes_through_it_by_itself(app, always_quick):
    through = []

    @app.middleware
    def noted(context, following):
        through.append(context.command.n)
        return following()

    async def some():
        await asyncio.gather(*[app.aexecute(Fill("box-a", n)) for n in range(10)])

    asyncio.run(some())
    assert sorted(through) == list(range(10))


def test_those_that_go_on_after_one_commit_are_together_in_the_next(app, always_quick):
    async def one(number):
        for n in range(10):
            await app.aexecute(Fill(f"box-{number}", n))

    async def all_of_them():
        await app.aexecute(Fill("box-a", 0))
        await asyncio.gather(*[one(number) for number in range(40)])

    asyncio.run(all_of_them())
    moments = [each.time for each in app.log.read("box-*")]
    assert len(moments) == 401
    assert len(set(moments)) < 100  # what is in one commit has one time


def test_a_loop_that_is_held_up_or_has_ended_holds_up_no_other(app, always_quick):
    held, free, answered = threading.Event(), threading.Event(), []

    async def first():
        await app.aexecute(Fill("box-a", 1))
        waiting = [asyncio.ensure_future(app.aexecute(Fill("box-a", 1))) for _ in range(5)]
        await asyncio.sleep(0)
        held.set()
        assert free.wait(30)  # nothing else goes on in this loop
        answered.extend(await asyncio.gather(*waiting))

    async def abandoned():
        task = asyncio.ensure_future(app.aexecute(Fill("box-b", 1)))
        await asyncio.sleep(0)
        assert not task.done()

    async def second():
        for n in range(10):
            await asyncio.wait_for(app.aexecute(Fill("box-c", n)), 30)

    thread = threading.Thread(target=asyncio.run, args=(first(),))
    thread.start()
    assert held.wait(30)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandoned())  # and never goes on
    asyncio.run(second())
    assert not answered
    free.set()
    thread.join()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    asyncio.run(second())
    assert len(answered) == 5
    assert ms.Repository(app.log, Box).get("box-c").total == 2 * sum(range(10))
