"""The worker of a process class: has its processes react, sends their commands, fires their timers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from ..conversion import ready
from ..errors import (
    ConstraintViolated,
    ConsumerFenced,
    DatabaseError,
    IdReused,
    MillstreamError,
    NotFound,
    Rejected,
    StorageError,
    StreamClosed,
)
from ..events import Plain
from ..log import Log, Recorded
from ..log.checkpoints import Checkpoint, advance, peek, reached, take
from ..storage.base import Receipt, StagedAppend
from ..storage.database import Database
from . import timers
from .errors import ProcessFailed, UnknownCommand, in_words
from .holding import Held, Turn
from .lease import Leases, Stop
from .outbox import staged_message
from .process import REACTED, CommandRejected, Process, Reaction, Sent

_LOOK = 0.2
"""How soon, in seconds, a worker that waits notices a timer that is due, or that it is to stop."""
_QUIET = 1.0
_PIECES = 100
_KEPT = 10_000
"""How many processes are kept in memory."""

REFUSED = hashlib.sha256(b"rejected").digest()
"""What a command's id stands for when the command was refused: so it cannot take effect later, nor the other way."""

_REFUSALS = (Rejected, ConstraintViolated, StreamClosed, NotFound)

Execute = Callable[[str, dict[str, Any], str, str], Receipt]
"""Has a command executed: its name, its fields, its id, its correlation."""


