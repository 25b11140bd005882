"""The demo with its log in PostgreSQL: the same play, a schema of its own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import psycopg
import pytest

import millstream as ms
from millstream.demo.schema import Schema

PACKAGED = Path(ms.__file__).parent / "demo" / "january.parquet"
COMMAND = [sys.executable, "-c", "from millstream.cli import main; main()"]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(ms.__file__).parents[1])}
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=100, env=env)


def test_it_plays_the_same_and_a_second_run_replaces_what_the_first_one_made(postgres, tmp_path):
    few = tmp_path / "few.parquet"
    pl.read_parquet(PACKAGED).head(900).write_parquet(few)
    for _ in range(2):
        done = run("demo", "--data", few, "--out", tmp_path / "out", "--log", postgres)
        assert done.returncode == 0, done.stderr
        assert "900 flights became" in done.stdout
        assert "events in PostgreSQL, " in done.stdout
        assert "✓ Polars counts the same" in done.stdout
    assert not (tmp_path / "out" / "flights.db").exists()
    assert (tmp_path / "out" / "board.db").exists()
    beside = run("demo", "--data", few, "--out", tmp_path / "beside")
    with (
        ms.open(f"{postgres}?schema=millstream_demo", readonly=True) as log,
        ms.open(str(tmp_path / "beside" / "flights.db"), readonly=True) as file,
    ):
        for stream in ("aircraft-*", "departures", "windows", "alerts"):
            told = [[(e.stream, e.version, e.type, e.data) for e in each.read(stream)] for each in (log, file)]
            assert sorted(told[0], key=repr) == sorted(told[1], key=repr), stream
        assert log.verify().position == log.head
    assert beside.returncode == 0

    commands = [line.strip() for line in done.stdout.splitlines() if re.match(r"  \S*millstream ", line)]
    assert len(commands) == 5
    for command in commands:
        shown = run(*shlex.split(command)[1:])
        assert shown.returncode == 0, f"{command}: {shown.stderr}"
        assert shown.stdout


def test_a_schema_with_other_things_is_refused_and_left_alone(postgres):
    with ms.open(f"{postgres}?schema=shop") as log:
        log.append("a", ms.Plain("Opened", {}))
    with pytest.raises(ms.UsageError, match=r"schema shop of .* holds other things"):
        Schema(f"{postgres}?schema=shop")
    with ms.open(f"{postgres}?schema=shop", readonly=True) as log:
        assert log.head == 1
    with psycopg.connect(postgres) as connection:
        connection.execute("create schema empty")
    Schema(f"{postgres}?schema=empty").__exit__(None, None, None)


def test_two_demos_do_not_share_a_schema(postgres):
    with Schema(postgres), pytest.raises(ms.UsageError, match="another demo is running"):
        Schema(postgres)
    Schema(postgres).__exit__(None, None, None)


def test_a_place_that_is_not_in_postgresql_or_not_reached_is_told_before_anything_is_made(tmp_path):
    for url, said in [("log.db", "is no log in PostgreSQL"), ("postgresql://ann:s3cret@127.0.0.1:1/x", "refused")]:
        done = run("demo", "--out", tmp_path / "out", "--log", url)
        assert done.returncode in (1, 2)
        assert said in done.stderr
        assert "hint: " in done.stderr
        assert "s3cret" not in done.stderr
    assert not (tmp_path / "out").exists()
