"""Fair timing on a noisy machine: contestants take turns, and medians are compared."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder on the disk that is measured: BENCH_DIR, or the current one (not a RAM disk)."""
    path = Path(tempfile.mkdtemp(prefix="bench-", dir=os.environ.get("BENCH_DIR", ".")))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def race(contestants: dict[str, Callable[[], int]], rounds: int = 5) -> dict[str, float]:
    """Median rate of each contestant, in units a second.

    Args:
        contestants: By name, a function that does some work and returns how many units it did.
        rounds: How often each runs, in turns, after one round to warm up.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for round in range(rounds + 1):
        for name, work in contestants.items():
            begin = time.perf_counter()
            units = work()
            if round:
                rates[name].append(units / (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in rates.items()}


def percentile(values: list[float], share: float) -> float:
    """The value below which this share (0 to 1) of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Report:
    """Rows of what was measured, printed as they come and as Markdown at the end."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[tuple[str, str, str, str]] = []

    def row(self, work: str, measured: str, mark: str, met: bool | None) -> None:
        """Add a row. ``met``: whether the mark is met; None where there is none."""
        verdict = "" if met is None else "yes" if met else "**no**"
        self.rows.append((work, measured, mark, verdict))
        print(f"{work}: {measured} [{mark}] {verdict}", flush=True)

    def markdown(self) -> str:
        """The rows as a table."""
        lines = [
            f"### {self.title}, {time.strftime('%Y-%m-%d')}",
            "",
            f"{machine()}",
            "",
            "| work | measured | mark | met |",
            "|---|---|---|---|",
        ]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)])


def machine() -> str:
    """What was measured on, in a line."""
    import sqlite3

    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return (
        f"{os.cpu_count()} cores ({model}), Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{platform.system()}"
    )
