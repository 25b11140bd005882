from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from killing import killed_until_done
from polars.testing import assert_frame_equal
from referee import clicks
from sharing_worker import FLOW

import millstream as ms
from millstream.streams import MissingColumn, stream, tumbling
from millstream.streams.sharing.coordinator import SharedWorker

WORKER = Path(__file__).with_name("sharing_worker.py")
ROWS = clicks(21, 3_000, minutes=60, late=4)


def fill(log: ms.Log, size: int = 60) -> None:
    for start in range(0, ROWS.height, size):
        log.append("clicks", ROWS.slice(start, size), type="Click")


def given(log: ms.Log) -> list[pl.DataFrame]:
    return [log.scan(name).select(pl.exclude("^_.*$")).collect() for name in ("busy", "busy-late")]


@pytest.fixture(scope="module")
def whole() -> list[pl.DataFrame]:
    with ms.open() as log:
        fill(log)
        ms.run(log, FLOW, until="head")
        frames = given(log)
    assert all(frame.height for frame in frames)
    return frames


def same(found: list[pl.DataFrame], whole: list[pl.DataFrame]) -> None:
    for mine, expected in zip(found, whole, strict=True):
        assert_frame_equal(mine, expected)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_processes_share_a_flow_and_one_process_goes_on_with_it(shared_home: str, whole: list[pl.DataFrame]) -> None:
    with ms.open(shared_home) as log:
        fill(log)
        with ms.Running(log, FLOW, processes=2, memory="2KB") as running:
            assert running.wait(log.head, timeout=60)
            progress = running.progress()[running.flows.popitem()[0]]
            assert progress.spilled > 0
            assert progress.memory + progress.spilled > 2_000
        same(given(log), whole)
        more = ROWS.head(200).with_columns(pl.col("ts") + pl.duration(hours=2))
        log.append("clicks", more, type="Click")
        ms.run(log, FLOW, until="head")
        grown = given(log)
    assert grown[0].height > whole[0].height


def test_a_live_flow_in_processes_tells_its_progress_and_pauses(tmp_path: Path, whole: list[pl.DataFrame]) -> None:
    with ms.open(tmp_path / "log.db") as log:
        fill(log, 1_500)
        running = ms.streams.start(log, FLOW, processes=2)
        assert running.wait(2, timeout=30)
        assert running.pause()
        seen = running.progress()["busy/SharedBusy"]
        assert seen.rows == {"clicks": ROWS.height}
        assert sum(seen.held) > 0
        log.append("clicks", ROWS.tail(10).with_columns(pl.col("ts") + pl.duration(hours=2)), type="Click")
        assert running.resume()
        assert running.wait(log.head, timeout=30)
        running.stop()
        assert given(log)[0].height > whole[0].height


def test_kills_of_the_process_that_commits_change_nothing(tmp_path: Path, whole: list[pl.DataFrame]) -> None:
    path = str(tmp_path / "log.db")
    with ms.open(path) as log:
        fill(log)
    assert killed_until_done(WORKER, path, "2", seed=3, kills=1, longest=0.4, rounds=4) >= 1
    with ms.open(path) as log:
        same(given(log), whole)


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs to look at processes")
def test_processes_end_with_the_one_that_began_them_and_a_killed_one_is_begun_anew(
    tmp_path: Path, whole: list[pl.DataFrame]
) -> None:
    path = str(tmp_path / "log.db")
    with ms.open(path) as log:
        fill(log)
    parent = subprocess.Popen([sys.executable, str(WORKER), path, "2"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert not any(map(is_gone, pids))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while not all(map(is_gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(map(is_gone, pids))
    with ms.open(path) as log:
        worker = SharedWorker(log, FLOW, 2, rows=60, commit_every=0)
        worker.advance(log.head)
        os.kill(worker.pids[1], signal.SIGKILL)
        while worker.advance(log.head):
            pass
        worker.close()
        same(given(log), whole)


def test_what_fails_in_a_process_fails_here_with_its_type(tmp_path: Path) -> None:
    flow = stream("clicks", time="ts").group_by("nobody").window(tumbling("1m")).agg(n=pl.len())
    with ms.open(tmp_path / "log.db") as log:
        fill(log, 1_500)
        with pytest.raises(MissingColumn, match="nobody"):
            ms.run(log, flow.to("out", type="SharedNobody"), until="head", processes=2)
