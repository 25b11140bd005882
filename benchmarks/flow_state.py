"""What a flow's state costs: memory, commits, restarts: `make bench-flow_state`.

Each section runs in a process of its own, so that its peak of memory is its own. KEYS says how many keys are open at
once (10 M), EVENTS how many events the long run has (100 M), MEMORY the limit that the flows have (``"128MB"``; none).
Give names of sections to run only those: keys sliding distinct events.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import millstream as ms
from millstream.streams.runner import Worker
from millstream.streams.spilling import Spill
from timing import Report, folder, percentile

KEYS = int(os.environ.get("KEYS", 10_000_000))
EVENTS = int(os.environ.get("EVENTS", 100_000_000))
MEMORY = os.environ.get("MEMORY")
BATCH = 65_536
START = datetime(2026, 1, 1, tzinfo=UTC)


def resident() -> float:
    """GB of memory that this process holds now; pages of files, which the system may take back, are left out."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024 / 1e9


def worker_of(log: ms.Log, flow: ms.Flow) -> Worker:
    """A worker with the limit that is asked for."""
    return Worker(log, flow, spill=None if MEMORY is None else Spill.beside(log, MEMORY))


def peak() -> float:
    """GB of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def calls(keys: np.ndarray[Any, Any], first: int, step: float) -> pl.DataFrame:
    """A row for each key, ``step`` microseconds apart."""
    at = (int(START.timestamp() * 1e6) + (first + np.arange(len(keys))) * step).astype(np.int64)
    return pl.DataFrame({"key": keys, "ts": pl.Series(at).cast(pl.Datetime("us", "UTC")), "value": keys % 97})


def open_keys() -> Iterator[pl.DataFrame]:
    """All keys, twice, in two orders, within twenty hours; then a row of the day after next."""
    r = np.random.default_rng(1)
    step = 20 * 3600 * 1e6 / (2 * KEYS)
    for turn in range(2):
        keys = r.permutation(KEYS)
        for first in range(0, KEYS, BATCH):
            yield calls(keys[first : first + BATCH], turn * KEYS + first, step)


def fill(path: str, frames: Iterator[pl.DataFrame]) -> int:
    count = 0
    with ms.open(path) as log:
        for frame in frames:
            log.append("calls", frame, type="Call")
            count += frame.height
    return count


FLOWS: dict[str, Any] = {
    "keys": ms.stream("calls", time="ts")
    .group_by("key")
    .window(ms.tumbling("1d"))
    .agg(calls=pl.len(), total=pl.col("value").sum()),
    "sliding": ms.stream("calls", time="ts").group_by("key").window(ms.sliding("1d")).agg(calls=pl.len()),
    "distinct": ms.stream("calls", time="ts").distinct("key", within="1d"),
}


def ended(section: str) -> Any:
    """The flow of a section with its end; where it gives a row for each row, they are left out."""
    flow = FLOWS[section]
    return (flow if section == "keys" else flow.filter(pl.col("value") == -1)).to("out", type="Out")


def take_in(log: ms.Log, worker: Worker) -> None:
    """Have a worker take in all that the log holds."""
    while worker.advance(log.head):
        pass
    worker.flush()


def state_of(section: str, path: str) -> dict[str, Any]:
    """Feed a flow until all keys are open, go on from its state, and end the day."""
    flow = ended(section)
    found: dict[str, Any] = {}
    with ms.open(path) as log:
        worker = worker_of(log, flow)
        began = time.perf_counter()
        take_in(log, worker)
        found["seconds"] = time.perf_counter() - began
        found["peak, open"] = peak()
        gc.collect()
        found["resident, open"] = resident()
        progress = worker.progress(log.head)
        found["state in memory, GB"], found["on disk, GB"] = progress.memory / 1e9, progress.spilled / 1e9
        found["rows of state"] = sum(each.parts.rows for each in worker.state.operators)
        found["parts"] = sum(len(each.parts.items) for each in worker.state.operators)
        times = []
        for number in range(100):
            keys = np.random.default_rng(number).choice(KEYS, 1_000)
            log.append("calls", calls(keys, 2 * KEYS + 1_000 * number, 20 * 3600 * 1e6 / (2 * KEYS)), type="Call")
            began = time.perf_counter()
            take_in(log, worker)
            times.append(time.perf_counter() - began)
        found["commit p50 ms"] = 1e3 * percentile(times, 0.5)
        found["commit max ms"] = 1e3 * max(times)
        worker.close()
    return found


def restart(section: str, path: str) -> dict[str, Any]:
    """Go on from the stored state; then end the day."""
    flow = ended(section)
    with ms.open(path) as log:
        began = time.perf_counter()
        worker = worker_of(log, flow)
        found: dict[str, Any] = {"restart, s": time.perf_counter() - began, "peak, restored": peak()}
        log.append("calls", calls(np.array([1]), 2 * KEYS + 100_000, 20 * 3600 * 1e6 / (2 * KEYS)), type="Call")
        began = time.perf_counter()
        take_in(log, worker)
        found["first batch, s"] = time.perf_counter() - began
        late = pl.DataFrame({"key": [1], "ts": [START + timedelta(days=2)], "value": [1]})
        log.append("calls", late.cast({"ts": pl.Datetime("us", "UTC")}), type="Call")
        began = time.perf_counter()
        take_in(log, worker)
        found["close, s"] = time.perf_counter() - began
        found["peak, closed"] = peak()
        worker.close()
    return found


def coming_and_going() -> Iterator[pl.DataFrame]:
    """A thousand rows a second; keys live for a while, and new ones come all the time."""
    r = np.random.default_rng(2)
    for first in range(0, EVENTS, BATCH):
        count = min(BATCH, EVENTS - first)
        keys = (first + np.arange(count)) // 10 + r.integers(0, 100_000, count)
        yield calls(keys, first, 1_000)


def long_run(section: str, path: str) -> dict[str, Any]:
    """Memory over the run, while events come in and keys come and go."""
    flow = (
        ms.stream("calls", time="ts", lateness="2s")
        .distinct("key", within="10m")
        .group_by("key")
        .window(ms.tumbling("5m"))
        .agg(calls=pl.len(), total=pl.col("value").sum())
        .filter(pl.col("calls") > 5)
        .to("out", type="Out")
    )
    frames = coming_and_going()
    samples, count = [], 0
    with ms.open(path) as log:
        worker = worker_of(log, flow)
        began = time.perf_counter()
        for frame in frames:
            log.append("calls", frame, type="Call")
            count += frame.height
            while worker.advance(log.head):
                pass
            if len(samples) * EVENTS / 20 <= count:
                samples.append(resident())
                print(f"{count:,} events, {samples[-1]:.2f} GB", file=sys.stderr, flush=True)
        worker.flush()
        worker.close()
    return {"seconds": time.perf_counter() - began, "resident": [round(each, 2) for each in samples], "peak": peak()}


def child(work: str, section: str, path: str) -> dict[str, Any]:
    """Run a part in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--part", work, section, path], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(sections: list[str]) -> None:
    report = Report("State of flows")
    wanted = sections or [*FLOWS, "events"]
    with folder() as place:
        if any(section in FLOWS for section in wanted):
            source = str(place / "source.db")
            fill(source, open_keys())
        for section in wanted:
            path = str(place / f"{section}.db")
            if section in FLOWS:
                subprocess.run(["cp", source, path], check=True)
                found = {**child("state", section, path), **child("restart", section, path)}
                print(section, json.dumps(found, indent=1), flush=True)
                most = max(found["peak, open"], found["peak, closed"])
                report.row(f"{section}: {KEYS:,} open keys, memory", f"{most:.2f} GB", "< 4 GB", most < 4)
                report.row(f"{section}: restart", f"{found['restart, s']:.1f} s", "< 10 s", found["restart, s"] < 10)
                usual, most = found["commit p50 ms"], found["commit max ms"]
                report.row(f"{section}: commit of 1,000 rows", f"{usual:.0f} ms, most {most:.0f}", "", None)
            else:
                found = child("long", section, path)
                print(section, json.dumps(found), flush=True)
                flat = found["resident"][-1] < 1.2 * found["resident"][5]
                report.row(f"{EVENTS:,} events, keys come and go", f"{found['resident']} GB", "flat", flat)
            Path(path).unlink()


PARTS = {"state": state_of, "restart": restart, "long": long_run}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(PARTS[sys.argv[2]](*sys.argv[3:])))
    else:
        main(sys.argv[1:])
