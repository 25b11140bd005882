"""Threads that were answered together go on one after the other, and none is forgotten."""

import random
import threading
import time

import pytest

import millstream as ms
from millstream.storage import line
from millstream.storage.line import Waiter, line_up, wake


def started(waiters, went, ways=None):
    def wait(each):
        way = ways[each] if ways else "waits"
        if way == "leaves":
            each.leave()
        elif way == "gives up":
            if not each.wait(0.001):
                each.leave()
        elif way == "waits on":
            if not each.wait(0.001):
                each.wait_on()
        else:
            assert each.wait(30)
        went.append(each)

    threads = [threading.Thread(target=wait, args=(each,), daemon=True) for each in waiters]
    for thread in threads:
        thread.start()
    return threads


def joined(threads):
    for thread in threads:
        thread.join(30)
    return not any(thread.is_alive() for thread in threads)


def test_they_go_on_in_turn():
    waiters, went = [Waiter() for _ in range(50)], []
    threads = started(waiters, went)
    first = line_up(waiters)
    assert first is waiters[0]
    time.sleep(0.05)
    assert went == []
    wake(first)
    assert joined(threads)
    assert set(went) == set(waiters)


def test_nobody_is_no_line():
    assert line_up([]) is None
    wake(None)


@pytest.mark.parametrize("seed", range(20))
def test_those_who_go_before_they_are_woken_are_passed_by(seed):
    r = random.Random(seed)
    waiters, went = [Waiter() for _ in range(60)], []
    ways = {each: r.choice(["waits", "waits on", "gives up", "leaves"]) for each in waiters}
    threads = started(waiters, went, ways)
    time.sleep(r.choice([0, 0.001, 0.003]))
    wake(line_up(waiters))
    if seed % 2:
        wake(line_up(waiters))
    assert joined(threads)


def test_one_who_has_waited_for_long_looks_whether_it_was_forgotten(monkeypatch):
    monkeypatch.setattr(line, "_LOOK", 0.01)
    waiters, went = [Waiter() for _ in range(3)], []
    threads = started(waiters, went, dict.fromkeys(waiters, "waits on"))
    time.sleep(0.05)
    assert went == []
    line_up(waiters)  # and nobody wakes the first
    assert joined(threads)


def test_a_caller_that_is_thrown_out_keeps_nobody_from_going_on(monkeypatch, tmp_path):
    """Whoever comes after it in the line was woken by nobody else."""
    thrown = []
    real = Waiter.wait

    def wait(self, seconds):
        if threading.current_thread().name != "unlucky" or len(thrown) > 50:
            return real(self, seconds)
        assert self._gate.acquire(timeout=seconds)
        thrown.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Waiter, "wait", wait)
    log = ms.open(str(tmp_path / "log.db"), lock_timeout=60.0)
    barrier = threading.Barrier(16)
    told = []

    def work(k):
        barrier.wait()
        for n in range(20):
            try:
                told.append(log.append(f"s-{k}", ms.Plain("T", {"n": n})).position)
            except KeyboardInterrupt:
                continue

    threads = [
        threading.Thread(target=work, args=(k,), name="unlucky" if k % 4 == 0 else f"{k}", daemon=True)
        for k in range(16)
    ]
    for thread in threads:
        thread.start()
    assert joined(threads)
    assert thrown
    assert len(told) == 16 * 20 - len(thrown)
    assert set(told) <= {e.position for e in log.read()}
    log.verify()
    log.close()
