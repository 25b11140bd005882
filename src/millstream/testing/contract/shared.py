"""What a log promises to several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

from ...log import Log
from .opening import Counted
from .whole import LogContract


class SharedLogContract(LogContract):
    """The contract of a store that several processes use at once. One more hook: `shared`."""

    def shared(self) -> Callable[[], Log]:
        """Hook: a picklable function that opens the log of this test in another process."""
        raise NotImplementedError

    # --- processes ------------------------------------------------------------------------------------

    def test_processes_append_side_by_side_and_a_follower_misses_nothing(self, log: Log) -> None:
        opener = self.shared()
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_append_many, args=(opener, k, 100)) for k in range(4)]
        for worker in workers:
            worker.start()
        seen = [0]
        for event in log.follow(timeout=60):
            seen.append(event.position)
            if len(seen) == 401:
                break
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert seen == list(range(401))
        assert [e.version for e in log.read("common")] == list(range(1, 401))
        log.verify()

    def test_a_killed_writer_loses_nothing_that_it_was_told_is_there(self, log: Log) -> None:
        opener = self.shared()
        context = multiprocessing.get_context("spawn")
        for round in range(3):
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_append_and_tell, args=(opener, sender))
            worker.start()
            sender.close()
            told = [receiver.recv() for _ in range(20 + 15 * round)]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
            try:
                while receiver.poll(0):
                    told.append(receiver.recv())
            except EOFError:
                pass
            positions = {e.data["n"]: e.position for e in log.read(f"w-{worker.pid}")}
            assert all(positions[n] == position for n, position in told)
            # At most the one append that was under way is there untold.
            assert len(positions) - len(told) in (0, 1)
            assert log.append("after", Counted(n=round)).position == log.head
        assert [e.position for e in log.read()] == list(range(1, log.head + 1))
        log.verify()

    def test_a_retry_by_id_after_a_crash_takes_effect_once(self, log: Log) -> None:
        opener = self.shared()
        context = multiprocessing.get_context("spawn")
        for _ in range(2):
            worker = context.Process(target=_append_with_id_and_die, args=(opener,))
            worker.start()
            worker.join(60)
            assert worker.exitcode == -signal.SIGKILL
        assert log.version("s") == 1
        assert log.append("s", Counted(n=1), id="the-one").position == 1

    def test_a_forked_child_and_its_parent_both_go_on(self, log: Log) -> None:
        log.append("s", Counted(n=0))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                log.append("child", Counted(n=1))
                status = 0 if [e.data["n"] for e in log.read("s")] == [0] else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        log.append("s", Counted(n=1))
        assert [e.position for e in log.read()] == [1, 2, 3]
        log.verify()


def _append_many(opener: Any, k: int, count: int) -> None:
    log = opener()
    for n in range(count):
        log.append("common", Counted(n=n, by=str(k)))
    log.close()


def _append_and_tell(opener: Any, sender: Any) -> None:
    log = opener()
    for n in range(1_000_000):
        sender.send((n, log.append(f"w-{os.getpid()}", Counted(n=n)).position))


def _append_with_id_and_die(opener: Any) -> None:
    log = opener()
    log.append("s", Counted(n=1), id="the-one")
    os.kill(os.getpid(), signal.SIGKILL)
