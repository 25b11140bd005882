"""The writer's session: a connection that is made anew when it is lost, and finds out what became of its commits."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import msgspec
import psycopg

from ...conversion import ready
from ...errors import MillstreamError
from ..inline import Register
from ..raw import Role
from .connections import PAUSE, connect_raw
from .database import Connection, GuardedDatabase
from .faults import is_lost
from .place import Place


class Session:
    """One connection at a time, for one thread at a time.

    Args:
        patience: The longest wait, in seconds, for the lock that appends are serialised by, and for a server that
            has gone away.
        on_loss: Called when what the connection did may not have happened.
        register: What this process knows of the inline handlers that all writers must have.
    """

    def __init__(self, place: Place, patience: float, on_loss: Callable[[], None], register: Register) -> None:
        self._place = place
        self._register = register
        self._patience = patience
        self._on_loss = on_loss
        # The server keeps 63 bytes of a name, and takes no letters beyond ASCII as they are.
        shown = str(place.conninfo["application_name"]).encode("ascii", "ignore").decode()[:32]
        self._name = f"{shown}-{secrets.token_hex(8)}"
        """Tells this writer's sessions from all others."""
        self._connection: Connection | None = None
        self._database: GuardedDatabase | None = None
        self._within = False
        """A transaction was begun, and has not ended."""
        self.defers = False
        """There were constraints that may be deferred when the transaction began: what breaks one shows later."""
        self.wait = f"{max(1, int(patience * 1000))}ms"
        """The patience as PostgreSQL has it."""
        # A client that hangs in the middle must not keep the lock for ever.
        self._begin = (
            "begin isolation level read committed;"
            f" set local idle_in_transaction_session_timeout = {max(1_000, int(patience * 1000))}"
        )

    @property
    def connection(self) -> Connection:
        """The connection, made anew when it was lost.

        Raises:
            psycopg.OperationalError: It was lost inside a transaction. On a new one, what belongs to that transaction
                would be committed by itself.
        """
        if self._connection is None or self._connection.closed:
            if self._within:
                raise psycopg.OperationalError("the connection was lost inside a transaction, which is undone")
            self._connection = connect_raw(self._place, self._name)
            self._database = GuardedDatabase(self._connection, self._place.schema, self._place.location)
        return self._connection

    @property
    def database(self) -> GuardedDatabase:
        """The connection as user code sees it inside a transaction."""
        self.connection  # noqa: B018 - makes both
        assert self._database is not None
        return self._database

    def drop(self) -> None:
        """Use the connection no more: what state it is in is not known."""
        self._within = False
        if self._connection is not None:
            self._connection.close()
        self._on_loss()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def end_former(self) -> None:
        """End this writer's former sessions: one that has not noticed its client's end would keep the lock."""
        self.connection.execute(
            "select pg_terminate_backend(a.pid) from pg_stat_activity a"
            " where a.application_name = $1 and a.usename = current_user and a.pid <> pg_backend_pid()",
            (self._name,),
        )

    # --- transactions ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction, in the isolation that appends need."""
        self._within = False
        self.connection.execute(self._begin)
        self._within = True

    def begin_locked(self, *, moving: bool = False) -> None:
        """Begin a transaction that holds the lock; tries again while the server is away.

        Args:
            moving: It is a copy's: what role the log has does not matter.

        Raises:
            ReplicaLog, LogMoved: The log takes what its source has, and nothing else, or has moved.
        """
        self._begin_patiently(lock=True)
        if not moving:
            self.check_role()

    def begin_unlocked(self) -> None:
        """Begin a transaction that places nothing; tries again while the server is away."""
        self._begin_patiently(lock=False)

    def _begin_patiently(self, *, lock: bool) -> None:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self.begin()
                if lock:
                    self.lock()
                return
            except psycopg.Error as error:
                self.drop()
                if not is_lost(error) or time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)

    def lock(self) -> None:
        """Take the lock that appends are serialised by, until the transaction ends."""
        self.connection.execute(f"select {self._place.quoted}.lock($1)", (self.wait,))

    def check_role(self) -> None:
        """Refuse what appends nothing, too: an append itself is refused by a trigger. And look at the register.

        And at whether there are constraints that may be deferred.

        Raises:
            ReplicaLog, LogMoved: See `begin_locked`. The transaction is undone.
        """
        facts: dict[str, str | None] = dict(
            self.connection.execute(
                f"select key, value from {self._place.quoted}.meta where key in ('role', 'inline')"
                " union all select 'seen', current_setting('millstream.inline', true)"
                " union all select 'defers', '' where exists (select from pg_constraint where condeferrable)"
            )
        )
        if "role" in facts:
            self.undo()
            raise msgspec.json.decode(str(facts["role"]), type=ready(Role)).refusal(self._place.location)
        self.defers = "defers" in facts
        self._register.load(facts.get("inline"))
        if self._register.counter and facts["seen"] != str(self._register.counter):
            self._say_seen()

    def look_at_register(self) -> None:
        """Learn which inline handlers all writers must have, and tell the server which state of that was seen."""
        row = self.connection.execute(f"select value from {self._place.quoted}.meta where key = 'inline'").fetchone()
        self._register.load(row[0] if row is not None else None)
        self._say_seen()

    def _say_seen(self) -> None:
        self.connection.execute("select set_config('millstream.inline', $1, false)", (str(self._register.counter),))

    def undo(self) -> None:
        """Undo the transaction."""
        self._within = False
        self._on_loss()
        connection = self._connection
        if connection is None or connection.closed or connection.broken:
            return
        try:
            connection.execute("rollback")
        except psycopg.Error:
            connection.close()

    def end(self) -> None:
        """Commit the transaction; what became of it when the answer is lost is for the caller to find out."""
        self.connection.execute("commit")
        self._within = False

    def commit(self) -> None:
        """Commit the transaction; when the answer is lost, ask the server what became of it."""
        row = self.connection.execute("select pg_current_xact_id_if_assigned()::text").fetchone()
        xid = row[0] if row is not None else None
        try:
            self.end()
        except psycopg.Error as error:
            self.drop()
            if xid is None or not is_lost(error) or not self._happened(xid):
                raise

    def _happened(self, xid: str) -> bool:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self.end_former()
                row = self.connection.execute("select pg_xact_status($1::xid8)", (xid,)).fetchone()
                if row is not None and row[0] != "in progress":
                    return bool(row[0] == "committed")
            except (psycopg.Error, MillstreamError):
                self.drop()
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE)
