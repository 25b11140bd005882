"""Runs a flow of `test_files` that writes files, in a process that can be killed."""

from __future__ import annotations

import sys

import polars as pl
from killing import work_off

import millstream as ms
from millstream.streams import stream, tumbling
from millstream.streams.runner import Worker


def main(path: str, folder: str) -> None:
    source = stream("clicks", time="ts", lateness="2s")
    counts = source.group_by("user").window(tumbling("1m")).agg(n=pl.len(), total=pl.col("amount").sum())
    with ms.open(path) as log:
        # Small batches and a commit for each, so that there is much to be killed between.
        worker = Worker(log, counts.to_files(folder, every="0s"), rows=16, commit_every=0)
        work_off(log, worker)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
