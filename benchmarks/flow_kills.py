"""Flows that are killed: `make bench-flow_kills`.

W1 to W4 over 5 M clicks (CLICKS), run by a process that is killed with SIGKILL fifty times (KILLS): just before a
commit, inside of its transaction, just after it, in a merge of parts, while a part is written to disk, while a state is
read, and at random times. What they have written in the end has to be, row by row and in order, what an undisturbed run
without a limit writes. MEMORY is the limit of those that are killed (2MB), so small that most of their state is on
disk.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("CORES", "0")  # As many as there are; `streams` would bind this process to one.

from polars.testing import assert_frame_equal

import millstream as ms
from millstream.streams import rooms, runner, state, store
from millstream.streams.runner import Worker
from millstream.streams.spilling import Spill
from streams import flow_of, make_clicks
from timing import folder

CLICKS = int(os.environ.get("CLICKS", 5_000_000))
KILLS = int(os.environ.get("KILLS", 50))
MEMORY = os.environ.get("MEMORY", "2MB")
WORKS = ("w1", "w2", "w3", "w4")
POINTS = (
    *("before a commit", "inside of a commit", "after a commit"),
    *("in a merge", "in a spill", "while it reads", "at random"),
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(call: Callable[..., Any], times: int, *, before: bool) -> Callable[..., Any]:
    """A function whose so-manieth call ends the process."""
    left = [times]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if not left[0] and before:
            die()
        found = call(*args, **kwargs)
        if not left[0]:
            die()
        return found

    return wrapped


def arm(point: str, times: int) -> None:
    """Have this process killed when it comes to a point for the so-manieth time."""
    match point:
        case "before a commit":
            ms.Log.commit = dying(ms.Log.commit, times, before=True)  # type: ignore[method-assign]
        case "after a commit":
            ms.Log.commit = dying(ms.Log.commit, times, before=False)  # type: ignore[method-assign]
        case "inside of a commit":
            store.Change.apply = dying(store.Change.apply, times, before=False)  # type: ignore[method-assign]
        case "in a merge":
            compact, passed = state.Parts.compact, dying(lambda frame: frame, times, before=True)

            def merging(parts: state.Parts, merge: state.Merge, **how: Any) -> state.Parts:
                # Merged, and not yet part of a state.
                return compact(parts, lambda frame: passed(merge(frame)), **how)

            state.Parts.compact = merging  # type: ignore[method-assign]
        case "in a spill":
            # Of the pieces of a part, some are written.
            rooms._write = dying(rooms._write, 5 * times, before=False)
        case "while it reads":
            runner.load = dying(runner.load, 1 + times % len(WORKS), before=False)
        case "at random":
            threading.Thread(target=lambda: (time.sleep(0.1 * times), die()), daemon=True).start()


def work(path: str, point: str, times: str, limited: str) -> None:
    """Run the flows until all is taken in, or until killed."""
    if point:
        arm(point, int(times))
    with ms.open(path) as log:
        head = log.head
        # A commit for each batch, so that there is much to be killed between.
        flows = [flow_of(each, "clicks").to(each, type=each) for each in WORKS]
        spill = Spill.beside(log, MEMORY) if limited else None
        workers = [Worker(log, flow, rows=16_384, commit_every=0, spill=spill) for flow in flows]
        busy = True
        while busy:
            more = [worker.advance(head) for worker in workers]
            busy = any(more)
        for worker in workers:
            worker.flush()
        held = [worker.progress(head) for worker in workers]
        print(f"state: {[each.memory for each in held]} bytes in memory, {[each.spilled for each in held]} on disk")
        for worker in workers:
            worker.close()


def run(path: Path, point: str = "", times: int = 0, *, limited: bool = True) -> int:
    """The exit code of a process that runs the flows."""
    command = [sys.executable, __file__, "--work", str(path), point, str(times), "limited" if limited else ""]
    return subprocess.run(command).returncode


def main() -> None:
    r = random.Random(5)
    clicks = make_clicks(CLICKS)
    with folder() as place:
        whole, killed = place / "whole.db", place / "killed.db"
        with ms.open(str(whole)) as log:
            for first in range(0, CLICKS, 16_384):
                log.append("clicks", clicks.slice(first, 16_384), type="Click")
        shutil.copy(whole, killed)
        assert run(whole, limited=False) == 0
        deaths: Counter[str] = Counter()
        ended = False
        while sum(deaths.values()) < KILLS and not ended:
            point = POINTS[sum(deaths.values()) % len(POINTS)]
            code = run(killed, point, r.randint(1, 12))
            assert code in (0, -signal.SIGKILL), f"the flows failed: {code}"
            ended = code == 0
            deaths[point] += not ended
            with ms.open(str(killed)) as log:
                print(f"{sum(deaths.values())} killed {point}, {log.head:,} events in the log", flush=True)
        assert run(killed) == 0
        with ms.open(str(whole)) as one, ms.open(str(killed)) as other:
            for each in WORKS:
                expected = one.scan(each).collect()
                assert expected.height > 1_000, f"{each} gives {expected.height} rows, which shows nothing"
                assert_frame_equal(other.scan(each).collect(), expected)
                print(f"{each}: {expected.height:,} rows, equal")
        print(f"killed {sum(deaths.values())} times: {dict(deaths)}")
        assert sum(deaths.values()) >= KILLS, "all was done before it could be killed so often"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
    else:
        main()