class Reactor(Held):
    """Keeps the processes of one class going, in the thread that calls `run`.

    One holder at a time, by a lease in the log's database, and by the epochs of its checkpoints, which each new holder
    raises.
    """

    def __init__(self, log: Log, process: type[Process], execute: Execute, leases: Leases) -> None:
        super().__init__(leases, f"process:{process.name}")
        self.process = process
        self.name = process.name
        self._types = tuple(process._handlers())
        self._log = log
        self._execute = execute
        self._known: dict[str, Process] = {}
        self._closed: set[str] = set()
        """Streams of processes that were closed: they react to nothing more."""
        self._prefix = process._stream_of("")

    @property
    def consumer(self) -> str:
        """The name of the checkpoint of its reactions."""
        return self._held_as

    def prepare(self) -> None:
        """Have a process that is new to the log begin here."""
        with self._log.connect() as db:
            if peek(db, self.consumer) is not None:
                return
        # In a copy without its state, it goes on after the last event that it has reacted to.
        reacted = next(self._log.read(f"{self._prefix}*", types=[REACTED], backwards=True, limit=1), None)
        last = reacted.data["position"] if reacted is not None else None

        def work(db: Database, receipt: Receipt) -> None:
            for table, columns in timers.TABLES.items():
                db.ensure_table(table, columns)
            if peek(db, self.consumer) is None:
                start = 0 if self.process.history else receipt.position
                take(db, self.consumer, start=start if last is None else last)
                take(db, self._sending, start=0)

        self._log.commit(work=work)

    def position(self) -> int:
        """How far it has reacted; whichever process keeps it."""
        with self._log.connect() as db:
            return reached(db, self.consumer)

    def run(self, stop: Stop) -> None:
        """React, send and fire until ``stop`` is set, whenever nobody else does.

        Raises:
            ProcessFailed: A handler raised, or a command has no handler.
        """
        super().run(stop)

    def _work(self, turn: Turn) -> None:
        self.prepare()
        held: list[Checkpoint] = []

        def work(db: Database, receipt: Receipt) -> None:
            held[:] = [take(db, self.consumer), take(db, self._sending)]

        self._log.commit(work=work)
        self._reacted, self._sent = held
        self._known.clear()
        written = time.monotonic()
        while not turn.is_set():
            head = self._log.head
            worked = self._react(head, turn)
            worked |= self._send(turn)
            worked |= timers.fire(self._log, self.name, self._check) > 0
            if worked:
                written = time.monotonic()
            elif head > self._reacted.position and time.monotonic() - written >= _QUIET:
                self._commit([], [], head)
                written = time.monotonic()
            if not worked:
                self._log.wait(head, _LOOK)

    @property
    def _sending(self) -> str:
        return f"{self.consumer}:commands"

    def _check(self, db: Database) -> None:
        """Raise `ConsumerFenced` when another process has taken over."""
        if peek(db, self.consumer) != self._reacted:
            raise ConsumerFenced(self.consumer)

    # --- reactions ------------------------------------------------------------------------------------

    def _react(self, head: int, turn: Turn) -> bool:
        """React to what has come up to a position; whether there was anything."""
        any_done = False
        events = self._log.read(types=self._types, after=self._reacted.position, until_position=head + 1)
        while not turn.is_set() and (piece := list(islice(events, _PIECES))):
            appends: list[StagedAppend] = []
            works: list[Callable[[Database], None]] = []
            done = self._reacted.position
            try:
                for recorded in piece:
                    self._one(recorded, appends, works)
                    done = recorded.position
            except MillstreamError as error:
                if isinstance(error, StorageError) and not isinstance(error, DatabaseError):
                    raise  # a full disk or a lock is no fault of the handler's
                self._failed(recorded, error, appends, works, done)
            except Exception as error:
                self._failed(recorded, error, appends, works, done)
            any_done = True
            try:
                self._commit(appends, works, done)
            except StreamClosed as error:
                if not error.stream.startswith(self._prefix):
                    raise
                # Whoever has closed it wants no more of this process: it has ended. The others go on.
                self._closed.add(error.stream)
                break
        return any_done

    def _failed(self, recorded: Recorded, error: Exception, appends: Any, works: Any, done: int) -> None:
        if done > self._reacted.position:
            self._commit(appends, works, done)
        said = in_words(error)
        raise ProcessFailed(self.name, recorded.position, recorded.type, said) from error

    def _one(self, recorded: Recorded, appends: list[StagedAppend], works: list[Callable[[Database], None]]) -> None:
        key = self._key(recorded)
        if key is None or (self._closed and self.process._stream_of(key) in self._closed):
            return
        process = self._find(key)
        if process is None:
            if self.process.starts is not None and recorded.type not in self.process.starts:
                return
            process = self.process(key)
        before = dict(process._open)
        try:
            reaction = process._react(recorded)
        except BaseException:
            self._known.pop(key, None)  # half changed
            raise
        if reaction is None:
            return
        # The one that was changed last comes last: what is dropped has to be on disk.
        self._known.pop(key, None)
        self._known[key] = process
        if len(self._known) > _KEPT:
            del self._known[next(iter(self._known))]
        correlation = recorded.correlation or str(recorded.position)
        causes = {"correlation": correlation, "causation": f"{recorded.stream}:{recorded.version}"}
        data = msgspec.to_builtins(reaction)
        appends.append(self._log.stage(process._stream, Plain(REACTED, data), metadata=causes))
        for note in reaction.post:
            appends.append(staged_message(self._log, note.outbox, note.body, note.key, causes))
        stopped = [(id, due) for id, (_, due) in before.items() if id not in process._open]
        stream = process._stream

        def work(db: Database) -> None:
            timers.drop(db, self.name, stopped)
            timers.keep(db, self.name, stream, correlation, reaction.set)

        if stopped or reaction.set:
            works.append(work)

    def _key(self, recorded: Recorded) -> str | None:
        stream = recorded.stream
        if stream.startswith(self._prefix):
            return stream[len(self._prefix) :]
        if recorded.type == CommandRejected.__event_type__:
            return None  # of another process
        return self.process.key_of(recorded)

    def _find(self, key: str) -> Process | None:
        found = self._known.get(key)
        if found is None:
            for last in self._log.read(self.process._stream_of(key), types=[REACTED], backwards=True, limit=1):
                found = self.process._restored(key, msgspec.convert(last.data, ready(Reaction)))
        return found

    def _commit(self, appends: list[StagedAppend], works: list[Callable[[Database], None]], position: int) -> None:
        moved: list[Checkpoint] = []

        def work(db: Database, receipt: Receipt) -> None:
            moved.append(advance(db, self._reacted, position))
            for each in works:
                each(db)

        try:
            self._log.commit(appends, work=work)
        except BaseException:
            self._known.clear()
            raise
        self._reacted = moved[-1]

    # --- commands -------------------------------------------------------------------------------------

    def _send(self, turn: Turn) -> bool:
        """Send the commands of reactions that are on disk; whether there were any."""
        reached = self._sent.position
        try:
            for recorded in self._log.read(f"{self._prefix}*", types=[REACTED], after=reached):
                if turn.is_set():
                    break
                reaction = msgspec.convert(recorded.data, ready(Reaction))
                correlation = recorded.correlation or ""
                for sent in reaction.send:
                    if not self._done(recorded, sent, sent.id, correlation):
                        break
                for undoing in reaction.undo:
                    if self._took_effect(undoing.of):
                        self._done(recorded, undoing, f"{undoing.of}:undo", correlation)
                reached = recorded.position
        finally:
            moved = reached > self._sent.position
            if moved:
                self._sent = self._advanced(reached)
        return moved

    def _advanced(self, position: int) -> Checkpoint:
        done: list[Checkpoint] = []
        self._log.commit(work=lambda db, receipt: done.append(advance(db, self._sent, position)))  # may run twice
        return done[-1]

    def _done(self, recorded: Recorded, sent: Sent, id: str, correlation: str) -> bool:
        """Execute a command; False when it was refused, which then stands in the process's stream."""
        try:
            self._execute(sent.type, sent.data, id, correlation)
        except IdReused:
            return self._took_effect(id)  # or else it was refused before, perhaps by another worker
        except UnknownCommand as error:
            raise ProcessFailed(self.name, recorded.position, sent.type, str(error)) from error
        except _REFUSALS as error:
            refused = CommandRejected(
                command=sent.type,
                id=id,
                reason=error.reason if isinstance(error, Rejected) else str(error),
                field=error.field if isinstance(error, Rejected) else None,
                data=sent.data,
            )
            causes = {"correlation": correlation, "causation": id}
            staged = self._log.stage(recorded.stream, refused, metadata=causes)
            try:
                try:
                    self._log.commit([staged], id=id, digest=REFUSED)
                except StreamClosed:
                    self._log.commit(id=id, digest=REFUSED)  # there is nobody to be told
            except IdReused:
                return True  # another worker had it executed meanwhile
            return False
        except MillstreamError as error:
            if not isinstance(error, DatabaseError):
                raise
            raise ProcessFailed(self.name, recorded.position, sent.type, str(error)) from error
        except Exception as error:
            said = in_words(error)
            raise ProcessFailed(self.name, recorded.position, sent.type, said) from error
        return True

    def _took_effect(self, id: str) -> bool:
        row = self._log.store.append_row(id)
        return row is not None and row.digest != REFUSED
