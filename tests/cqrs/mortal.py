"""Processes that are killed: at random moments, or at the n-th call of something, right before it or after it.

Run as a program with the names of a module and of a function in it, a seed, how many processes are to die, how many
work at a time, and words for the function: each process is forked, and calls it to work until it is killed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

POINTS = (
    "millstream.log.log:Log.commit",
    "millstream.cqrs.lease:Leases._take",
    "millstream.cqrs.lease:Leases.release",
    "millstream.cqrs.delivery:Delivery._try",
    "millstream.cqrs.delivery:Delivery._note",
    "millstream.cqrs.delivery:Delivery._after",
    "millstream.cqrs.delivery:take",
    "millstream.cqrs.delivery:advance",
    "millstream.cqrs.reactor:Reactor._commit",
    "millstream.cqrs.reactor:Reactor._done",
    "millstream.cqrs.reactor:Reactor._advanced",
    "millstream.cqrs.reactor:take",
    "millstream.cqrs.reactor:advance",
    "millstream.cqrs.timers:keep",
    "millstream.cqrs.timers:drop",
    "millstream.cqrs.timers:fire",
    "millstream.app.write:WriteSide._by_process",
    "millstream.cqrs.places:OwnFile.transact",
    "millstream.cqrs.places:InLog.transact",
    "millstream.cqrs.places:OnServer.transact",
    "millstream.cqrs.places:_Open.transact",
    "millstream.cqrs.homes:Home.remove",
    "millstream.cqrs.building:Build._begin",
    "millstream.cqrs.building:Build._swap",
    "millstream.cqrs.building:fence",
    "millstream.cqrs.building:hand_over",
    "millstream.cqrs.building:settle",
    "millstream.cqrs.building:_taken",
    "millstream.cqrs.versions:swap",
    "millstream.cqrs.versions:forget",
    "millstream.cqrs.versions:drop_aside",
    "millstream.cqrs.follower:roll_back",
    "millstream.cqrs.keeping:advance",
)
"""What a process may die at."""

_LONGEST = 0.7
"""Who has not come to its point after so many seconds is killed all the same."""


def dying(
    module: str, function: str, *words: str, seed: int, kills: int, at_once: int, points: Sequence[str] = ("",)
) -> subprocess.Popen[str]:
    """Have processes call a function of a test module, and die.

    Args:
        points: What the names of the points begin with at which they may die.
    """
    paths = [str(Path(__file__).parent), *sys.path]
    given = [module, function, str(seed), str(kills), str(at_once), ",".join(points), *words]
    return subprocess.Popen(
        [sys.executable, __file__, *given],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
    )


def all_died(driver: subprocess.Popen[str], kills: int) -> None:
    """Wait until they have died, as they were to, and none ended by itself."""
    told, _ = driver.communicate()
    assert driver.returncode == 0, told
    assert int(told) == kills


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)


def _doom(point: str, calls: int, before: bool) -> None:
    """Have this process die at a call."""
    module, _, path = point.partition(":")
    place: Any = import_module(module)
    *owners, name = path.split(".")
    for each in owners:
        place = getattr(place, each)
    whole: Callable[..., Any] = getattr(place, name)
    left = calls

    def mortal(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if before and left == 0:
            _die()
        done = whole(*args, **kwargs)
        if left == 0:
            _die()
        return done

    setattr(place, name, mortal)


def _begun(
    work: Callable[..., object], words: Sequence[str], r: random.Random, points: Sequence[str]
) -> tuple[int, float]:
    """Fork a process; its number, and when it is to be killed at the latest."""
    doom = (r.choice(points), r.choice([1, 1, 2, 3, 5, 8, 13]), r.random() < 0.5) if r.random() < 0.6 else None
    longest = _LONGEST if doom is not None else r.uniform(0.0, 0.5)
    pid = os.fork()
    if pid == 0:
        try:
            if doom is not None:
                _doom(*doom)
            work(*words)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    return pid, time.monotonic() + longest


def _drive(module: str, function: str, seed: str, kills: str, at_once: str, begins: str, *words: str) -> None:
    work = getattr(import_module(module), function)
    points = [point for point in POINTS if point.startswith(tuple(begins.split(",")))]
    r = random.Random(int(seed))
    alive: dict[int, float] = {}
    died = begun = 0
    try:
        while died < int(kills):
            while len(alive) < int(at_once) and begun < int(kills):
                pid, until = _begun(work, words, r, points)
                alive[pid] = until
                begun += 1
            time.sleep(0.002)
            for pid, until in list(alive.items()):
                if time.monotonic() >= until:
                    os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    del alive[pid]
                    died += 1
                    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "one ended by itself"
    finally:
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
    print(died)


if __name__ == "__main__":
    _drive(*sys.argv[1:])
