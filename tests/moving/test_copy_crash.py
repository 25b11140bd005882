"""A copy that is killed at any moment goes on where it was, and misses or doubles nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from homes import fill, rows

import millstream as ms
from millstream.log.moving import Segments, copy, open_segments, restore, switch

CHILD = """
import sys
import millstream as ms
from millstream.log.moving import Segments, copy, switch
from millstream.storage.sqlite import store

source, target, verb = sys.argv[1:]
if verb == "pages":  # small ones, so that there are many moments
    store.raw.page.__globals__["_CHUNK"] = 20
    whole = store.raw.page
    store.raw.page = lambda connection, after, until, known, state, runs, size: whole(
        connection, after, until, known, state, 40, size)
log = ms.open(source)
end = Segments(target) if target.endswith("/") else ms.open(target)
print("begun", flush=True)
if verb == "switch":
    switch(log, end)
else:
    copy(log, end)
"""


def killed(source: str, target: str, verb: str, rng: random.Random) -> bool:
    """Run a copy in a process of its own and kill it; whether that was before its end."""
    paths = os.pathsep.join(path for path in [str(Path(ms.__file__).parents[1]), *sys.path] if path)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, source, target, verb],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(rng.uniform(0.0, 0.15))
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return child.returncode == -signal.SIGKILL


@pytest.fixture
def large(tmp_path):
    path = str(tmp_path / "large.db")
    with ms.open(path) as log:
        fill(log)
        for n in range(100):
            log.commit([log.stage(f"account-{k}", ms.Plain("T", {"n": n}), tags=[f"t{k}"]) for k in range(60)])
            log.append("many", [ms.Plain("T", {"k": k}) for k in range(30)], id=f"id-{n}")
    return path


@pytest.mark.parametrize("kind", ["log", "depot"])
def test_a_copy_that_is_killed_at_random_moments_is_whole_in_the_end(large, tmp_path, kind):
    target = str(tmp_path / "depot") + "/" if kind == "depot" else str(tmp_path / "copy.db")
    rng = random.Random(7)
    deaths = [killed(large, target, "pages", rng) for _ in range(5)]
    assert any(deaths)
    with ms.open(large) as source:
        if kind == "depot":
            copy(source, Segments(target))
            with ms.open(str(tmp_path / "copy.db")) as restored:
                restore(open_segments(target), restored, verify=True)
        else:
            with ms.open(target) as copied:
                copied.verify()
                copy(source, copied, verify=True)
        assert rows(str(tmp_path / "copy.db")) == rows(large)


def test_a_switch_that_is_killed_leaves_one_home_at_most(large, tmp_path):
    target, rng = str(tmp_path / "copy.db"), random.Random(3)
    for _ in range(4):
        killed(large, target, "switch", rng)
        homes = 0
        for path in (large, target):
            if not os.path.exists(path):
                continue
            with ms.open(path) as log:
                role = log.store.raw_head().role
                homes += role is None and log.head > 0
        assert homes <= 1
    with ms.open(large) as source, ms.open(target) as copied:
        if copied.store.raw_head().role is not None or not copied.head:
            switch(source, copied)
        copied.append("a", ms.Plain("T", {}))
        with pytest.raises(ms.LogMoved):
            source.append("a", ms.Plain("T", {}))
        copied.verify(head=source.verify().hash)
