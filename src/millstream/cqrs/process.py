"""Process managers: what is to happen over time, across aggregates, as one thing follows from another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import msgspec

from ..conversion import ready
from ..errors import UsageError
from ..events import Event, Plain, type_name
from ..log import Recorded
from ..log.handlers import Handler, InvalidHandler, class_options, handler_table, resolve
from ..time import Duration, Moment, duration_micros, to_micros
from .binding import named
from .command import Command

REACTED = "ProcessReacted"
"""The type of the events that say what a process did about one event."""

_OWN = ("send", "after", "at", "cancel", "post", "compensate", "end", "id", "ended", "key_of")


class CommandRejected(Event, type="CommandRejected"):
    """A command that a process sent was refused; it stands in the process's stream.

    Attributes:
        command: The name of the command's class.
        id: The id that it was sent with.
        reason: Why.
        field: The command's field at fault, if it is one.
        data: The command's fields.
    """

    command: str
    id: str
    reason: str
    field: str | None = None
    data: dict[str, Any] = {}


class Sent(msgspec.Struct, omit_defaults=True):
    """A command as a reaction keeps it.

    Attributes:
        id: What it is executed under; empty for one that undoes another.
        of: What it undoes: the id of another command.
    """

    type: str
    data: dict[str, Any]
    id: str = ""
    of: str = ""


class Timer(msgspec.Struct):
    """A timer that was set: the event that will be appended, and when (microseconds since 1970)."""

    id: str
    due: int
    type: str
    data: dict[str, Any]


class Note(msgspec.Struct):
    """A message for an outbox, as a reaction keeps it."""

    outbox: str
    body: Any
    key: str


class Reaction(msgspec.Struct, omit_defaults=True):
    """What a process did about one event, and what it is like afterwards: the data of a `REACTED` event."""

    position: int
    type: str
    state: dict[str, Any]
    send: list[Sent] = []
    undo: list[Sent] = []
    """What is done to make up for commands that took effect, last first."""
    set: list[Timer] = []
    post: list[Note] = []
    open: dict[str, tuple[str, int]] = {}
    """The timers that run, by id: the event's type and when they are due."""
    undoable: list[Sent] = []
    ended: bool = False


