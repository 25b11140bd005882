"""Process managers: each reaction once, commands once, timers by the log's clock, and making up for what failed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fulfilment import Article, Fulfilment, Order, Overdue, Paid, Place, Placed, Shipped, fulfilling

import millstream as ms
from millstream.testing import FakeClock


@pytest.fixture
def clock():
    return FakeClock("2024-01-15T10:00:00Z")


@pytest.fixture
def log(home, clock):
    with ms.open(home, clock=clock) as log:
        yield log


def eventually(true, what="it", seconds=20.0):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"{what} did not come to pass"
        time.sleep(0.01)


def types(log, stream):
    return [e.type.removeprefix("Fulfil") for e in log.read(stream)]


def at_rest(app):
    """All workers have seen all that is there."""
    eventually(lambda: all(status.behind == 0 for status in app.status()), "rest")


def test_a_process_sends_commands_as_events_come(log):
    with fulfilling(log) as app:
        app.execute(Place("order-1"), correlation="visit-1")
        eventually(lambda: types(log, "article-1") == ["Reserved"])
        log.append("payments", Paid(order="order-1"))
        eventually(lambda: types(log, "order-1") == ["Placed", "Shipped"])
    reserved = next(log.read("article-1"))
    assert reserved.correlation == "visit-1"
    assert reserved.causation == "Fulfilment-order-1:1.0"


def test_its_state_and_what_it_did_stand_in_a_stream_of_its_own(log):
    with fulfilling(log) as app:
        app.execute(Place("order-1"))
        log.append("payments", Paid(order="order-1"))
        eventually(lambda: types(log, "order-1") == ["Placed", "Shipped"])
    one, two = (e.data for e in log.read("Fulfilment-order-1"))
    assert (one["position"], one["type"], one["state"]) == (1, "FulfilPlaced", {"paid": False, "refused": ""})
    assert one["send"][0]["type"] == "Reserve"
    assert (two["type"], two["state"]["paid"], two.get("open", {})) == ("FulfilPaid", True, {})


def test_a_timer_fires_by_the_logs_clock_and_is_an_event_first(log, clock):
    with fulfilling(log) as app:
        app.execute(Place("order-1"))
        eventually(lambda: types(log, "article-1") == ["Reserved"])
        clock.advance("14m59s")
        at_rest(app)
        assert types(log, "order-1") == ["Placed"]
        clock.advance("1s")
        eventually(lambda: types(log, "order-1") == ["Placed", "Cancelled"])
        eventually(lambda: types(log, "article-1") == ["Reserved", "Released"])
        eventually(lambda: types(log, "Fulfilment-order-1") == ["ProcessReacted", "Overdue", "ProcessReacted"])


def test_a_timer_that_was_cancelled_does_not_fire(log, clock):
    with fulfilling(log) as app:
        app.execute(Place("order-1"))
        log.append("payments", Paid(order="order-1"))
        eventually(lambda: types(log, "order-1") == ["Placed", "Shipped"])
        clock.advance("1h")
        at_rest(app)
        time.sleep(0.5)  # two looks at the timers
    assert "FulfilOverdue" not in [e.type for e in log.read()]


def test_timers_outlast_the_program_and_fire_at_the_next_start(log, clock):
    with fulfilling(log) as app:
        app.execute(Place("order-1"))
        eventually(lambda: types(log, "Fulfilment-order-1") == ["ProcessReacted"])
    clock.advance("15m")
    with fulfilling(log):
        eventually(lambda: types(log, "order-1") == ["Placed", "Cancelled"])


def test_a_timer_event_that_comes_after_the_cancel_is_passed_over(log, clock):
    app = fulfilling(log)
    with app:
        app.execute(Place("order-1"))
        eventually(lambda: types(log, "article-1") == ["Reserved"])
    # Both are in the log before the process reacts again: the payment first.
    log.append("payments", Paid(order="order-1"))
    log.append("Fulfilment-order-1", Overdue(), metadata={"timer": "Fulfilment-order-1:1.t0"})
    with app:
        eventually(lambda: types(log, "order-1") == ["Placed", "Shipped"])
        at_rest(app)
    assert types(log, "Fulfilment-order-1") == ["ProcessReacted", "Overdue", "ProcessReacted"]


def test_a_command_that_is_refused_is_told_to_the_process(log):
    with fulfilling(log) as app:
        app.execute(Place("order-1", "article-none"))
        eventually(lambda: types(log, "order-1") == ["Placed", "Cancelled"])
    assert types(log, "Fulfilment-order-1") == ["ProcessReacted", "CommandRejected", "ProcessReacted"]
    rejected = list(log.read("Fulfilment-order-1"))[1].event
    assert (rejected.command, rejected.reason) == ("Reserve", "there is none left")
    assert log.version("article-none") == 0


def test_what_took_effect_is_made_up_for_when_a_later_step_fails(log):
    with fulfilling(log) as app:
        app.execute(Place("order-stuck"))
        log.append("payments", Paid(order="order-stuck"))
        eventually(lambda: types(log, "order-stuck") == ["Placed", "Cancelled"])
    assert types(log, "article-1") == ["Reserved", "Released"]
    assert ms.Repository(log, Article).get("article-1").reserved == 0
    assert ms.Repository(log, Order).get("order-stuck").cancelled


def test_events_that_start_nothing_and_those_of_ended_processes_are_passed_over(log, clock):
    with fulfilling(log) as app:
        log.append("payments", Paid(order="order-9"))
        app.execute(Place("order-1", "article-none"))
        eventually(lambda: types(log, "order-1") == ["Placed", "Cancelled"])
        log.append("payments", Paid(order="order-1"))
        at_rest(app)
    assert log.version("Fulfilment-order-9") == 0
    assert types(log, "order-1") == ["Placed", "Cancelled"]


def test_a_new_process_does_not_act_on_the_past_unless_told_to(log):
    log.append("order-1", Placed())

    class Historian(ms.Process, history=True):
        @ms.on
        def placed(self, event: Placed) -> None: ...

    with fulfilling(log) as app:
        app.execute(Place("order-2"))
        eventually(lambda: log.version("Fulfilment-order-2") == 1)
        assert log.version("Fulfilment-order-1") == 0
    with ms.App(log, processes=[Historian]):
        eventually(lambda: log.version("Historian-order-2") == 1)
        assert log.version("Historian-order-1") == 1


def test_a_handler_that_raises_stops_its_process_there_and_nothing_else(log):
    class Picky(ms.Process):
        seen: int = 0

        @ms.on
        def placed(self, event: Placed) -> None:
            if event.article == "bad":
                raise ValueError("not this one")
            self.seen += 1

    app = fulfilling(log)
    picky = ms.App(log, processes=[Picky])
    with app, picky:
        app.execute(Place("order-1"))
        app.execute(Place("order-2", "bad"))
        app.execute(Place("order-3"))
        eventually(lambda: picky.status()[0].state is ms.State.FAILED)
        assert "ValueError: not this one" in picky.status()[0].error
        assert (log.version("Picky-order-1"), log.version("Picky-order-2")) == (1, 0)
        eventually(lambda: log.version("Fulfilment-order-3") == 1)
    Picky.placed.__code__ = (lambda self, event: None).__code__  # mended
    with picky:
        eventually(lambda: log.version("Picky-order-3") == 1)


def test_a_command_without_a_handler_stops_it(log):
    class Sending(ms.Process):
        @ms.on
        def placed(self, event: Placed) -> None:
            self.send(Nobody(1))

    class Nobody(ms.Command):
        n: int

    app = ms.App(log, processes=[Sending])
    with app:
        log.append("order-1", Placed())
        eventually(lambda: app.status()[0].state is ms.State.FAILED)
        assert "no handler for the command Nobody" in app.status()[0].error


class Note(ms.Command):
    order: ms.Ref[Order]


class Noting(ms.Process):
    @ms.on
    def placed(self, event: Placed) -> None:
        self.send(Note("order-1"))


def test_a_command_whose_sql_is_wrong_stops_it_with_the_reason(log):
    app = ms.App(log, processes=[Noting])

    @app.command
    def note(command: Note, db: ms.Database) -> None:
        db.execute("insert into nowhere values (?)", (command.order,))

    with app:
        log.append("order-1", Placed())
        eventually(lambda: app.status()[0].state is ms.State.FAILED)
        assert "process 'Noting' stopped at position" in app.status()[0].error
        assert "nowhere" in app.status()[0].error
        assert app.status()[0].restarts == 0


def test_a_command_that_met_a_deadlock_is_sent_again(log):
    app = ms.App(log, processes=[Noting])
    met = []

    @app.command
    def note(command: Note, order: Order) -> None:
        met.append(command.order)
        if len(met) == 1:
            raise ms.Deadlocked("deadlock detected")
        order.record(Shipped())

    with app:
        log.append("order-1", Placed())
        eventually(lambda: types(log, "order-1") == ["Placed", "Shipped"])
    assert len(met) == 2


def test_a_timer_of_a_process_whose_stream_was_closed_is_set_aside_and_the_others_go_on(log, clock):
    with fulfilling(log) as app:
        app.execute(Place("order-1"))
        app.execute(Place("order-2"))
        eventually(lambda: types(log, "article-1") == ["Reserved", "Reserved"])
        at_rest(app)
        log.close_stream("Fulfilment-order-1")
        clock.advance("15m")
        eventually(lambda: types(log, "order-2") == ["Placed", "Cancelled"])
        assert types(log, "order-1") == ["Placed"]
        assert [status.restarts for status in app.status()] == [0] * len(app.status())
        with log.connect() as db:
            assert db.query(f"select * from {db.own('millstream_timers')}") == []
            (aside,) = db.query(f"select name, position, stream, error from {db.own('millstream_failures')}")
    assert aside["name"] == "timer:Fulfilment-order-1:1.t0"
    assert (aside["position"], aside["stream"]) == (1, "Fulfilment-order-1")
    assert "is closed" in aside["error"]


def test_a_process_whose_stream_was_closed_has_ended_and_the_others_go_on(log):
    with fulfilling(log) as app:
        app.execute(Place("order-1"))
        eventually(lambda: types(log, "article-1") == ["Reserved"])
        log.close_stream("Fulfilment-order-1")
        log.append("payments", Paid(order="order-1"))
        app.execute(Place("order-2"))
        log.append("payments", Paid(order="order-2"))
        eventually(lambda: types(log, "order-2") == ["Placed", "Shipped"])
        assert types(log, "order-1") == ["Placed"]
        assert all(status.state is ms.State.RUNNING for status in app.status())


def test_what_cannot_be_a_process_is_refused(log):
    with pytest.raises(ms.UsageError, match="hides what every process has"):

        class Hiding(ms.Process):
            ended: bool = False

    class Empty(ms.Process):
        pass

    class Asking(ms.Process):
        @ms.on
        def placed(self, event: Placed, db: ms.Database) -> None: ...

    for bad in (Empty, Asking):
        with pytest.raises(ms.InvalidHandler):
            ms.App(log, processes=[bad])
    with pytest.raises(ms.UsageError):
        ms.App(log, processes=[Placed])
    with pytest.raises(ms.DuplicateHandler):
        ms.App(log, processes=[Fulfilment, Fulfilment])


def test_class_options_of_a_process_that_it_has_not_or_that_do_not_fit_are_told(log):
    with pytest.raises(ms.UsageError, match="Misspelt: a process has no class option start="):

        class Misspelt(ms.Process, start=[Placed]):
            pass

    with pytest.raises(ms.UsageError, match="Alone: starts=FulfilPlaced is no list"):

        class Alone(ms.Process, starts=Placed):
            pass

    class Deaf(ms.Process, starts=[Paid]):
        @ms.on
        def placed(self, event: Placed) -> None: ...

    with pytest.raises(ms.InvalidHandler, match="'FulfilPaid' starts it, and none of its handlers takes that"):
        ms.App(log, processes=[Deaf])


ORDERS = 60


def test_each_reaction_and_each_command_happens_once_though_the_program_is_killed(shared_home):
    folder = str(Path(__file__).parent)
    with ms.open(shared_home) as log:
        app = fulfilling(log)
        for number in range(ORDERS):
            app.execute(Place(f"order-{number}" if number % 5 else f"order-stuck{number}"))
            log.append("payments", Paid(order=f"order-{number}" if number % 5 else f"order-stuck{number}"))
        before = log.head
        kills = 0
        while log.version("payments") and app.status()[0].behind:
            with subprocess.Popen(
                [sys.executable, f"{folder}/fulfilment.py", shared_home],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={"PYTHONPATH": ":".join([*sys.path, folder])},
            ) as process:
                process.stdout.readline()
                reached = log.head
                # At another moment each time: after some more events than the last time.
                eventually(lambda r=reached, k=kills: log.head >= r + 10 + 7 * k or app.status()[0].behind == 0)
                process.kill()
            kills += 1
        assert kills >= 2
        with app:
            at_rest(app)
            eventually(lambda: finished(log))
        found = Counter((e.data["position"], e.stream) for e in log.read("Fulfilment-*", types=["ProcessReacted"]))
        assert set(found.values()) == {1}
        assert len([p for p, _ in found if p <= before]) == 2 * ORDERS
        for number in range(ORDERS):
            if number % 5:
                assert types(log, f"order-{number}") == ["Placed", "Shipped"]
            else:
                assert types(log, f"order-stuck{number}") == ["Placed", "Cancelled"]
        moved = Counter((e.type, e.data["order"]) for e in log.read("article-1"))
        assert set(moved.values()) == {1}
        assert moved.total() == ORDERS + ORDERS // 5


def finished(log):
    return sum(1 for _ in log.read(types=["FulfilShipped", "FulfilCancelled"])) == ORDERS


class Hinted(ms.Event, type="ProcessHinted"):
    n: int = 0


class Tally(ms.Process):
    total: int = 0

    @ms.on
    def hinted(self, event: Hinted) -> None:
        self.total += event.n


def test_a_process_that_is_dropped_from_memory_has_lost_nothing(log, monkeypatch):
    monkeypatch.setattr("millstream.cqrs.reactor._KEPT", 2)
    app = ms.App(log, processes=[Tally])
    with app:
        for stream in ("a", "b"):
            log.append(stream, Hinted(n=1))
        eventually(lambda: len(list(log.read("Tally-*"))) == 2)
    # In one commit: a is changed, c is new, and a is changed again.
    for stream in ("a", "c", "a", "a", "d", "a"):
        log.append(stream, Hinted(n=1))
    with app:
        eventually(lambda: len(list(log.read("Tally-*"))) == 8)
    assert [e.data["state"]["total"] for e in log.read("Tally-a")] == [1, 2, 3, 4, 5]


def test_an_event_whose_metadata_speaks_of_a_timer_is_an_event_like_any(log):
    with ms.App(log, processes=[Tally]) as app:
        log.append("a", Hinted(n=1), metadata={"timer": ["of", "mine"]})
        log.append("a", Hinted(n=2), metadata={"timer": "t"})
        eventually(lambda: len(list(log.read("Tally-*"))) == 2)
        assert app.status()[0].error is None
    assert [e.data["state"]["total"] for e in log.read("Tally-a")] == [1, 3]


def test_a_key_that_needs_a_process_is_refused_when_the_class_is_made():
    with pytest.raises(ms.InvalidHandler, match="key_of cannot be a handler: it is no class method") as raised:

        class Keyless(ms.Process):
            def key_of(self, recorded: ms.Recorded) -> str | None:  # type: ignore[override]
                return recorded.stream

    assert "@classmethod" in raised.value.hint

    class Static(ms.Process):
        @staticmethod
        def key_of(recorded: ms.Recorded) -> str | None:  # type: ignore[override]
            return recorded.stream
