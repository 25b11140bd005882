"""Keys in a SQLite file of their own, beside the log's.

A key is a row that is never deleted or moved: forgetting writes zeros over its 32 bytes, in place. So no page that
SQLite splits or merges can keep an old copy. What SQLite keeps for a rollback is overwritten as well; that is why the
journal is one that can be (a write-ahead log cannot), and why it stays when a transaction has ended.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ...errors import NotALog, NotFound, ReadOnlyLog, SubjectForgotten, UsageError
from ...storage.sqlite.database import address
from ...storage.sqlite.faults import translated
from ...storage.sqlite.forks import Tracked, at_work, opened
from ..files import sync_folder

APPLICATION_ID = 0x4D494C4B  # "MILK"
KEY_BYTES = 32
_DESTROYED = bytes(KEY_BYTES)
_TIMEOUT = 30.0
_SCHEMA = (
    "create table if not exists keys (id integer primary key, key blob not null)",
    "create table if not exists names (name text primary key, id integer not null,"
    " forgotten integer not null default 0) without rowid",
    "create table if not exists meta (key text primary key, value integer not null) without rowid",
    "insert into meta values ('destroyed', 0) on conflict do nothing",
)


class KeyFile:
    """A `KeyStore` in a file. The file is made when the first key is. For any number of threads and processes.

    Args:
        path: The file.
        readonly: Never make or change it.
    """

    def __init__(self, path: str, *, readonly: bool = False) -> None:
        self.path = os.path.abspath(path)  # wherever the process goes
        self.readonly = readonly
        self._begin()

    def __repr__(self) -> str:
        return self.path

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._version = self._generation = -1

    @property
    def exists(self) -> bool:
        """Whether the file is there."""
        return os.path.exists(self.path)

    # --- as a `KeyStore` ----------------------------------------------------------------------------

    def get(self, subject: str) -> bytes | None:
        """The key of a subject; None when there is none, or none any more."""
        with self._reading() as connection:
            if connection is None:
                return None
            row = connection.execute(
                "select k.key from names n join keys k on k.id = n.id where n.name = ?", (subject,)
            ).fetchone()
        return row[0] if row is not None and row[0] != _DESTROYED else None

    def create(self, subject: str) -> bytes:
        """The key of a subject, made if there is none; on disk when this returns.

        Raises:
            SubjectForgotten: They were forgotten.
        """
        return self.create_many([subject])[subject]

    def create_many(self, subjects: Iterable[str]) -> dict[str, bytes]:
        """The same for several subjects, in one transaction."""
        found: dict[str, bytes] = {}
        with self._writing() as connection:
            for subject in subjects:
                row = connection.execute(
                    "select n.id, n.forgotten, k.key from names n join keys k on k.id = n.id where n.name = ?",
                    (subject,),
                ).fetchone()
                if row is not None and row[1]:
                    raise SubjectForgotten(subject)
                if row is not None and row[2] != _DESTROYED:
                    found[subject] = row[2]
                    continue
                found[subject] = key = secrets.token_bytes(KEY_BYTES)
                if row is not None:
                    connection.execute("update keys set key = ? where id = ?", (key, row[0]))
                else:
                    self._add(connection, subject, key)
        return found

    def forget(self, subject: str) -> bool:
        """Destroy the key of a subject for good; nothing of it is left in the file, and no other is made for them."""
        with self._writing(wipe=True) as connection:
            destroyed = self._destroy(connection, subject)
            if connection.execute("update names set forgotten = 1 where name = ?", (subject,)).rowcount == 0:
                self._add(connection, subject, _DESTROYED)
                connection.execute("update names set forgotten = 1 where name = ?", (subject,))
        return destroyed

    def forgotten(self, subject: str) -> bool:
        """Whether they were forgotten."""
        with self._reading() as connection:
            if connection is None:
                return False
            row = connection.execute("select forgotten from names where name = ?", (subject,)).fetchone()
        return row is not None and bool(row[0])

    def discard(self, name: str) -> None:
        """Destroy a key, so that another can be made under its name."""
        if self.get(name) is not None:
            with self._writing(wipe=True) as connection:
                self._destroy(connection, name)

    @property
    def generation(self) -> int:
        """A number that changes whenever a key was destroyed, by any process."""
        with self._reading() as connection:
            if connection is None:
                return 0
            # Asks the file whether anyone else has written to it: some microseconds.
            version = connection.execute("pragma data_version").fetchone()[0]
            if version != self._version:
                self._generation = connection.execute("select value from meta where key = 'destroyed'").fetchone()[0]
                self._version = version
            return self._generation

    def close(self) -> None:
        """Close the file."""
        with at_work, self._mutex:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
                self._connection = None

    # --- the file -----------------------------------------------------------------------------------

    @staticmethod
    def _add(connection: sqlite3.Connection, name: str, key: bytes) -> None:
        id = connection.execute("insert into keys (key) values (?)", (key,)).lastrowid
        connection.execute("insert into names (name, id) values (?, ?)", (name, id))

    @staticmethod
    def _destroy(connection: sqlite3.Connection, name: str) -> bool:
        changed = connection.execute(
            "update keys set key = ? where id = (select id from names where name = ?) and key != ?",
            (_DESTROYED, name, _DESTROYED),
        ).rowcount
        if changed:
            connection.execute("update meta set value = value + 1 where key = 'destroyed'")
        return bool(changed)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        self._renew()
        with at_work, self._mutex, translated(self.path, lock_timeout=_TIMEOUT):
            yield self._connected(create=False)

    @contextmanager
    def _writing(self, *, wipe: bool = False) -> Iterator[sqlite3.Connection]:
        if self.readonly:
            raise ReadOnlyLog(self.path)
        self._renew()
        with at_work, self._mutex, translated(self.path, lock_timeout=_TIMEOUT):
            connection = self._connected(create=True)
            assert connection is not None
            connection.execute("begin immediate")
            try:
                yield connection
                connection.execute("commit")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise
            finally:
                self._version = -1  # a connection does not see its own changes as changes
            if wipe:
                self._wipe(connection)

    def _wipe(self, connection: sqlite3.Connection) -> None:
        """Overwrite what the journal has kept of the pages before they were changed.

        Nobody else uses the journal while the file is locked, and one that begins with zeros holds nothing to roll
        back. Its own file has no locks that closing it could end.
        """
        connection.execute("begin exclusive")
        try:
            with open(f"{self.path}-journal", "r+b") as journal:
                size = os.fstat(journal.fileno()).st_size
                journal.write(bytes(size))
                journal.flush()
                os.fsync(journal.fileno())
        except FileNotFoundError:
            pass
        finally:
            connection.execute("rollback")

    def _renew(self) -> None:
        """In a forked child: a connection of its own."""
        if self._pid != os.getpid():
            self._begin()

    def _connected(self, *, create: bool) -> sqlite3.Connection | None:
        if self._connection is not None:
            return self._connection
        if not os.path.exists(self.path):
            if not create:
                return None
            self._make()
        mode = "ro" if self.readonly else "rw"
        connection = opened(
            self.path, address(self.path, mode), kind=Tracked,
            uri=True, isolation_level=None, timeout=_TIMEOUT,
        )  # fmt: skip
        try:
            if not self._prepare(connection, create):
                connection.close()
                return None
        except NotALog as error:
            connection.close()
            raise self._foreign() from error
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _prepare(self, connection: sqlite3.Connection, create: bool) -> bool:
        """See that it is a file of keys; whether there are any tables in it."""
        with translated(self.path, lock_timeout=_TIMEOUT):
            # At one moment: another process may be making the tables.
            connection.execute("begin")
            found = connection.execute("pragma application_id").fetchone()[0]
            empty = connection.execute("select count(*) from sqlite_master").fetchone()[0] == 0
            connection.execute("commit")
            if found != APPLICATION_ID and not (found == 0 and empty):
                raise self._foreign()
            if self.readonly:
                return not empty
            connection.execute("pragma journal_mode = persist")
            connection.execute("pragma synchronous = full")
            connection.execute("pragma secure_delete = on")
            if empty and not create:
                return False
            if empty:
                connection.execute("begin immediate")
                for statement in (*_SCHEMA, f"pragma application_id = {APPLICATION_ID}"):
                    connection.execute(statement)
                connection.execute("commit")
            return True

    def _foreign(self) -> UsageError:
        return UsageError(f"{self.path} is no file of keys", hint="Give the path of one, or of a new file")

    def _make(self) -> None:
        """An empty file that nobody else may read. It gets its name when it is closed: closing ends SQLite's locks."""
        folder = os.path.dirname(os.path.abspath(self.path))
        if not os.path.isdir(folder):
            raise NotFound(f"there is no folder {folder}", hint="Create it first")
        new = f"{self.path}.{secrets.token_hex(6)}"
        try:
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            try:
                os.link(new, self.path)
            except FileExistsError:
                pass
            finally:
                os.unlink(new)
        except PermissionError as error:
            raise ReadOnlyLog(self.path) from error
        sync_folder(folder)