class Process:
    """Base class of process managers: reacts to events, sends commands, sets timers, and remembers.

    Each process is one of many of its class, told apart by a key: by default the name of the stream that an event
    stands in, or the event's field that the class option ``key="order"`` names. Handlers, marked ``@ms.on``, take the
    event and, by annotation or name, ``recorded: ms.Recorded``. Attributes with a type and a value are the state, as
    JSON can hold it.

    What a handler asks for is kept in the process's own stream (``Fulfilment-order-1``) in the commit that marks the
    event as done, so that each reaction happens exactly once, whenever the program dies. Commands are sent after that,
    in order, each with an id of its own: they take effect once. One that is `Rejected` ends its reaction's commands,
    and is told to the process as `CommandRejected`. Timers are kept in the log, and fire by its clock: their event is
    appended to the process's stream first, and then reacted to.

    A process that is new to a log reacts to what comes after it was first given to an app; with the class option
    ``history=True``, to all of the past too.

    Class options: ``key``; ``starts``, the types of events that begin a process (default: all that it handles);
    ``history``.

    Attributes:
        id: The key.
        ended: Whether it has ended: then it reacts to nothing.

    Example:
        >>> import millstream as ms
        >>> class Placed(ms.Event):
        ...     pass
        >>> class Overdue(ms.Event):
        ...     pass
        >>> class Cancel(ms.Command):
        ...     order: str
        >>> class Payment(ms.Process):
        ...     reminded: bool = False
        ...
        ...     @ms.on
        ...     def placed(self, event: Placed) -> None:
        ...         self.after("15m", Overdue())
        ...
        ...     @ms.on
        ...     def overdue(self, event: Overdue) -> None:
        ...         self.send(Cancel(self.id))
        ...         self.end()
        >>> app = ms.App(ms.open(), processes=[Payment])
    """

    name: ClassVar[str] = ""
    key: ClassVar[str | None] = None
    history: ClassVar[bool] = False
    starts: ClassVar[frozenset[str] | None] = None

    __fields: ClassVar[dict[str, tuple[Any, Any]]] = {}
    __shape: ClassVar[Any] = None
    __table: ClassVar[dict[str, Handler] | None] = None

    def __init_subclass__(
        cls,
        *,
        key: str | None = None,
        starts: Iterable[str | type[Event]] | None = None,
        history: bool = False,
        **options: Any,
    ) -> None:
        with class_options(cls, "a process", "key=, starts= and history=", options):
            super().__init_subclass__(**options)
        for name in _OWN:
            if name in vars(cls) and name != "key_of":
                raise UsageError(
                    f"{cls.__qualname__}.{name} hides what every process has under that name",
                    hint="Give it another name",
                )
        if not isinstance(vars(cls).get("key_of", Process.__dict__["key_of"]), classmethod | staticmethod):
            raise InvalidHandler(  # it is asked before there is a process
                f"{cls.__qualname__}.key_of",
                "it is no class method",
                hint="Write @classmethod above: def key_of(cls, recorded)",
            )
        if "name" not in vars(cls):
            cls.name = cls.__name__
        if key is not None:
            cls.key = key
        if starts is not None:
            if isinstance(starts, str | type):
                raise UsageError(
                    f"{cls.__qualname__}: starts={type_name(starts)} is no list", hint="Write starts=[OrderPlaced]"
                )
            cls.starts = frozenset(type_name(each) for each in starts)
        cls.history = history or cls.history
        around = sys._getframe(1)
        fields = dict(cls.__fields)
        for name, annotation in vars(cls).get("__annotations__", {}).items():
            if name in vars(cls) and not str(annotation).startswith(("ClassVar", "typing.ClassVar")):
                fields[name] = (resolve(annotation, around.f_globals, around.f_locals), vars(cls)[name])
        cls.__fields = fields
        cls.__shape = None
        cls.__table = None

    def __init__(self, id: str) -> None:
        self.id = id
        self.ended = False
        self._begin(0)
        self._last = 0
        """The position of the event that it reacted to last: what comes before that is done."""
        self._open: dict[str, tuple[str, int]] = {}
        self._undoable: list[Sent] = []
        self.__dict__.update(msgspec.structs.asdict(type(self)._shape()()))

    # --- what handlers ask for ------------------------------------------------------------------------

    def send(self, command: Command, *, undo: Command | None = None) -> None:
        """Have a command executed, after this reaction is on disk.

        Args:
            command: The command.
            undo: What makes up for it; sent by `compensate` if the command took effect.
        """
        sent = _sent(command)
        sent.id = f"{self._stream}:{self._position}.{len(self._send)}"
        self._send.append(sent)
        if undo is not None:
            undoing = _sent(undo)
            undoing.of = sent.id
            self._undoable.append(undoing)

    def after(self, delay: Duration, event: Event | Plain) -> str:
        """Have an event appended to the process's stream some time after the present event was recorded.

        Returns:
            The timer's id, for `cancel`.
        """
        return self._set(self._recorded + duration_micros(delay), event)

    def at(self, moment: Moment, event: Event | Plain) -> str:
        """The same at a moment; one that has passed comes at once."""
        return self._set(to_micros(moment), event)

    def cancel(self, timer: str | type[Event] | None = None) -> None:
        """Stop a timer by its id, all timers with events of a class, or all: they will not be reacted to."""
        type = timer if timer is None or isinstance(timer, str) else type_name(timer)
        for id, (of, _) in list(self._open.items()):
            if type is None or type in (id, of):
                del self._open[id]

    def post(self, outbox: str, body: Any, *, key: str = "") -> None:
        """Put a message into an outbox, in the commit of this reaction; see `Outbox.post`."""
        self._post.append(Note(outbox, msgspec.to_builtins(body), key))

    def compensate(self) -> None:
        """Send what makes up for the commands that took effect so far, the last first."""
        self._undo += reversed(self._undoable)
        self._undoable = []

    def end(self) -> None:
        """React to nothing any more; timers that run are stopped."""
        self.cancel()
        self.ended = True

    @classmethod
    def key_of(cls, recorded: Recorded) -> str | None:
        """The key of the process that an event concerns; None for none. To be overridden where it is not a field."""
        if cls.key is not None:
            value = recorded.data.get(cls.key)
            if value is not None:
                return str(value)
        return recorded.stream

    # --- how it is kept -------------------------------------------------------------------------------

    @classmethod
    def _stream_of(cls, key: str) -> str:
        return f"{cls.name}-{key}"

    @property
    def _stream(self) -> str:
        return self._stream_of(self.id)

    def _begin(self, position: int, recorded: int = 0) -> None:
        self._position = position
        self._recorded = recorded
        self._send: list[Sent] = []
        self._undo: list[Sent] = []
        self._timers: list[Timer] = []
        self._post: list[Note] = []

    def _set(self, due: int, event: Event | Plain) -> str:
        if isinstance(event, Event) and event.__event_personal__ is not None:
            raise UsageError(
                f"{type(event).__name__} holds personal data, which would wait in the clear until its timer fires",
                hint="Have the timer's event name the subject, and look the rest up then",
            )
        data = event.data if isinstance(event, Plain) else msgspec.to_builtins(event)
        timer = Timer(f"{self._stream}:{self._position}.t{len(self._timers)}", due, type_name(event), data)
        self._timers.append(timer)
        self._open[timer.id] = (timer.type, due)
        return timer.id

    def _react(self, recorded: Recorded) -> Reaction | None:
        """Handle an event; None when there is nothing to be done about it."""
        if self.ended or recorded.position <= self._last:
            return None
        # Elsewhere that word may stand for anything, and the timers of others are events like any.
        timer = recorded.metadata.get("timer") if recorded.stream == self._stream else None
        if timer is not None and self._open.pop(timer, None) is None:
            return None  # cancelled after it was appended
        handler = self._handlers()[recorded.type]
        self._begin(recorded.position, recorded.recorded)
        event = Plain(recorded.type, recorded.data) if handler.event is Plain else recorded.decode(handler.event)
        more = {p.name: recorded for p in handler.parameters if _wants_envelope(p)}
        handler.function(self, event, **more)
        self._last = recorded.position
        state = {name: getattr(self, name) for name in self.__fields}
        # Timers that were stopped in the very reaction that set them never come to be.
        timers = [timer for timer in self._timers if timer.id in self._open]
        return Reaction(
            recorded.position, recorded.type, msgspec.to_builtins(state), self._send, self._undo, timers, self._post,
            dict(self._open), list(self._undoable), self.ended,
        )  # fmt: skip

    @classmethod
    def _restored(cls, key: str, reaction: Reaction) -> Process:
        """A process as it was after a reaction."""
        found = cls(key)
        shape = msgspec.convert(reaction.state, ready(cls._shape()), strict=False)
        found.__dict__.update(msgspec.structs.asdict(shape))
        found._open, found._undoable = dict(reaction.open), list(reaction.undoable)
        found.ended, found._last = reaction.ended, reaction.position
        return found

    @classmethod
    def _shape(cls) -> Callable[[], Any]:
        if cls.__shape is None:
            fields = [(name, type, _default(value)) for name, (type, value) in cls.__fields.items()]
            cls.__shape = msgspec.defstruct(f"{cls.__name__}State", fields)
        return cls.__shape  # type: ignore[no-any-return]

    @classmethod
    def _handlers(cls) -> dict[str, Handler]:
        """The handlers by type of event.

        Raises:
            InvalidHandler: There is none, or one asks for what a process cannot give.
        """
        if cls.__table is None:
            table = handler_table(cls)
            if not table:
                raise InvalidHandler(cls.__qualname__, "it handles no event", hint="Mark its handlers with @ms.on")
            for handler in table.values():
                for parameter in handler.parameters:
                    if parameter.required and not _wants_envelope(parameter):
                        raise InvalidHandler(
                            f"{cls.__qualname__}.{handler.method}",
                            f"it asks for {parameter.name!r}, which a process cannot give",
                            hint="Ask for the event and recorded: ms.Recorded",
                        )
            if cls.starts is not None and (unmet := sorted(cls.starts - table.keys())):
                raise InvalidHandler(
                    cls.__qualname__,
                    f"{unmet[0]!r} starts it, and none of its handlers takes that",
                    hint="Give it a handler for each event in starts=, even if it does nothing",
                )
            cls.__table = table
        return cls.__table


def _wants_envelope(parameter: Any) -> bool:
    return named(parameter.annotation, "Recorded") or (parameter.annotation is None and parameter.name == "recorded")


def _sent(command: Command) -> Sent:
    if not isinstance(command, Command):
        raise UsageError(f"{command!r:.60} is no command", hint="Send an instance of a class derived from ms.Command")
    return Sent(type(command).__name__, msgspec.to_builtins(command))


def _default(value: Any) -> Any:
    if isinstance(value, list | dict | set):
        return msgspec.field(default_factory=lambda: type(value)(value))
    return value
