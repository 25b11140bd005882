"""Where tests keep their read models, and how they wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest


def into_of(request: pytest.FixtureRequest, kind: str, folder: Path) -> str | None:
    """What ``into()`` takes for a read model in a file, the log's database, memory, DuckDB or PostgreSQL."""
    if kind == "postgres":
        return str(request.getfixturevalue("postgres"))
    places = {"file": str(folder / "read.db"), "log": None, "memory": ":memory:"}
    return places[kind] if kind in places else str(folder / "read.duckdb")


def eventually(check: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is so; the limit is there for what never comes to be."""
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)
