"""Processes and outboxes: of several workers one is at work, another takes over, and nobody does a thing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from children import begun
from fulfilment import Fulfilment, Paid, Place, fulfilling
from kept import eventually

import millstream as ms
from millstream.cqrs import lease, timers
from millstream.cqrs.lease import Leases
from millstream.log.checkpoints import take
from millstream.testing import FakeClock


class Tell(ms.Command):
    n: int


def posting(log: ms.Log, out: Path, name: str, *, slow: int = -1) -> ms.App:
    """Writes down who has sent what; one message takes two seconds."""

    def send(message: ms.Message) -> None:
        if message.body == slow:
            (out.parent / "slow").touch()
            time.sleep(2)
        with out.open("a") as file:
            file.write(f"{name} {message.body} {message.id}\n")

    app = ms.App(log, outboxes=[ms.Outbox("mail", send)])

    @app.command
    def tell(command: Tell, mail: ms.Outbox) -> None:
        mail.post(command.n, key="k")

    return app


def sent(out: Path) -> list[tuple[str, int]]:
    """Who has sent what, in the order in which it was done."""
    words = [line.split() for line in out.read_text().splitlines()] if out.exists() else []
    assert len({id for _, _, id in words}) == len({n for _, n, _ in words}), "a message has two ids"
    return [(name, int(n)) for name, n, _ in words]


@contextmanager
def worker(home: str, making: str) -> Iterator[subprocess.Popen[str]]:
    """An app in a process of its own, whose first worker holds what it is to hold."""
    child = begun(f"""
