"""Real servers for tests and benchmarks: each on loopback, on a free port, in a temporary folder, ended by its pid."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from millstream.testing.postgres import PostgresServer, free_port


class CuttingProxy:
    """Stands between a client and a server, and cuts the connection at the worst moment.

    `cut` names bytes: the next time that a client sends them, they are passed on (or not, with ``before=True``),
    the answer is swallowed, and the connection is cut.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._cuts: list[tuple[bytes, bool]] = []
        self._hanging: list[socket.socket] = []
        self.cuts = 0
        """How often it has cut."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, marker: bytes, *, before: bool = False) -> None:
        """Cut at the next message that holds these bytes."""
        self._cuts.append((marker, before))

    def close(self) -> None:
        """Take no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for left in self._hanging:
            left.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(1 << 16):
                found = next((cut for cut in self._cuts if cut[0] in data), None)
                if found is not None:
                    self._cuts.remove(found)
                    self.cuts += 1
                    client.shutdown(socket.SHUT_RDWR)
                    if found[1]:
                        # As when the network goes: the server hears nothing, not even that it is over.
                        self._hanging.append(server)
                        client.close()
                        return
                    server.sendall(data)
                    time.sleep(0.3)
                    break
                server.sendall(data)
        except OSError:
            pass
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(1 << 16):
                client.sendall(data)
        except OSError:
            pass


class Pooler:
    """PgBouncer in transaction mode before a PostgreSQL server; from Debian's package of that name."""

    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

    def __init__(self, server: PostgresServer) -> None:
        assert self.program is not None
        self.folder = Path(tempfile.mkdtemp(prefix="millstream-pool-"))
        self.port = free_port()
        (self.folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            "pool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 200\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )
        user = "nobody" if os.geteuid() == 0 else None
        if user is not None:
            os.chown(self.folder, pwd.getpwnam(user).pw_uid, -1)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, "-q", self.folder / "pgbouncer.ini"], user=user, cwd=self.folder, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, "PgBouncer does not answer"
                time.sleep(0.05)

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)


class RedisServer:
    """Redis or Valkey; from Debian's package of that name."""

    program = shutil.which("redis-server") or shutil.which("valkey-server")

    def __init__(self) -> None:
        assert self.program is not None
        self.folder = Path(tempfile.mkdtemp(prefix="millstream-redis-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.program), *options, "--dir", str(self.folder)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(16).startswith(b"+PONG"):
                        return
            except OSError:
                pass
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "Redis does not answer"
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it; what it held is lost."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
            self.process = None

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class MariaDBServer:
    """MariaDB of Debian's package ``mariadb-server``, with its binary log set as a capture needs it.

    Args:
        options: Settings beyond the defaults, such as ``binlog_row_metadata=FULL``; the last of a name counts.
        program: Another server of the family: the path of a MySQL's ``mysqld``.
    """

    program = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

    def __init__(self, *options: str, program: str | None = None) -> None:
        self.mysql = program
        self.folder = Path(tempfile.mkdtemp(prefix="millstream-maria-"))
        self.port = free_port()
        settings = [
            "log_bin=binlog", "server_id=1", "binlog_format=ROW", "innodb_flush_log_at_trx_commit=2",
            "innodb_buffer_pool_size=64M", "character_set_server=utf8mb4",
        ]  # fmt: skip
        if program is not None:
            settings += ["mysqlx=OFF", "default_authentication_plugin=mysql_native_password"]
        else:
            settings.append("skip_name_resolve=ON")
        self.options = [*settings, *options]
        # As root, the server wants to be told that it may.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, -1)
        self.process: subprocess.Popen[bytes] | None = None
        data = f"--datadir={self.folder / 'data'}"
        if program is not None:
            install: list[str | None] = [program, "--no-defaults", data, "--initialize-insecure", self._base()]
        else:
            install = [
                shutil.which("mariadb-install-db"), "--no-defaults", data, "--skip-test-db",
                "--auth-root-authentication-method=normal",
            ]  # fmt: skip
        # Two servers that share a folder for temporary tables take them from each other.
        self._environment = {**os.environ, "TMPDIR": str(self.folder)}
        words = [str(part) for part in install]
        subprocess.run(words, user=self._user, cwd=self.folder, env=self._environment, capture_output=True, check=True)
        self.start()

    def _base(self) -> str:
        assert self.mysql is not None
        return f"--basedir={Path(self.mysql).parent.parent}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = self.mysql or self.program
        assert program is not None
        place = [
            f"--datadir={self.folder / 'data'}", f"--socket={self.folder / 'socket'}", f"--port={self.port}",
            "--bind-address=127.0.0.1", f"--pid-file={self.folder / 'pid'}", *([self._base()] if self.mysql else []),
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "--no-defaults", *place, *(f"--{option}" for option in self.options)],
                user=self._user, cwd=self.folder, env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                    if probe.recv(1):
                        return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"MariaDB does not answer: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it: SIGTERM as an administrator does, SIGKILL as a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "shop", *, user: str = "root", port: int | None = None) -> str:
        """Where it is."""
        return f"mysql://{user}@127.0.0.1:{port or self.port}/{database}"

    def __enter__(self) -> MariaDBServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
