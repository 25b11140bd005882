"""The example of the users table runs, and gives what its page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg

import millstream as ms

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
README = EXAMPLES / "users_cdc" / "README.md"


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(ms.__file__).parents[1]), str(EXAMPLES)])
    command = [sys.executable, "-m", "users_cdc", *words]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=80
    )


def test_it_tells_the_story_that_its_page_shows(tmp_path: Path) -> None:
    [shown] = re.findall(r"^\$ python -m users_cdc\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    done = run(cwd=tmp_path)
    assert done.stdout == shown, done.stderr
    assert done.returncode == 0


def test_it_tells_it_in_a_database_that_is_given_and_leaves_nothing_there_but_the_table(
    postgres: str, tmp_path: Path
) -> None:
    done = run(postgres, cwd=tmp_path)
    assert done.stdout.endswith("converged  True\n"), done.stderr
    with psycopg.connect(postgres) as db:
        for left in ("pg_replication_slots where database = current_database()", "pg_publication"):
            assert db.execute(f"select count(*) from {left}").fetchone() == (0,)
