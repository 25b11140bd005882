"""The worker of an outbox, and what becomes of messages that cannot be sent.

The table holds the messages that wait aside, by position: ``retry``, to be tried again when due; ``waiting`` behind an
earlier one of their key; ``parked``, given up until someone says otherwise. All others are sent in the log's order, and
the checkpoint moves with them.
"""

from __future__ import annotations

import random
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..errors import ConsumerFenced, NotFound, SinkUnavailable
from ..log.checkpoints import Checkpoint, advance, peek, reached, take
from ..time import now_micros
from .errors import in_words
from .holding import Held, Turn
from .outbox import POSTED, Message, Outbox, stream_of

if TYPE_CHECKING:
    from datetime import datetime

    from ..log import Log, Recorded
    from ..storage.base import Receipt
    from ..storage.database import Database
    from .lease import Leases

TABLE = "millstream_outbox"
TABLES = {
    TABLE: "outbox text not null, position bigint not null, key text not null, state text not null,"
    " attempts bigint not null, due bigint not null, error text not null, primary key (outbox, position)"
}
"""The table of messages that wait aside: its columns by its name."""

_LOOK = 0.2
_QUIET = 1.0
_AT_ONCE = 50
"""How many messages are sent, at most, before that is noted in the log."""
_LONGEST = 0.1
"""The same in seconds."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0
_ERROR_LENGTH = 2_000

State = Literal["retry", "waiting", "parked"]


class Unsent(msgspec.Struct, frozen=True):
    """A message that waits aside.

    Attributes:
        outbox: The outbox's name.
        position: Its position in the log.
        key: Its key.
        state: ``retry``: it is tried again by itself. ``waiting``: for an earlier one of its key. ``parked``: given up.
        attempts: How often it was tried.
        error: What went wrong last.
    """

    outbox: str
    position: int
    key: str
    state: State
    attempts: int
    error: str


def unsent(log: Log, outbox: str | None = None) -> list[Unsent]:
    """The messages that wait aside, of one outbox or of all, in order."""
    with log.connect() as db:
        if not db.has_table(TABLE):
            return []
        where, params = ("where outbox = ?", (outbox,)) if outbox is not None else ("", ())
        rows = db.query(
            f"select outbox, position, key, state, attempts, error from {db.own(TABLE)} {where}"
            " order by outbox, position",
            params,
        )
    return [Unsent(**row) for row in rows]


class Backlog(msgspec.Struct, frozen=True):
    """What is still to be sent of an outbox, by whoever runs it.

    Attributes:
        outbox: The outbox's name.
        messages: How many messages have not been sent.
        since: When the first of them was posted (UTC); None when there is none.
        aside: How many of them wait aside: see `unsent`.
    """

    outbox: str
    messages: int
    since: datetime | None
    aside: int


def backlog(log: Log, outbox: str) -> Backlog:
    """What is still to be sent of an outbox."""
    stream = stream_of(outbox)
    with log.connect() as db:
        sent = reached(db, _consumer(outbox))
    aside = unsent(log, outbox)
    ahead = next(log.read(stream, types=[POSTED], after=sent), None)
    messages = len(aside) + (0 if ahead is None else log.version(stream) - ahead.version + 1)
    held = (
        next(log.read(since_position=aside[0].position, until_position=aside[0].position + 1), None) if aside else None
    )
    since = min((each.time for each in (ahead, held) if each is not None), default=None)
    return Backlog(outbox, messages, since, len(aside))


def backlogs(log: Log) -> list[Backlog]:
    """The same of each outbox that was ever posted to, also of one that no app has."""
    prefix = stream_of("")
    return [backlog(log, each.name.removeprefix(prefix)) for each in log.streams(f"{prefix}*")]


def retry(log: Log, outbox: str, position: int | None = None) -> int:
    """Have parked messages tried again: one, by its position, or all of an outbox.

    Returns:
        How many.

    Raises:
        NotFound: There is none at the position.
    """
    return _settle(
        log,
        outbox,
        position,
        "update {table} set state = 'retry', attempts = 0, due = 0 where state = 'parked' and {it}",
    )


def skip(log: Log, outbox: str, position: int) -> int:
    """Never send a message that waits aside; those of its key that wait behind it go on.

    Raises:
        NotFound: There is none at the position.
    """
    return _settle(log, outbox, position, "delete from {table} where {it}")


def _settle(log: Log, outbox: str, position: int | None, sql: str) -> int:
    done: list[int] = []

    def work(db: Database, receipt: Receipt) -> None:
        db.ensure_table(TABLE, TABLES[TABLE])
        which = "outbox = ?" if position is None else "outbox = ? and position = ?"
        params = (outbox,) if position is None else (outbox, position)
        done[:] = [db.execute(sql.format(table=db.own(TABLE), it=which), params).rowcount]

    log.commit(work=work)
    if position is not None and not done[-1]:
        raise NotFound(
            f"no message of outbox {outbox!r} at position {position} waits for that",
            hint="`millstream outbox ls` shows those that wait",
        )
    return done[-1]


def _consumer(outbox: str) -> str:
    return f"outbox:{outbox}"


class Delivery(Held):
    """Sends an outbox's messages, in the thread that calls `run`.

    One holder at a time, by a lease in the log's database, and by the epoch of the checkpoint, which each new holder
    raises. What was sent is not rolled back: so no message is begun that might be another holder's by now.
    """

    def __init__(self, log: Log, outbox: Outbox, leases: Leases) -> None:
        super().__init__(leases, _consumer(outbox.name))
        self.outbox = outbox
        self.name = outbox.name
        self._log = log
        self._failures = 0
        self.is_outside = False
        """Whether it waits for a message to be sent."""

    @property
    def consumer(self) -> str:
        """The name of its checkpoint."""
        return self._held_as

    def forked(self) -> None:
        """In a forked child: the worker is in the parent, which goes on."""
        super().forked()
        self.is_outside = False

    def prepare(self) -> None:
        """Make its table, so that who looks finds it."""
        with self._log.connect() as db:
            if db.has_table(TABLE):
                return
        self._log.commit(work=lambda db, receipt: db.ensure_table(TABLE, TABLES[TABLE]))

    def position(self) -> int:
        """How far it has come; whichever process keeps it."""
        with self._log.connect() as db:
            return reached(db, self.consumer)

    def backlog(self) -> Backlog:
        """What is still to be sent; whichever process sends it."""
        return backlog(self._log, self.name)

    def _work(self, turn: Turn) -> None:
        held: list[Checkpoint] = []

        def work(db: Database, receipt: Receipt) -> None:
            db.ensure_table(TABLE, TABLES[TABLE])
            held[:] = [take(db, self.consumer)]

        self._log.commit(work=work)
        self._checkpoint = held[-1]
        written = time.monotonic()
        while not turn.is_set():
            head = self._log.head
            worked = self._again(turn) | self._forth(head, turn)
            if worked:
                written = time.monotonic()
            elif head > self._checkpoint.position and time.monotonic() - written >= _QUIET:
                self._note([], head)
                written = time.monotonic()
            if not worked:
                self._log.wait(head, _LOOK)

    # --- what is new ----------------------------------------------------------------------------------

    def _forth(self, head: int, turn: Turn) -> bool:
        """Send what has come up to a position; whether there was anything."""
        events = self._log.read(
            stream_of(self.name), types=[POSTED], after=self._checkpoint.position, until_position=head + 1
        )
        piece = list(islice(events, _AT_ONCE))
        if not piece:
            return False
        held = {each.key for each in unsent(self._log, self.name) if each.key}
        aside: list[tuple[Any, ...]] = []
        reached = self._checkpoint.position
        until = time.monotonic() + _LONGEST
        for recorded in piece:
            if not turn.lease.is_ours():
                break
            key = recorded.data["key"]
            if key and key in held:
                aside.append((self.name, recorded.position, key, "waiting", 0, 0, ""))
            else:
                try:
                    error = self._try(recorded)
                except SinkUnavailable as unavailable:
                    if reached > self._checkpoint.position:
                        self._note(aside, reached)
                    self._pause(turn, unavailable)
                    return True
                if error:
                    aside.append((self.name, recorded.position, key, *self._next(1), error))
                    held.add(key)
            reached = recorded.position
            if turn.is_set() or time.monotonic() > until:
                break
        self._note(aside, reached)
        return True

    def _try(self, recorded: Recorded) -> str:
        """Send a message; why not, in words, or nothing.

        Raises:
            SinkUnavailable: It is not the message's fault.
        """
        message = Message(
            f"{self._log.id}:{recorded.position}", recorded.data["body"], recorded.data["key"], recorded.position,
            recorded.time, recorded.correlation,
        )  # fmt: skip
        self.is_outside = True
        try:
            self.outbox.send(message)
        except SinkUnavailable:
            raise
        except BaseException as error:  # sys.exit(), and what asyncio cancels, is no better
            return in_words(error)[:_ERROR_LENGTH]
        finally:
            self.is_outside = False
        self._failures = 0
        return ""

    def _next(self, attempts: int) -> tuple[State, int, int]:
        """The state, the count of attempts and the time of a message that was tried so often in vain."""
        if self.outbox.attempts is not None and attempts >= self.outbox.attempts:
            return "parked", attempts, 0
        pause = min(_FIRST_PAUSE * 2.0 ** min(attempts - 1, 20), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
        return "retry", attempts, now_micros() + int(pause * 1e6)

    def _pause(self, turn: Turn, unavailable: SinkUnavailable) -> None:
        self._failures += 1
        pause = min(_FIRST_PAUSE * 2.0 ** min(self._failures - 1, 20), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
        turn.wait(max(pause, min(unavailable.after or 0.0, 600.0)))

    def _note(self, aside: list[tuple[Any, ...]], position: int) -> None:
        moved: list[Checkpoint] = []

        def work(db: Database, receipt: Receipt) -> None:
            moved[:] = [advance(db, self._checkpoint, position)]
            if aside:
                db.executemany(f"insert into {db.own(TABLE)} values (?, ?, ?, ?, ?, ?, ?)", aside)

        self._log.commit(work=work)
        self._checkpoint = moved[-1]

    # --- what waits aside -----------------------------------------------------------------------------

    def _again(self, turn: Turn) -> bool:
        """Try what is due of the messages aside: of each key, the first; whether anything was."""
        waiting = unsent(self._log, self.name)
        if not waiting:
            return False
        due = self._due()
        seen: set[str] = set()
        worked = False
        for each in waiting:
            first = not each.key or each.key not in seen
            seen.add(each.key)
            if turn.is_set() or not first or not (each.state == "waiting" or each.position in due):
                continue
            recorded = next(self._log.read(since_position=each.position, until_position=each.position + 1), None)
            if recorded is None:  # trimmed: there is nothing left to send
                self._after(each, "")
                continue
            if not turn.lease.is_ours():
                break
            try:
                error = self._try(recorded)
            except SinkUnavailable as unavailable:
                self._pause(turn, unavailable)
                return True
            self._after(each, error)
            if not error:
                seen.discard(each.key)  # the next of its key is the first now
            worked = True
        return worked

    def _due(self) -> set[int]:
        with self._log.connect() as db:
            rows = db.query(
                f"select position from {db.own(TABLE)} where outbox = ? and state = 'retry' and due <= ?",
                (self.name, now_micros()),
            )
        return {row["position"] for row in rows}

    def _after(self, each: Unsent, error: str) -> None:
        def work(db: Database, receipt: Receipt) -> None:
            if peek(db, self.consumer) != self._checkpoint:
                raise ConsumerFenced(self.consumer)  # another process has taken over
            it = (each.outbox, each.position)
            if error:
                db.execute(
                    f"update {db.own(TABLE)} set state = ?, attempts = ?, due = ?, error = ?"
                    " where outbox = ? and position = ?",
                    (*self._next(each.attempts + 1), error, *it),
                )
            else:
                db.execute(f"delete from {db.own(TABLE)} where outbox = ? and position = ?", it)

        self._log.commit(work=work)
