"""Archiving, trimming, restoring and compacting are killed at any moment, and no body is lost."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

import millstream as ms

WORKER = """
import sys
import millstream as ms
path, old, what = sys.argv[1:]
with ms.open(path) as log:
    print("ready", flush=True)
    while True:
        if "archive" in what:
            log.archive("clicks", to=old)
            log.archive("account-*", to=old)
        if "compact" in what:
            log.compact()
            log.compact("account-*")
        if "restore" in what:
            log.archives.restore()
        if "trim" in what:
            for left in range(950, 0, -50):
                log.trim("clicks", keep=left, by="worker")
                log.trim("account-*", keep=left // 10, by="worker")
"""


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "log.db")


def filled(path):
    with ms.open(path) as log:
        for n in range(100):
            log.append("clicks", pl.DataFrame({"n": range(n * 10, n * 10 + 10)}), type="Click")
            for account in range(3):
                log.append(f"account-{account}", ms.Plain("Deposited", {"n": n}))
        return log.verify().hash, seen(log)


def seen(log):
    return {e.position: (e.stream, e.data) for e in log.read() if e.stream[0] != "$"}


def killed(path, old, what, seconds):
    """Let a worker work for a while, and kill it."""
    worker = subprocess.Popen([sys.executable, "-c", WORKER, path, old, what], stdout=subprocess.PIPE)
    with worker:
        assert worker.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        assert worker.poll() is None
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()


@pytest.mark.parametrize("what", ["archive restore", "archive restore compact"])
def test_a_killed_archiving_loses_nothing(path, tmp_path, what):
    old = str(tmp_path / "old")
    head, before = filled(path)
    luck = random.Random(what)
    for _ in range(8):
        killed(path, old, what, luck.uniform(0.0, 0.4))
        with ms.open(path) as log:
            assert seen(log) == before
            log.verify(head=head)
            found = log.archives.verify()
            assert found.whole
    with ms.open(path) as log:
        log.archives.restore()
        for file in Path(old).rglob("*.p*"):
            os.utime(file, (0, 0))
        assert log.archives.verify(clean=True).faults == ()
        assert list(Path(old).rglob("*.p*")) == []
        assert seen(log) == before
        log.verify(head=head)


@pytest.mark.parametrize("what", ["trim", "archive trim", "trim compact"])
def test_a_killed_trimming_drops_only_what_it_tells_of(path, tmp_path, what):
    old = str(tmp_path / "old")
    head, before = filled(path)
    luck = random.Random(what)
    for _ in range(6):
        killed(path, old, what, luck.uniform(0.0, 0.1))
        with ms.open(path) as log:
            left = seen(log)
            assert left.items() <= before.items()
            trimmed = log.verify(head=head).trimmed
            assert sum(t.events for t in trimmed) == len(before) - len(left)
            assert {t.by for t in trimmed} <= {"worker"}
            acts = log.read("$retention", types="$RunsTrimmed")
            told = sum(part["events"] for act in acts for part in act.data["parts"])
            assert told == len(before) - len(left)
            for stream in ("clicks", "account-0", "account-1"):
                versions = [e.version for e in log.read(stream)]
                assert versions == list(range(log.version(stream) - len(versions) + 1, log.version(stream) + 1))
            assert log.archives.verify().whole
