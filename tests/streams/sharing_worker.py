"""Runs a flow of `test_sharing_processes` in several processes, itself in one that can be killed."""

from __future__ import annotations

import sys

import polars as pl

import millstream as ms
from millstream.streams import Flow, sliding, stream
from millstream.streams.sharing.coordinator import SharedWorker

FLOW: Flow = (
    stream("clicks", time="ts", lateness="2s")
    .group_by("user")
    .window(sliding("5m"))
    .agg(n=pl.len(), most=pl.col("amount").max())
    .filter(pl.col("n") >= 5)
    .late_to("busy-late")
    .to("busy", type="SharedBusy")
)


def main(path: str, processes: int) -> None:
    with ms.open(path) as log:
        worker = SharedWorker(log, FLOW, processes, rows=60, commit_every=0)
        busy = worker.advance(log.head)
        print("ready", flush=True)
        print(*worker.pids, flush=True)
        while busy:
            busy = worker.advance(log.head)
        worker.close()
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
