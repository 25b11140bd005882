"""Leases: of several processes that could do some work, one does, and another takes over when that one is gone.

A lease is a row in the log's own database. Its holder raises its *beat* once a second; whoever wants it looks whether
the beat stands still, by a clock of its own: no two machines' clocks are compared. A lease alone is no proof, for a
holder may have been paused while it was taken over. The epoch of the work's checkpoint is: each new holder raises
it, and the one before meets that at its next commit. What no commit takes back asks `Lease.is_ours` before.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from ..errors import ReadOnlyLog, StorageError
from ..log import Log
from ..storage.base import Receipt
from ..storage.database import Database

TABLE = "millstream_leases"
TABLES = {
    TABLE: "name text primary key, holder text not null, epoch bigint not null, beat bigint not null,"
    " paused integer not null"
}
"""The table of leases: its columns by its name."""

BEAT = 1.0
"""How often, in seconds, a holder shows that it lives."""

EXPIRES = 3.0
"""After so many seconds without a beat, a holder is taken for dead."""

_HOLDER = re.compile(r"[^/]*/[^/]*/\d+/[^/]*/[0-9a-f]{12}")
"""The form of what stands for a process."""

_LOOK = 0.2
"""How often, in seconds, whoever waits for a lease looks at it."""

_SURE = 2.0
"""For so many seconds after a beat, less than it takes to be taken for dead, a holder knows that it is one."""


class Stop(Protocol):
    """Says that work is to end."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Row(msgspec.Struct, frozen=True):
    """A lease as it is written."""

    name: str
    holder: str
    epoch: int
    beat: int
    paused: int


class Lease:
    """A lease that is held, for as long as ``lost`` is not set.

    Args:
        show: Shows in the log that its holder lives, or finds that it is lost; None for one that stands in no log.

    Attributes:
        shown: When it began to be shown last, by `clock`.
    """

    def __init__(self, name: str, show: Callable[[Lease], None] | None = None) -> None:
        self.name = name
        self.lost = threading.Event()
        self.paused = False
        self.shown = clock()
        self._show = show

    def is_ours(self) -> bool:
        """Whether it is held, and will be for a second: to be asked before what cannot be rolled back.

        Nobody can have taken it so soon after a beat. One who was paused for longer shows itself first.
        """
        if self._show is not None and not self.lost.is_set() and clock() - self.shown >= _SURE:
            self._show(self)
        return not self.lost.is_set()


