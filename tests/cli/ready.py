"""Runs commands in forks of one process that has imported them: each in a process of its own, which begins at once.

Importing takes most of the time that a short command takes. As a program, this is the process that is asked.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

_CLIENT = Path(__file__).with_name("ready_client.py")


class ReadyCommands:
    """The process; `command` is how a subprocess has it run a command.

    Args:
        folder: Where its socket is.
        environment: Of the process. Each command has that of whoever asks, and is also in its folder.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        place = folder / "socket"
        self.command = [sys.executable, "-I", "-S", str(_CLIENT), str(place)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(place)], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """End it."""
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.terminate()
        self._process.wait()


class _Asked(Exception):
    """In a fork: what it is to run."""

    def __init__(self, words: list[str], folder: str, environment: dict[str, str]) -> None:
        self.words, self.folder, self.environment = words, folder, environment


def _serve(place: str) -> NoReturn:
    """Answer until the end; raises in each fork what to run."""
    import millstream.app
    import millstream.streams  # noqa: F401
    from millstream.cli import main

    # What is imported only by the first command that is run.
    with redirect_stdout(StringIO()), suppress(SystemExit):
        main(["read", "--help"])
    # At its end, a fork need not go through what it has not made.
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print("ready", flush=True)
        while True:
            asker, _ = listener.accept()
            with asker:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    listener.close()
                    _fork(asker)


def _fork(asker: socket.socket) -> NoReturn:
    """Take what is asked, and wait for another fork that does it."""
    _, streams, _, _ = socket.recv_fds(asker, 1, 3)
    with asker.makefile("rb") as request:
        asked: dict[str, Any] = json.loads(request.read())
    pid = os.fork()
    if pid == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    if pid == 0:
        raise _Asked(**asked)
    asker.sendall(b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    asker.sendall(b"%d\n" % (code if code >= 0 else 128 - code))
    os._exit(0)


def _become(asked: _Asked) -> None:
    """Be as a process that has just begun."""
    os.chdir(asked.folder)
    os.environ.clear()
    os.environ.update(asked.environment)
    # As `python -m millstream.cli` has them.
    sys.path[0] = asked.folder
    sys.argv = ["millstream", *asked.words]
    # Those of before know of other files whether they can be sought in.
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115


if __name__ == "__main__":
    from millstream.cli import main

    try:
        _serve(sys.argv[1])
    except _Asked as asked:
        _become(asked)
    main()
