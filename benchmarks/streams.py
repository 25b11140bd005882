"""Stream processing beside Flink SQL, DuckDB and Polars: `make bench-streams`.

5 M clicks of 100,000 users (Zipf), a fifth of them out of order by up to 2 s; CLICKS changes how many. One core: this
program runs itself again under `taskset`, with one thread for Polars and DuckDB. Ours reads from a log and commits its
output exactly once; DuckDB and Polars answer from a file in one pass, and commit nothing. The rows are compared with
DuckDB's. FLINK names a Python that has `apache-flink`; without it, Flink is left out.

Give names of sections to run only those: w1 w2 w3 w4 pattern cores latency.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

CLICKS = int(os.environ.get("CLICKS", 5_000_000))
FLINK_CLICKS = 500_000
FLINK = os.environ.get("FLINK", "")
PEERS = Path(__file__).parent / "peers"
ROUNDS = 3

if os.environ.get("CORES") is None:
    # Libraries look at how many cores they may use when they are imported.
    os.environ["CORES"] = "1"
    os.environ["POLARS_MAX_THREADS"] = "1"
    os.execvp("taskset", ["taskset", "-c", "0", sys.executable, *sys.argv])

import duckdb  # noqa: E402
import numpy as np  # noqa: E402
import polars as pl  # noqa: E402

import millstream as ms  # noqa: E402
from millstream.streams.sharing.coordinator import SharedWorker  # noqa: E402
from timing import Report, percentile  # noqa: E402

CORES = int(os.environ["CORES"])
START = 1_700_000_000_000_000
CLICK = pl.col("kind") == "click"

QUERIES = {
    "w1": """select "user", time_bucket(interval '5 minutes', ts) as window_start, count(*) as clicks
        from clicks where kind = 'click' group by all""",
    "w2": """select "user", time_bucket(interval '1 minute', ts) - to_minutes(w) as window_start, count(*) as clicks
        from clicks, range(5) as hops(w) where kind = 'click' group by all""",
    "w3": """select "user", ts, clicks from (select "user", ts, count(*) over (partition by "user" order by ts
        range between interval '5 minutes' preceding and current row) as clicks from clicks where kind = 'click')
        where clicks >= 50""",
    "w4": """select "user", ts, clicks from (select "user", ts, kind, count(*) filter (kind = 'click') over (
        partition by "user" order by ts range between interval '10 minutes' preceding and current row) as clicks
        from clicks) where kind = 'purchase' and clicks >= 3""",
}


def flow_of(work: str, stream: str) -> Any:
    clicks = ms.stream(stream, time="ts", lateness="2s")
    match work:
        case "w1":
            each = clicks.filter(CLICK).group_by("user").window(ms.tumbling("5m")).agg(clicks=pl.len())
            return each.select("user", "window_start", "clicks")
        case "w2":
            each = clicks.filter(CLICK).group_by("user").window(ms.hopping("5m", every="1m")).agg(clicks=pl.len())
            return each.select("user", "window_start", "clicks")
        case "w3":
            each = clicks.filter(CLICK).group_by("user").window(ms.sliding("5m")).agg(clicks=pl.len())
            return each.filter(pl.col("clicks") >= 50).select("user", "ts", "clicks")
    each = clicks.group_by("user").window(ms.sliding("10m")).agg(clicks=CLICK.sum())
    return each.filter((pl.col("kind") == "purchase") & (pl.col("clicks") >= 3)).select("user", "ts", "clicks")


def make_clicks(count: int) -> pl.DataFrame:
    """1,000 clicks a second, in the order of their arrival."""
    r = np.random.default_rng(7)
    ranks = np.arange(1, 100_001)
    weights = 1 / ranks
    users = r.choice(ranks, count, p=weights / weights.sum())
    arrival = START + np.arange(count) * 1_000
    late = np.where(r.random(count) < 0.2, r.integers(0, 1_999_000, count), 0)
    return pl.DataFrame(
        {
            "user": users,
            "kind": np.where(r.random(count) < 0.9, "click", "purchase"),
            "ts": pl.Series(arrival - late).cast(pl.Datetime("us", "UTC")),
        }
    )


class Place:
    """The clicks in a log, as columns and as JSON, and in files for the peers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clicks = make_clicks(CLICKS)
        self.parquet = folder / "clicks.parquet"
        self.ndjson = folder / "clicks.ndjson"
        self.clicks.write_parquet(self.parquet)
        self.path = str(folder / "log.db")
        self.runs = 0
        with ms.open(self.path) as log:
            for first in range(0, CLICKS, 65_536):
                log.append("columns", self.clicks.slice(first, 65_536), type="Click")
        self.has_json = False

    def with_json(self) -> None:
        """Have the clicks as JSON, too."""
        if self.has_json:
            return
        self.has_json = True
        text = self.clicks.with_columns(pl.col("ts").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
        text.write_ndjson(self.ndjson)
        with ms.open(self.path) as log:
            for first in range(0, CLICKS, 1_000):
                log.append("json", [ms.Plain("Click", row) for row in text.slice(first, 1_000).to_dicts()])

    def run(self, flow: Any) -> tuple[float, str]:
        """Run a flow over all of its stream: the seconds, and the stream that it has written."""
        self.runs += 1
        out = f"out-{self.runs}"
        with ms.open(self.path) as log:
            ended = flow.to(out, type=f"Out{self.runs}")
            begin = time.perf_counter()
            ms.run(log, ended, until="head")
            return time.perf_counter() - begin, out

    def written(self, stream: str) -> pl.DataFrame:
        with ms.open(self.path) as log:
            return log.scan(stream).select(pl.exclude("^_.*$")).collect()

    def duckdb(self, query: str, source: str) -> tuple[float, pl.DataFrame]:
        with duckdb.connect() as db:
            db.execute(f"set threads = {CORES}")
            db.execute("set timezone = 'UTC'")
            begin = time.perf_counter()
            found = db.sql(query.replace("from clicks", f"from {source}")).pl()
            return time.perf_counter() - begin, found


def agree(result: pl.DataFrame, expected: pl.DataFrame) -> None:
    """See that all rows that are final are those of the referee."""
    by = "window_start" if "window_start" in result.columns else "ts"
    wide = [pl.col("user").cast(pl.Int64), pl.col(by).dt.epoch("us"), pl.col("clicks").cast(pl.Int64)]
    result, expected = result.select(wide), expected.select(wide)
    # What the watermark has not passed is not given yet: the last windows.
    edge = START + CLICKS * 1_000 - timedelta(minutes=5, seconds=3) // timedelta(microseconds=1)
    names = result.columns
    mine = result.filter(pl.col(by) < edge).sort(names)
    theirs = expected.filter(pl.col(by) < edge).sort(names)
    assert mine.height, "nothing to compare"
    assert mine.equals(theirs), f"{mine.height} rows are not those of the referee, {theirs.height}"


def rates(contestants: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The median rate of each, in clicks a second; they take turns."""
    took: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, work in contestants.items():
            took[name].append(work())
    return {name: CLICKS / statistics.median(values) for name, values in took.items()}


def flink(work: str, place: Place) -> float | None:
    """Clicks a second of Flink SQL, from JSON, without its start-up; None where it is not there."""
    if not FLINK:
        return None
    place.with_json()
    path, count = place.ndjson, CLICKS
    if work != "w1" and CLICKS > FLINK_CLICKS:
        # It would take hours; the first clicks have it at its best, with the least state.
        path, count = place.folder / "few.ndjson", FLINK_CLICKS
        with open(place.ndjson) as every, open(path, "w") as few:
            few.writelines(itertools.islice(every, count))
    return float(run_flink(work, path, str(count)).split()[-1])


def run_flink(work: str, path: Path, *rest: str) -> str:
    command = [FLINK, str(PEERS / "flink_sql.py"), work, str(path), *rest]
    out = subprocess.run(command, capture_output=True, text=True, timeout=3_000)
    assert out.returncode == 0, out.stderr[-2_000:]
    return out.stdout


def measure(report: Report, place: Place, work: str, stream: str, marks: dict[str, float]) -> None:
    source = f"'{place.parquet}'"
    if stream == "json":
        place.with_json()
        columns = "{user: 'BIGINT', kind: 'VARCHAR', ts: 'TIMESTAMPTZ'}"
        source = f"read_ndjson('{place.ndjson}', columns = {columns})"
    flow = flow_of(work, stream)
    _, out = place.run(flow)
    _, expected = place.duckdb(QUERIES[work], source)
    agree(place.written(out), expected)
    contestants = {"ours": lambda: place.run(flow)[0], "duckdb": lambda: place.duckdb(QUERIES[work], source)[0]}
    if "polars" in marks:
        contestants["polars"] = lambda: polars_w1(place)
    found = rates(contestants)
    peer = flink(work, place) if "flink" in marks else None
    if peer is not None:
        found["flink"] = peer
    ours = found.pop("ours")
    shown = ", ".join(f"{ours / rate:.2f} × {name} ({rate:,.0f}/s)" for name, rate in found.items())
    known = {name: mark for name, mark in marks.items() if name in found}
    report.row(
        f"{work.upper()} from {stream}, {CORES} core{'s' if CORES > 1 else ''}",
        f"{ours:,.0f} clicks/s; {shown}",
        ", ".join(f"≥ {mark:g} × {name}" for name, mark in marks.items()),
        all(ours >= mark * found[name] for name, mark in known.items()) if known else None,
    )


def polars_w1(place: Place) -> float:
    begin = time.perf_counter()
    frame = pl.scan_parquet(place.parquet).filter(CLICK)
    frame.group_by("user", pl.col("ts").dt.truncate("5m")).agg(pl.len()).collect()
    return time.perf_counter() - begin


def w1(report: Report, place: Place) -> None:
    """Clicks per user and window of 5 minutes."""
    measure(report, place, "w1", "json", {"flink": 5, "duckdb": 0.6})
    measure(report, place, "w1", "columns", {"flink": 15, "polars": 0.6})


def w2(report: Report, place: Place) -> None:
    """The same, windows hopping by 1 minute."""
    measure(report, place, "w2", "columns", {"flink": 15, "duckdb": 0.8})


def w3(report: Report, place: Place) -> None:
    """Each click that makes 50 or more of its user in the 5 minutes before it."""
    measure(report, place, "w3", "columns", {"flink": 200, "duckdb": 2})


def w4(report: Report, place: Place) -> None:
    """Each purchase with 3 or more clicks of its user in the 10 minutes before it."""
    measure(report, place, "w4", "columns", {"flink": 100, "duckdb": 1})


def pattern(report: Report, place: Place) -> None:
    """A strict pattern: three clicks or more, and then a purchase, within 10 minutes."""
    ours = rates({"ours": lambda: place.run(sequence("columns"))[0]})["ours"]
    agree_on_sequence(place)
    peer = flink("pattern", place)
    shown = f"; {ours / peer:.1f} × flink ({peer:,.0f}/s)" if peer else ""
    met = None if peer is None else ours >= 20 * peer
    report.row(f"click{{3,}} purchase, strict, {CORES} core", f"{ours:,.0f} clicks/s{shown}", "≥ 20 × flink", met)


def sequence(stream: str) -> Any:
    define = {"click": CLICK, "purchase": pl.col("kind") == "purchase"}
    clicks = ms.stream(stream, time="ts", lateness="2s").group_by("user")
    found = clicks.match("click{3,} purchase", within="10m", define=define)
    return found.select("user", "match_start", "match_end", clicks=pl.col("events") - 1)


def agree_on_sequence(place: Place) -> None:
    """See that Flink finds the same sequences among the first clicks, with their times cut to its milliseconds."""
    if not FLINK:
        return
    clicks = place.clicks.head(FLINK_CLICKS).with_columns(pl.col("ts").dt.truncate("1ms"))
    path, found = place.folder / "cut.ndjson", place.folder / "sequences"
    clicks.with_columns(pl.col("ts").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")).write_ndjson(path)
    run_flink("pattern", path, str(found))
    theirs = pl.concat(pl.read_ndjson(part) for part in found.iterdir()).with_columns(
        pl.col("match_start", "match_end").str.to_datetime("%Y-%m-%d %H:%M:%S%.fZ", time_unit="us", time_zone="UTC")
    )
    with ms.open(place.path) as log:
        log.append("cut", clicks, type="Click")
        mine = sequence("cut").over(log)
    # What the watermark has not passed is not given yet.
    edge = clicks["ts"].max() - timedelta(seconds=3)  # type: ignore[operator]
    both = [
        each.filter(pl.col("match_end") < edge).select(theirs.columns).cast({"clicks": pl.Int64}).sort(theirs.columns)
        for each in (mine, theirs)
    ]
    assert both[0].height, "nothing to compare"
    assert both[0].equals(both[1]), f"{both[0].height} sequences are not those of Flink, {both[1].height}"


def cores(report: Report, place: Place) -> None:
    """A flow in two processes on two cores beside one process on one core; how long the two take to begin, apart."""
    command = [sys.executable, __file__, "--rates", str(place.folder)]
    found = {}
    for cores, processes in (("0", "1"), ("0,1", "1"), ("0,1", "2")):
        threads = {"POLARS_MAX_THREADS": "1"} if processes == "2" else {"POLARS_MAX_THREADS": str(len(cores) // 2 + 1)}
        environment = {**os.environ, "CORES": str(len(cores) // 2 + 1), "PROCESSES": processes, **threads}
        out = subprocess.run(["taskset", "-c", cores, *command], env=environment, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        found[cores, processes] = json.loads(out.stdout.splitlines()[-1])
    one = found["0", "1"]
    for cores, processes, what in (("0,1", "2", "two processes"), ("0,1", "1", "one process")):
        rates = found[cores, processes]
        ratios = {work: rates[work] / one[work] for work in ("w1", "w2", "w3", "w4")}
        shown = ", ".join(f"{work.upper()} {ratio:.2f} ×" for work, ratio in ratios.items())
        if processes == "2":
            shown += f" ({rates['begin']:.1f} s to begin, not counted)"
        met = all(r >= 1.2 for r in ratios.values()) if processes == "2" else None
        report.row(
            f"{what} on two cores beside one on one, from columns", shown, "≥ 1.2 ×" if met is not None else "", met
        )


def print_rates(folder: Path) -> None:
    """Our rates over a log that is there, for `cores`."""
    place = Place.__new__(Place)
    place.path, place.runs = str(folder / "log.db"), os.getpid()
    processes = int(os.environ["PROCESSES"])
    began: list[float] = [0.0]

    def run(work: str) -> float:
        if processes == 1:
            return place.run(flow_of(work, "columns"))[0]
        place.runs += 1
        with ms.open(place.path) as log:
            flow = flow_of(work, "columns").to(f"out-{place.runs}", type=f"Out{place.runs}")
            worker = SharedWorker(log, flow, processes)
            begin = time.perf_counter()
            worker.warm_up()
            began.append(time.perf_counter() - begin)
            head, begin = log.head, time.perf_counter()
            while worker.advance(head):
                pass
            worker.flush()
            took = time.perf_counter() - begin
            worker.close()
            return took

    works = ("w1", "w2", "w3", "w4")
    found = rates({work: lambda work=work: run(work) for work in works})  # type: ignore[misc]
    print(json.dumps({**found, "begin": statistics.median(began)}))


def latency(report: Report, place: Place) -> None:
    """From the append of the row that moves the watermark past a result to the alert, beside two raw commits."""
    for rate in (1_000, 100_000):
        with ms.open(str(place.folder / f"latency-{rate}.db")) as log:
            raw = [commit_once(log) for _ in range(200)]
            beyond = watch(log, rate)
        two = 2 * statistics.median(raw)
        p50, p99 = (percentile(beyond, share) - two for share in (0.5, 0.99))
        report.row(
            f"append → alert seen at {rate:,} events/s",
            f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms beyond two commits ({two * 1000:.1f} ms)",
            "p50 < 10 ms, p99 < 30 ms",
            p50 < 0.010 and p99 < 0.030,
        )


def commit_once(log: ms.Log) -> float:
    begin = time.perf_counter()
    log.append("raw", ms.Plain("Raw", {"n": 1}))
    return time.perf_counter() - begin


def watch(log: ms.Log, rate: int) -> list[float]:
    """The seconds from the appends of some rows to the alerts that they cause, while others come at a rate."""
    flow = (
        ms.stream("live", time="ts")
        .group_by("user")
        .window(ms.tumbling("1s"))
        .agg(n=pl.len())
        .filter(pl.col("user") == -1)
        .to("alerts", type=f"Alert{rate}")
    )
    size = max(rate // 100, 1)
    begun: dict[int, float] = {}
    took: list[float] = []

    def follow() -> None:
        for event in log.follow("alerts"):
            took.append(time.perf_counter() - begun[int(event.data["window_start"].timestamp()) + 1])
            if len(took) == 100:
                return

    follower = threading.Thread(target=follow)
    follower.start()
    users = np.arange(size) % 1_000
    with ms.streams.start(log, flow):
        second, following = START // 1_000_000, time.perf_counter()
        while follower.is_alive():
            # A second of event time passes with every tenth batch, a tenth of a second of ours.
            for part in range(10):
                at = second * 1_000_000 + part * 100_000 + np.arange(size)
                marked = np.where((np.arange(size) == 0) & (part == 0), -1, users)
                frame = pl.DataFrame({"user": marked, "ts": pl.Series(at).cast(pl.Datetime("us", "UTC"))})
                if part == 0:
                    begun[second] = time.perf_counter()
                log.append("live", frame, type="Live")
                following += 0.01
                time.sleep(max(following - time.perf_counter(), 0))
            second += 1
    follower.join()
    return took[10:]


SECTIONS = {"w1": w1, "w2": w2, "w3": w3, "w4": w4, "pattern": pattern, "cores": cores, "latency": latency}


def main(names: list[str]) -> None:
    if names[:1] == ["--rates"]:
        print_rates(Path(names[1]))
        return
    report = Report("Stream processing")
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR", "."), prefix="bench-") as folder:
        place = Place(Path(folder))
        for name, section in SECTIONS.items():
            if not names or name in names:
                section(report, place)
    print("\n" + report.markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