import millstream as ms
from pathlib import Path
from test_one_holder import *
app = {making.format(log=f"ms.open({home!r})")}
app.start()
while app.status()[0].state is not ms.State.RUNNING: pass
print("running", flush=True)
app.run()
""")
    try:
        yield child
    finally:
        child.send_signal(signal.SIGCONT)
        child.kill()
        child.wait()


def state(app: ms.App) -> ms.State:
    return app.status()[0].state


def pause(child: subprocess.Popen[str], log: ms.Log, name: str) -> None:
    """Have a process stand still, right after a beat: not in the middle of a commit, for which all would wait."""
    leases = Leases(log)
    first = leases.row(name)
    eventually(lambda: leases.row(name) != first)
    time.sleep(0.1)
    child.send_signal(signal.SIGSTOP)


def test_of_two_workers_of_an_outbox_one_sends_and_the_other_takes_over_when_it_is_killed(
    shared_home: str, tmp_path: Path
) -> None:
    out = tmp_path / "sent.txt"
    with ms.open(shared_home) as log, worker(shared_home, f"posting({{log}}, Path({str(out)!r}), 'child')") as child:
        with posting(log, out, "parent") as app:
            app.execute_all([Tell(n) for n in range(100)])
            eventually(lambda: len(sent(out)) == 100 and app.status()[0].behind == 0)
            assert sent(out) == [("child", n) for n in range(100)]
            assert state(app) is ms.State.STANDBY
            child.kill()
            child.wait()
            app.execute(Tell(100))
            eventually(lambda: len(sent(out)) == 101, seconds=5)
            assert sent(out)[-1] == ("parent", 100)
            assert state(app) is ms.State.RUNNING


def test_a_worker_that_stops_leaves_its_outbox_to_the_next_one_at_once_and_nothing_is_repeated(
    shared_home: str, tmp_path: Path
) -> None:
    out = tmp_path / "sent.txt"
    with ms.open(shared_home) as log, worker(shared_home, f"posting({{log}}, Path({str(out)!r}), 'child')") as child:
        with posting(log, out, "parent") as app:
            app.execute_all([Tell(n) for n in range(400)])
            eventually(lambda: len(sent(out)) > 20)
            child.terminate()
            child.wait()
            eventually(lambda: len(sent(out)) == 400)
            assert [n for _, n in sent(out)] == list(range(400))


def test_a_worker_that_was_paused_sends_again_at_most_the_message_at_hand_and_stands_by(
    shared_home: str, tmp_path: Path
) -> None:
    out = tmp_path / "sent.txt"
    making = f"posting({{log}}, Path({str(out)!r}), 'child', slow=3)"
    with ms.open(shared_home) as log, worker(shared_home, making) as child:
        with posting(log, out, "parent") as app:
            app.execute_all([Tell(n) for n in range(30)])
            eventually(lambda: (tmp_path / "slow").exists())
            pause(child, log, "outbox:mail")
            eventually(lambda: len(sent(out)) == 33)
            # What the child had sent, and had not noted, is sent again.
            assert sent(out) == [("child", n) for n in range(3)] + [("parent", n) for n in range(30)]
            child.send_signal(signal.SIGCONT)
            eventually(lambda: len(sent(out)) == 34)
            app.execute(Tell(30))
            eventually(lambda: len(sent(out)) == 35)
            time.sleep(0.5)
            assert sent(out)[33:] == [("child", 3), ("parent", 30)]
            assert state(app) is ms.State.RUNNING
        # Now that this one has let go, the other has it again.
        app.execute(Tell(31))
        eventually(lambda: sent(out)[-1] == ("child", 31))


ORDERS = [f"order-{n}" if n % 4 else f"order-stuck{n}" for n in range(40)]


def place(app: ms.App, orders: list[str]) -> None:
    for order in orders:
        app.execute(Place(order))
        app.log.append("payments", Paid(order=order))


def all_came_to_their_end(log: ms.Log, orders: list[str]) -> bool:
    return sum(1 for _ in log.read(types=["FulfilShipped", "FulfilCancelled"])) == len(orders)


def check_once(log: ms.Log, orders: list[str]) -> None:
    reactions = Counter((e.data["position"], e.stream) for e in log.read("Fulfilment-*", types=["ProcessReacted"]))
    assert set(reactions.values()) == {1}
    for order in orders:
        last = "FulfilCancelled" if "stuck" in order else "FulfilShipped"
        assert [e.type for e in log.read(order)] == ["FulfilPlaced", last]
    moved = Counter((e.type, e.data["order"]) for e in log.read("article-1"))
    assert set(moved.values()) == {1}
    assert moved.total() == len(orders) + sum("stuck" in order for order in orders)


def test_of_two_workers_of_a_process_one_reacts_and_the_other_takes_over_when_it_is_killed(shared_home: str) -> None:
    with ms.open(shared_home) as log, worker(shared_home, "fulfilling({log})") as child:
        with fulfilling(log) as app:
            place(app, ORDERS[:20])
            eventually(lambda: all_came_to_their_end(log, ORDERS[:20]))
            assert state(app) is ms.State.STANDBY
            place(app, ORDERS[20:30])
            child.kill()
            child.wait()
            place(app, ORDERS[30:])
            eventually(lambda: state(app) is ms.State.RUNNING, seconds=5)
            eventually(lambda: all_came_to_their_end(log, ORDERS))
        check_once(log, ORDERS)


def test_a_worker_of_a_process_that_was_paused_does_nothing_twice_and_stands_by(shared_home: str) -> None:
    with ms.open(shared_home) as log, worker(shared_home, "fulfilling({log})") as child:
        with fulfilling(log) as app:
            place(app, ORDERS[:10])
            eventually(lambda: all_came_to_their_end(log, ORDERS[:10]))
            pause(child, log, "process:Fulfilment")
            place(app, ORDERS[10:30])
            eventually(lambda: all_came_to_their_end(log, ORDERS[:30]))
            child.send_signal(signal.SIGCONT)
            place(app, ORDERS[30:])
            eventually(lambda: all_came_to_their_end(log, ORDERS))
            assert state(app) is ms.State.RUNNING
        check_once(log, ORDERS)
        place(app, ["order-last"])
        eventually(lambda: all_came_to_their_end(log, [*ORDERS, "order-last"]))


def test_timers_are_fired_by_whoever_took_over_and_not_by_the_one_before(log: ms.Log) -> None:
    clock = FakeClock("2024-01-15T10:00:00Z")
    with ms.open(log.path, clock=clock) as one, ms.open(log.path, clock=clock) as two:
        with fulfilling(two) as next_one:
            with fulfilling(one) as app:
                eventually(lambda: state(app) is ms.State.RUNNING or state(next_one) is ms.State.RUNNING)
                for n in range(5):
                    app.execute(Place(f"order-{n}"))
                eventually(lambda: two.version("article-1") == 5)
            clock.advance("15m")
            eventually(lambda: all_came_to_their_end(two, ["order"] * 5))
        fired = Counter(e.stream for e in two.read("Fulfilment-*", types=["FulfilOverdue"]))
        assert fired == {f"Fulfilment-order-{n}": 1 for n in range(5)}


def test_who_was_taken_over_fires_no_timer_any_more(tmp_path: Path) -> None:
    clock = FakeClock("2024-01-15T10:00:00Z")
    with ms.open(str(tmp_path / "log.db"), clock=clock) as log:
        app = fulfilling(log)
        with app:
            app.execute(Place("order-1"))
            eventually(lambda: log.version("article-1") == 1)
        clock.advance("15m")
        log.commit(work=lambda db, receipt: take(db, "process:Fulfilment"))  # another one does
        with pytest.raises(ms.ConsumerFenced):
            timers.fire(log, "Fulfilment", app._reactors["Fulfilment"]._check)
        assert [e.type for e in log.read("Fulfilment-order-1")] == ["ProcessReacted"]
        with app:
            eventually(lambda: all_came_to_their_end(log, ["order-1"]))


def test_of_two_apps_of_a_log_in_memory_one_is_at_work_and_the_other_takes_over(tmp_path: Path) -> None:
    out = tmp_path / "sent.txt"
    with ms.open() as log:
        first, second = posting(log, out, "first"), posting(log, out, "second")
        with first:
            eventually(lambda: state(first) is ms.State.RUNNING)
            with second:
                first.execute_all([Tell(n) for n in range(20)])
                eventually(lambda: len(sent(out)) == 20)
                assert (state(first), state(second)) == (ms.State.RUNNING, ms.State.STANDBY)
                first.stop()
                second.execute(Tell(20))
                eventually(lambda: len(sent(out)) == 21)
        assert sent(out) == [*(("first", n) for n in range(20)), ("second", 20)]


def test_of_a_parent_and_its_child_one_sends(log: ms.Log, tmp_path: Path) -> None:
    out = tmp_path / "sent.txt"
    with posting(log, out, "one") as app:
        app.execute(Tell(0))
        eventually(lambda: len(sent(out)) == 1)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            try:
                with app:
                    eventually(lambda: state(app) is ms.State.STANDBY)
                    app.execute(Tell(1))
                    eventually(lambda: len(sent(out)) == 2)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert state(app) is ms.State.RUNNING
    assert sent(out) == [("one", 0), ("one", 1)]


def test_a_process_class_that_fails_is_left_to_another_worker_whose_code_may_be_mended(log: ms.Log) -> None:
    class Broken(Fulfilment):
        name = "Fulfilment"

        @ms.on
        def on_paid(self, event: Paid, recorded: ms.Recorded) -> None:
            raise ValueError("not mended")

    broken = ms.App(log, processes=[Broken])
    with broken, fulfilling(log) as mended:
        place(mended, ["order-1"])
        eventually(lambda: all_came_to_their_end(log, ["order-1"]))
    check_once(log, ["order-1"])


def test_a_lease_that_nobody_has_shown_for_long_is_shown_before_what_cannot_be_rolled_back(
    log: ms.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(lease, "clock", lambda: now[0])
    monkeypatch.setattr(lease, "BEAT", 3600.0)
    one, two = Leases(log), Leases(log)

    class Never:
        def is_set(self) -> bool:
            return False

        def wait(self, timeout: float | None = None) -> bool:
            return False

    held = one.acquire("work", Never(), lambda paused: None)
    assert held is not None
    before = one.row("work")
    assert held.is_ours()
    assert one.row("work") == before, "a beat was written that nobody needed"
    now[0] += 2.5  # as if the machine had slept
    assert held.is_ours()
    shown = one.row("work")
    assert shown is not None
    assert before is not None
    assert shown.beat == before.beat + 1
    assert two._take("work", shown)
    assert held.is_ours(), "there was a beat just now"
    now[0] += 2.5
    assert not held.is_ours()
    assert held.lost.is_set()


def test_a_process_of_another_container_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_namespace", lambda: "pid:[1]")
    other = lease._holder()
    monkeypatch.setattr(lease, "_namespace", lambda: "pid:[2]")
    monkeypatch.setattr(os, "kill", lambda pid, signal: (_ for _ in ()).throw(ProcessLookupError()))
    assert lease.is_dead(lease._holder())
    assert not lease.is_dead(other)
    assert lease.is_holder(other)
