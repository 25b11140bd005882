"""Workers that are killed again and again, until one comes to its end; and what such a worker does."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

from millstream.log.log import Log
from millstream.streams.runner import Worker


def killed_until_done(worker: Path, *words: str, seed: int, kills: int, longest: float, rounds: int) -> int:
    """Run a worker, which says ``ready`` and ``done``; kill it up to so many times; how often it was killed.

    Args:
        longest: The longest time that it is left alone before it is killed, in seconds.
        rounds: How often it is run, at most.
    """
    r = random.Random(seed)
    killed, finished = 0, False
    for _ in range(rounds):
        process = subprocess.Popen([sys.executable, str(worker), *words], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            process.wait(r.uniform(0.0, longest) if killed < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        finished = "done" in process.stdout.read()
        process.stdout.close()
        if finished:
            break
    assert finished
    return killed


def work_off(log: Log, *workers: Worker) -> None:
    """Say ``ready``, and have workers take in all that a log holds."""
    print("ready", flush=True)
    busy = True
    while busy:
        # All of them, not up to the first that has more to do.
        more = [worker.advance(log.head) for worker in workers]
        busy = any(more)
