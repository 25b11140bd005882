"""What a reader gets: runs, and the events in them.

A `Run` is a header with its body at hand; a `Recorded` is one event of it, a view that decodes when asked. The
log's readers pass runs around, since a run of a frame is 65,536 events at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl

from ..conversion import ready
from ..errors import DamagedLog, InvalidEvent, KeyLost, KeysNeeded, MissingExtra, NotFound, UsageError
from ..events import AnyEvent, Plain, decoder, event_class, schema_version
from ..frames import python_values
from ..storage.chain import FRAME_FORMAT, JSON_FORMAT
from ..time import from_micros
from .objects import columns_of, frame_of_objects, values_of

if TYPE_CHECKING:
    from .reading import Reader

EventClass = type[Any]

_decode_data = msgspec.json.Decoder().decode
_CHUNK = 1_024
_LONG = 8_192


class Run(msgspec.Struct, eq=False, gc=False):
    """A maximal stretch of one append with one stream, type, schema, tags, metadata and effective time.

    Attributes:
        position: Position of its first event in the log.
        count: How many events it holds.
        version: Version of its first event within the stream.
        recorded: When it was recorded, in microseconds since 1970.
        effective: When it was true in the world (microseconds), if that was said.
    """

    log: Reader
    position: int
    stream_id: int
    version: int
    kind_id: int
    recorded: int
    body: str | None
    raw_metadata: str | None
    count: int = 1
    effective: int | None = None
    format: int = JSON_FORMAT
    body_ref: int | None = None
    body_offset: int = 0
    chunk: tuple[int, list[dict[str, Any]], pl.DataFrame] | None = None
    """What `row` has looked up last: where some rows of its frame begin, these rows as dicts, the frame."""
    base: int = 0
    """Position of the header's first event, when this is a slice of a longer run; 0 when it is whole."""
    ahead: tuple[list[str] | None, pl.DataFrame] | None = None
    """What `read_ahead` has read: which columns, and the frame."""

    # --- the header ---------------------------------------------------------------------------------

    @property
    def last(self) -> int:
        """Position of its last event."""
        return self.position + self.count - 1

    @property
    def stream(self) -> str:
        """The stream's name."""
        return self.log.store.stream_name(self.stream_id)

    @property
    def type(self) -> str:
        """The name of the events' type."""
        return self.log.store.kind(self.kind_id).type

    @property
    def schema(self) -> str:
        """The version of the type's shape, or a frame's columns as JSON."""
        return self.log.store.kind(self.kind_id).schema

    @property
    def stored_schema(self) -> str:
        """The same as the log has it, whatever the run is read as."""
        return self.log.store.kind(self.kind_id).schema

    @property
    def time(self) -> datetime:
        """When it was recorded (UTC)."""
        return from_micros(self.recorded)

    @property
    def when(self) -> int:
        """When it was true in the world (microseconds): its effective time, or else when it was recorded."""
        return self.recorded if self.effective is None else self.effective

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags, sorted."""
        return self.log.store.tags(self.base or self.position)

    @property
    def metadata(self) -> dict[str, Any]:
        """What was said about it."""
        if not self.raw_metadata:
            return {}
        try:
            return msgspec.json.decode(self.raw_metadata)  # type: ignore[no-any-return]
        except msgspec.DecodeError as error:
            raise DamagedLog(self.position, f"its metadata cannot be decoded ({error})") from error

    @property
    def is_frame(self) -> bool:
        """Whether it was appended as a frame."""
        return self.format == FRAME_FORMAT

    @property
    def decodes_as(self) -> EventClass | None:
        """The class that its events are decoded as in this process; None: they are `Plain`."""
        return event_class(self.type)

    # --- the body -----------------------------------------------------------------------------------

    def lines(self) -> list[Any]:
        """Each event's data as a JSON object (bytes or str). Not for frames."""
        if self.body is not None:
            return [self.body]
        found = self._fetch(lambda ref: self.log.bodies.lines(ref, self.position))
        end = self.body_offset + self.count
        if len(found) < end:
            raise DamagedLog(self.position, f"its body holds {len(found)} events, not {end}")
        return found if self.count == len(found) else found[self.body_offset : end]  # type: ignore[no-any-return]

    def text(self) -> bytes:
        """Each event's data as a JSON object, a line each, without a last newline. Not for frames."""
        if type(self) is Run:
            if self.body is not None:
                return self.body.encode() if isinstance(self.body, str) else self.body
            if self.body_offset == 0:
                # The whole of a body, most likely: its lines need not be cut apart.
                found = self._text()
                if _newlines(found) + 1 == self.count:
                    return found
        return b"\n".join(line if isinstance(line, bytes) else line.encode() for line in self.lines())

    def frame(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Its events as a frame, a column for each field, typed as far as the log knows.

        Args:
            columns: Only these columns (those that the run has).
        """
        if self.is_frame:
            wanted = self._among(columns)
            if wanted == []:
                return pl.DataFrame(height=self.count)
            ready, self.ahead = self.ahead, None
            if ready is not None and ready[0] == wanted:
                return ready[1]
            return self._read(wanted)
        rows = values_of(self.lines(), self.decodes_as, self.position)
        shape = columns_of(rows)
        if columns is not None:
            shape = {name: shape[name] for name in columns if name in shape}
        return frame_of_objects(rows, shape)

    def read_ahead(self, columns: Sequence[str] | None) -> None:
        """Have what `frame` gives of these columns ready, once. Does nothing where events are objects."""
        if self.is_frame and (wanted := self._among(columns)) != []:
            self.ahead = wanted, self._read(wanted)

    def _read(self, wanted: list[str] | None) -> pl.DataFrame:
        """Its frame, of columns that it has."""
        frame: pl.DataFrame = self._fetch(lambda ref: self.log.bodies.frame(ref, self.position, wanted))
        if frame.height < self.body_offset + self.count:
            raise DamagedLog(self.position, f"its body holds {frame.height} events only")
        return frame if frame.height == self.count else frame.slice(self.body_offset, self.count)

    def _among(self, columns: Sequence[str] | None) -> list[str] | None:
        """Those columns that its frame has; None for all."""
        if columns is None:
            return None
        has = self.log.columns_of(self.kind_id)
        return [name for name in columns if name in has]

    def data(self) -> list[dict[str, Any]]:
        """Each event's data as a dict of plain values."""
        if self.is_frame:
            with python_values(f"the frame at position {self.position}"):
                return self.frame().to_dicts()
        try:
            return [_decode_data(line) for line in self.lines()]
        except msgspec.DecodeError as error:
            raise DamagedLog(self.position, f"its JSON cannot be decoded ({error})") from error

    def row(self, index: int) -> dict[str, Any]:
        """One event's data as a dict of plain values."""
        if not self.is_frame:
            return _decode_data(self.lines()[index])  # type: ignore[no-any-return]
        chunk = self.chunk
        if chunk is None or not 0 <= index - chunk[0] < _CHUNK:
            start = index - index % _CHUNK
            frame = self.frame() if chunk is None else chunk[2]
            with python_values(f"the frame at position {self.position}"):
                self.chunk = chunk = (start, frame.slice(start, _CHUNK).to_dicts(), frame)
        return chunk[1][index - chunk[0]]

    def events(self, cls: EventClass | None = None) -> list[Any]:
        """Its events, decoded.

        Args:
            cls: The class to decode as; by default the one that this process defines under the type's name.
                Events of a type without a class are `Plain`.

        Raises:
            InvalidEvent: What is stored does not fit the class.
        """
        cls = cls or event_class(self.type)
        if cls is None:
            type, schema = self.type, self._plain_schema()
            return [Plain(type, data, schema) for data in self.data()]
        try:
            if self.is_frame:
                with python_values(f"the frame at position {self.position}"):
                    return [msgspec.convert(row, ready(cls)) for row in self.frame().iter_rows(named=True)]
            if self.count > 1 and self.body_offset == 0:
                # The whole of a body, most likely: its lines need not be cut apart.
                events = decoder(cls).decode_lines(self._text())  # type: ignore[arg-type]
                if len(events) == self.count:
                    return events
            decode = decoder(cls).decode  # type: ignore[arg-type]
            return [decode(line) for line in self.lines()]
        except msgspec.ValidationError as error:
            raise self.misfit(cls, error) from error
        except msgspec.DecodeError as error:
            raise DamagedLog(self.position, f"its JSON cannot be decoded ({error})") from error

    def _plain_schema(self) -> int | None:
        """The schema of its events as plain ones; None for the first."""
        version = 1 if self.is_frame else schema_version(self.schema)
        return None if version == 1 else version

    def misfit(self, cls: EventClass, error: Exception) -> InvalidEvent:
        return InvalidEvent(
            f"event {self.type!r} at position {self.position} does not fit {cls.__qualname__}: {error}",
            hint="Give new fields defaults, or read its plain data",
        )

    def _text(self) -> bytes:
        return self._fetch(lambda ref: self.log.bodies.text(ref, self.position))  # type: ignore[no-any-return]

    def _fetch(self, read: Callable[[int], Any]) -> Any:
        """Read the body, asking for its place again when compaction has moved it meanwhile."""
        for _ in range(3):
            if self.body_ref is not None:
                try:
                    return read(self.body_ref)
                except NotFound:
                    pass
            header = self.base or self.position
            moved = self.log.store.find_body(header)
            if moved is None:
                break
            self.body_ref, self.body_offset = moved[0], moved[1] + self.position - header
        raise DamagedLog(self.position, "its body is missing")

    # --- parts --------------------------------------------------------------------------------------

    def cut(self, after: int, until: int) -> Run | None:
        """The part of the run strictly between two positions; None when there is none."""
        if self.position > after and self.last < until:
            return self
        skip = max(after + 1 - self.position, 0)
        keep = min(self.last, until - 1) - self.position + 1 - skip
        if keep <= 0:
            return None
        return msgspec.structs.replace(
            self,
            ahead=None,
            position=self.position + skip,
            version=self.version + skip,
            count=keep,
            body_offset=self.body_offset + skip,
            base=self.base or self.position,
            chunk=None,
        )

    def __iter__(self) -> Iterator[Recorded]:
        """Its events, in order."""
        return iter([Recorded(self, index) for index in range(self.count)])

    def __len__(self) -> int:
        return self.count


class Recorded(msgspec.Struct, eq=False, gc=False):
    """An event as the log holds it: its place, its time, its data. Decodes when asked."""

    run: Run
    index: int
    _event: Any = None

    @property
    def position(self) -> int:
        """Its place in the log; the first event has 1."""
        return self.run.position + self.index

    @property
    def version(self) -> int:
        """Its place in its stream; the first event has 1."""
        return self.run.version + self.index

    @property
    def stream(self) -> str:
        """The stream's name."""
        return self.run.stream

    @property
    def type(self) -> str:
        """The name of its type."""
        return self.run.type

    @property
    def recorded(self) -> int:
        """When it was recorded, in microseconds since 1970."""
        return self.run.recorded

    @property
    def time(self) -> datetime:
        """When it was recorded (UTC)."""
        return from_micros(self.run.recorded)

    @property
    def effective(self) -> datetime | None:
        """When it was true in the world, if that was said (UTC)."""
        micros = self.run.effective
        return None if micros is None else from_micros(micros)

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags, sorted."""
        return self.run.tags

    @property
    def metadata(self) -> dict[str, Any]:
        """What was said about it: correlation, causation, and what the writer added."""
        return self.run.metadata

    @property
    def correlation(self) -> str | None:
        """The id of the conversation that it belongs to."""
        return self.run.metadata.get("correlation")

    @property
    def causation(self) -> str | None:
        """The id of what caused it."""
        return self.run.metadata.get("causation")

    @property
    def data(self) -> dict[str, Any]:
        """Its data as a dict of plain values."""
        try:
            return self.run.row(self.index)
        except msgspec.DecodeError as error:
            raise DamagedLog(self.position, f"its JSON cannot be decoded ({error})") from error

    @property
    def event(self) -> AnyEvent:
        """The event, as the class that this process defines under its type's name; `Plain` when there is none."""
        found = self._event
        if found is None:
            run = self.run
            body = run.body
            if body is not None:
                decode = run.log.decoders.get(run.kind_id)
                if decode is not None:
                    try:
                        self._event = found = decode(body)
                        return found  # type: ignore[no-any-return]
                    except msgspec.MsgspecError:
                        pass  # told in full by the long way
            self._event = found = _event_of(self)
        return found  # type: ignore[no-any-return]

    def decode(self, cls: EventClass) -> Any:
        """The event decoded as a class of the caller's choice.

        Raises:
            InvalidEvent: What is stored does not fit the class.
        """
        event = self._event
        if type(event) is cls:
            return event
        if self.run.count == 1:
            return self.run.events(cls)[0]
        if self.run.is_frame and self.run.kind_id not in self.run.log.sealed:
            try:
                return msgspec.convert(self.run.row(self.index), ready(cls))
            except msgspec.ValidationError as error:
                raise self.run.misfit(cls, error) from error
        run = self.run.cut(self.position - 1, self.position + 1)
        assert run is not None
        return run.events(cls)[0]

    def __reduce__(self) -> Any:
        raise UsageError(
            f"the recorded event at position {self.position} belongs to its log, and cannot be pickled or copied",
            hint="Take what is needed of it, such as its event and position, or read it there",
        )

    def __repr__(self) -> str:
        return (
            f"Recorded(position={self.position}, stream={self.stream!r}, version={self.version}, "
            f"time={self.time.isoformat()}, event={self.event!r})"
        )


def _newlines(text: bytes) -> int:
    if len(text) < _LONG:
        return text.count(b"\n")
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord("\n")))  # in a quarter of the time


def _event_of(recorded: Recorded) -> Any:
    run = recorded.run
    cls = event_class(run.type)
    if cls is None:
        return Plain(run.type, recorded.data, run._plain_schema())
    return recorded.decode(cls)


def recorded_events(run: Run) -> list[Recorded]:
    """A run's events, all decoded at once when they have a class: cheaper than one by one."""
    if run.count == 1:
        return [Recorded(run, 0)]
    if not run.is_frame and run.decodes_as is not None:
        try:
            return [Recorded(run, index, event) for index, event in enumerate(run.events())]
        except (InvalidEvent, KeyLost, KeysNeeded, MissingExtra):
            pass  # told when the one that does not fit, or cannot be unsealed, is asked for
    return [Recorded(run, index) for index in range(run.count)]
