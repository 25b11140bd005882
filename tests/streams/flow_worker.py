"""Runs the flows of `test_flow_exactly_once` on a log, in a process that can be killed."""

from __future__ import annotations

import sys

import polars as pl
from killing import work_off

import millstream as ms
from millstream.streams import Flow, count, hopping, session, sliding, stream, tumbling
from millstream.streams.runner import Worker

clicks = stream("clicks", time="ts", lateness="2s")

FLOWS: list[Flow] = [
    clicks.group_by("user")
    .window(hopping("5m", every="1m"))
    .agg(clicks=pl.len(), total=pl.col("amount").sum())
    .alert(pl.col("clicks") >= 10, cooldown="3m")
    .late_to("late")
    .to("alerts", type="Alert"),
    clicks.group_by("kind").window(tumbling("30s")).agg(n=pl.len()).to("counts", type="Count"),
    clicks.group_by("user")
    .window(sliding("5m"))
    .agg(n=pl.len())
    .filter(pl.col("n") >= 10)
    .select("user", "ts", "n")
    .to("busy", type="Busy"),
    clicks.group_by("user")
    .match(
        "click{3,} purchase",
        within="10m",
        contiguity="relaxed",
        define={"click": pl.col("kind") == "click", "purchase": pl.col("kind") == "purchase"},
    )
    .to("conversions", type="Conversion"),
    clicks.group_by("user")
    .match(
        "low+ big?",
        within="2m",
        contiguity="relaxed",
        define={"low": pl.col("amount") < 0, "big": pl.col("amount") > 50},
    )
    .to("dips", type="Dip"),
    clicks.group_by("user")
    .window(session("40s"))
    .agg(n=pl.len(), kinds=pl.col("kind").n_unique(), middle=pl.col("amount").median(), last=pl.col("kind").last())
    .to("sessions", type="Session"),
    clicks.group_by("user").window(count(7)).agg(most=pl.col("amount").max()).to("sevens", type="Seven"),
    clicks.filter(pl.col("kind") == "purchase")
    .join(clicks.filter(pl.col("kind") == "view"), on="user", back="1m", ahead="10s", how="left", prefix="seen_")
    .to("seen", type="Seen"),
    clicks.filter(pl.col("kind") == "purchase")
    .join_asof(clicks.filter(pl.col("kind") == "view"), on="user", prefix="last_")
    .to("lasts", type="Last"),
    clicks.distinct("user", "kind", within="1m")
    .merge(clicks.group_by("kind").window(tumbling("1m")).agg(n=pl.len()).top(1, by="n"))
    .to("merged", type="Merged"),
]

OUTPUTS = ["alerts", "late", "counts", "busy", "conversions", "dips", "sessions", "sevens", "seen", "lasts", "merged"]


def main(path: str) -> None:
    with ms.open(path) as log:
        # Small batches and a commit for each, so that there is much to be killed between.
        workers = [Worker(log, flow, rows=50, commit_every=0) for flow in FLOWS]
        work_off(log, *workers)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