class Leases:
    """The leases that this process holds in a log, and wants: on projections, processes and outboxes.

    Attributes:
        holder: Stands for this process, and for no other one.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self.begin()

    def begin(self) -> None:
        """Hold nothing, as a process of its own: in a forked child, the leases are its parent's."""
        self.holder = _holder()
        self._held: dict[str, Lease] = {}
        self._mutex = threading.Lock()
        self._beating: threading.Thread | None = None

    def row(self, name: str) -> Row | None:
        """A lease as it is written now."""
        with self._log.connect() as db:
            return _row(db, name)

    def rows(self, begins: str) -> list[Row]:
        """The leases whose names begin so."""
        with self._log.connect() as db:
            if not db.has_table(TABLE):
                return []
            rows = db.query(f"select name, holder, epoch, beat, paused from {db.own(TABLE)}")
        return [Row(**row) for row in rows if row["name"].startswith(begins)]

    def acquire(self, name: str, stop: Stop, tell: Callable[[bool], None]) -> Lease | None:
        """Wait until the lease is ours; None when it is time to stop.

        Args:
            tell: Called while it is not to be had, with whether it is paused; else another one holds it.
        """
        seen: Row | None = None
        since = 0.0
        while not stop.is_set():
            row = self.row(name)
            if row is None or not row.holder or row.holder == self.holder or is_dead(row.holder):
                free = True
            elif seen is None or (row.holder, row.epoch, row.beat) != (seen.holder, seen.epoch, seen.beat):
                seen, since = row, time.monotonic()
                free = False
            else:
                free = time.monotonic() - since >= EXPIRES
            if (row is None or not row.paused) and free:
                began = clock()
                try:
                    taken = self._take(name, row)
                except ReadOnlyLog:
                    return Lease(name)  # who may not write here keeps what lies elsewhere, fenced by its epoch alone
                if taken:
                    return self._hold(name, began)
            else:
                tell(row is not None and bool(row.paused))
            stop.wait(_LOOK)
        return None

    def _take(self, name: str, seen: Row | None) -> bool:
        done: list[bool] = []

        def work(db: Database, receipt: Receipt) -> None:
            done.clear()
            db.ensure_table(TABLE, TABLES[TABLE])
            now = _row(db, name)
            # Whoever holds it has shown a sign of life meanwhile, or another one was quicker.
            if now != seen:
                done.append(False)
                return
            db.execute(
                f"insert into {db.own(TABLE)} as held (name, holder, epoch, beat, paused) values (?, ?, 1, 0, 0)"
                " on conflict (name) do update set holder = excluded.holder, epoch = held.epoch + 1,"
                " beat = held.beat + 1",
                (name, self.holder),
            )
            done.append(True)

        self._log.commit(work=work)
        return done[-1]

    def _hold(self, name: str, began: float) -> Lease:
        lease = Lease(name, lambda lease: self._show([lease]))
        lease.shown = began
        with self._mutex:
            self._held[name] = lease
            if self._beating is None or not self._beating.is_alive():
                self._beating = threading.Thread(target=self._beat, name="millstream-leases", daemon=True)
                self._beating.start()
        return lease

    def release(self, lease: Lease) -> None:
        """Give a lease back, so that the next one need not wait."""
        with self._mutex:
            if self._held.get(lease.name) is not lease:
                return
            del self._held[lease.name]

        def work(db: Database, receipt: Receipt) -> None:
            db.execute(
                f"update {db.own(TABLE)} set holder = '', beat = beat + 1 where name = ? and holder = ?",
                (lease.name, self.holder),
            )

        with suppress(StorageError):  # it will be seen that there are no more beats
            self._log.commit(work=work)

    def pause(self, name: str, paused: bool) -> None:
        """Have nobody hold a lease, or have it held again. Whoever holds it lets go within a second or two."""

        def work(db: Database, receipt: Receipt) -> None:
            db.ensure_table(TABLE, TABLES[TABLE])
            db.execute(
                f"insert into {db.own(TABLE)} as held (name, holder, epoch, beat, paused) values (?, '', 0, 0, ?)"
                " on conflict (name) do update set paused = excluded.paused",
                (name, int(paused)),
            )

        self._log.commit(work=work)
        with self._mutex:
            lease = self._held.get(name)
        if lease is not None and paused:
            lease.paused = True
            lease.lost.set()

    def _beat(self) -> None:
        """Show, once a second, that the holder of what is held lives."""
        while True:
            time.sleep(BEAT)
            with self._mutex:
                held = list(self._held.values())
                if not held:
                    self._beating = None
                    return
            try:
                self._show(held)
            except StorageError:
                for lease in held:
                    if clock() - lease.shown >= EXPIRES:
                        lease.lost.set()
                # The others have time for another try: the log may be busy.

    def _show(self, held: Sequence[Lease]) -> None:
        """Show that the holder of leases lives; of each that is its own no more, say so."""
        began = clock()
        ours = self._beaten([lease.name for lease in held])
        for lease in held:
            if ours.get(lease.name) is False:
                lease.shown = max(lease.shown, began)
            else:
                lease.paused = lease.name in ours
                lease.lost.set()

    def _beaten(self, names: list[str]) -> dict[str, bool]:
        """Raise the beats; of those that are still ours, whether they are paused."""
        found: list[Row | None] = []

        def work(db: Database, receipt: Receipt) -> None:
            found.clear()
            for name in names:
                db.execute(
                    f"update {db.own(TABLE)} set beat = beat + 1 where name = ? and holder = ?", (name, self.holder)
                )
                found.append(_row(db, name))

        self._log.commit(work=work)
        return {row.name: bool(row.paused) for row in found if row is not None and row.holder == self.holder}


def _row(db: Database, name: str) -> Row | None:
    if not db.has_table(TABLE):
        return None
    row = db.one(f"select name, holder, epoch, beat, paused from {db.own(TABLE)} where name = ?", (name,))
    return Row(**row) if row else None


def clock() -> float:
    """The seconds since some moment, with those for which the machine slept, where it knows them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _holder() -> str:
    return f"{socket.gethostname()}/{_boot()}/{os.getpid()}/{_started(os.getpid())}/{uuid.uuid4().hex[:12]}"


def is_holder(text: str) -> bool:
    """Whether a text has the form of what stands for a process."""
    return _HOLDER.fullmatch(text) is not None


def is_dead(holder: str) -> bool:
    """Whether a holder is a process of this machine that has ended; its successor need not wait then.

    A mistake would cost a change of hands, and messages to the outside that are sent twice: the epoch fences whoever is
    taken for dead and is not.
    """
    parts = holder.split("/")
    if os.name != "posix" or len(parts) != 5 or parts[0] != socket.gethostname() or parts[1] != _boot():
        return False
    try:
        os.kill(int(parts[2]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return parts[3] != _started(int(parts[2]))


def _boot() -> str:
    """What tells where numbers of processes mean the same: of one start of a machine, and of one container."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip() + _namespace()
    except OSError:
        return ""


def _namespace() -> str:
    """What tells containers apart, which may have the name of their machine."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, as far as that is known: numbers of processes are used again."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            return fields[19] if fields[0] != "Z" else "over"
    except (OSError, IndexError):
        return ""
