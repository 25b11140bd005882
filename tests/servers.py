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
