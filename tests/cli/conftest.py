"""The command as a process of its own, and as a call."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ready import ReadyCommands
from typer.testing import CliRunner

import millstream as ms
from millstream.cli.app import app

SOURCE = str(Path(ms.__file__).parents[1])
COMMAND = [sys.executable, "-m", "millstream.cli"]


def plain_environment() -> dict[str, str]:
    paths = [SOURCE, *filter(None, [os.environ.get("PYTHONPATH")])]
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS", "NO_COLOR")}
    return {**plain, "PYTHONPATH": os.pathsep.join(paths), "TERM": "dumb"}


@pytest.fixture
def environment() -> dict[str, str]:
    return plain_environment()


@pytest.fixture(scope="session")
def ready_commands(tmp_path_factory) -> Iterator[ReadyCommands]:
    commands = ReadyCommands(tmp_path_factory.mktemp("commands"), plain_environment())
    yield commands
    commands.close()


@pytest.fixture
def start(tmp_path, environment):
    """Start the command; what is still running at the end of the test is ended."""
    started: list[subprocess.Popen] = []

    def begin(*words: str, command: list[str] = COMMAND, **options) -> subprocess.Popen:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen([*command, *words], cwd=tmp_path, env=environment, **options)
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def run(start, ready_commands) -> Callable[..., subprocess.CompletedProcess]:
    """Run the command to its end; output and errors as text."""

    def call(*words: str, input: str | bytes = b"") -> subprocess.CompletedProcess:
        process = start(*words, command=ready_commands.command)
        out, err = process.communicate(input.encode() if isinstance(input, str) else input, timeout=50)
        return subprocess.CompletedProcess(words, process.returncode, out.decode(), err.decode())

    return call


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Call the command within this process: quicker, for what needs no process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    runner = CliRunner()

    def call(*words: str, input: str | bytes | None = None, columns: int = 100):
        return runner.invoke(app, list(words), input=input, env={"COLUMNS": str(columns), "TERM": "dumb"})

    return call


@pytest.fixture
def shop(tmp_path) -> str:
    """A log of five events in three streams."""
    path = str(tmp_path / "shop.db")
    with ms.open(path) as log:
        log.append(
            "account-1",
            [ms.Plain("AccountCreated", {"owner": "Änn 漢字"}), ms.Plain("MoneyDeposited", {"amount": 1000})],
        )
        log.append("account-2", ms.Plain("AccountCreated", {"owner": "Bob"}), tags=["new"], metadata={"by": "web"})
        log.append("account-1", ms.Plain("MoneyWithdrawn", {"amount": 200}), effective="2024-01-15T12:00:00Z")
        log.append("audit", ms.Plain("Login", {"user": 7}))
    return path
