"""Runs the flows of `test_spilling` under a tiny limit, in a process that can be killed."""

from __future__ import annotations

import sys

import polars as pl
from killing import work_off

import millstream as ms
from millstream.streams import Flow, closing, committing, hopping, runner, session, sliding, state, stream
from millstream.streams.runner import Worker
from millstream.streams.spilling import Spill

clicks = stream("clicks", time="ts", lateness="2s")

FLOWS: list[Flow] = [
    clicks.group_by("user")
    .window(hopping("5m", every="1m"))
    .agg(n=pl.len(), total=pl.col("amount").sum())
    .to("hops", type="Spilled.Hop"),
    clicks.group_by("user").window(sliding("5m")).agg(n=pl.len()).to("slides", type="Spilled.Slide"),
    clicks.group_by("user", "kind").window(session("8m")).agg(n=pl.len()).to("sessions", type="Spilled.Session"),
    clicks.group_by("user")
    .window(hopping("10m", every="5m"), early="150s")
    .agg(n=pl.len(), last=pl.col("kind").last())
    .to("growing", type="Spilled.Growing"),
    clicks.group_by("user")
    .window(hopping("5m", every="1m"))
    .agg(n=pl.len())
    .top(3, by="n")
    .to("tops", type="Spilled.Top"),
    clicks.distinct("user", "kind", within="3m").to("firsts", type="Spilled.First"),
    clicks.latest("user", "kind").to("lasts", type="Spilled.Last"),
]

OUTPUTS = ["hops", "slides", "sessions", "growing", "tops", "firsts", "lasts"]


def main(path: str) -> None:
    state.FRESH = 200
    closing.PIECE, closing.BLOCK = 50, 8
    runner.OUTPUT, committing.PIECE = 100, 40
    with ms.open(path) as log:
        spill = Spill.beside(log, 5_000)
        workers = [Worker(log, flow, rows=200, commit_every=0, spill=spill) for flow in FLOWS]
        work_off(log, *workers)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
