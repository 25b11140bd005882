"""Personal fields sealed on the way into the log, and unsealed on the way out.

In the JSON of an event a sealed field is a string: ``sealed:``, the base64url of nonce, encrypted text and tag, ``:``
and the subject. What is sealed is the JSON of the value. With nothing between the colons it stands for a value that
was erased before it came here. The schema of the kind names the fields (`millstream.events.schema_text`), so that who
reads needs no class.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from ...errors import InvalidEvent, KeyLost, KeyWrong
from ...events import Event, Plain, decoder, encode, event_class, schema_text, sealed_fields, sealed_in_rows
from ...frames import python_values, sealed_columns
from ...personal import Erased, PersonalShape, plain_text, shape_of
from ..records import Run
from .columns import seal_frame, unseal_frame
from .keys import Cipher, Keys, Unfit, check_subject

if TYPE_CHECKING:
    from ..reading import Reader

_PREFIX = "sealed:"
_ROWS = 1_024
_SHORT = 3
"""Texts of fewer characters are found in names by accident."""
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(enc_hook=plain_text).encode
_ERASED = _encode(Erased)


# --- into the log ---------------------------------------------------------------------------------------


def seal_events(
    keys: Keys | None,
    stream: str,
    events: Sequence[Event | Plain],
    cls: type[Event],
    tags: tuple[str, ...],
    metadata: bytes | None,
) -> tuple[bytes, str]:
    """The JSON objects of events of one class, a line each, their personal fields sealed; and their schema text.

    Args:
        events: Events of the class, or plain ones of its type.

    Raises:
        InvalidEvent: As `millstream.events.encode`; or personal data stands in the stream's name, a tag, the metadata
            or the subject.
        SubjectForgotten: Whose data it is was forgotten.
        KeysNeeded: There is no place for keys.
    """
    shape = shape_of(cls)
    assert shape is not None
    rows = [_fields(event, cls, shape) for event in events]
    refuse = _refusing(cls, stream, tags, metadata)
    subjects: dict[str, None] = {}
    for row in rows:
        subject = _decode(row[shape.subject])
        check_subject(subject)
        held = [text for name in shape.fields if name in row for text in _texts(_decode(row[name]))]
        refuse(held, subject)
        if any(bytes(row[name]) != _ERASED for name in shape.fields if name in row):
            subjects[subject] = None
    if subjects and keys is None:
        raise InvalidEvent("the log's own events hold no personal data", hint="Append it with log.append")
    ciphers = keys.ciphers(subjects) if subjects and keys is not None else {}
    return b"\n".join(_sealed_row(row, shape, ciphers) for row in rows), schema_text(cls)


def seal_rows(
    keys: Keys | None,
    stream: str,
    frame: pl.DataFrame,
    cls: type[Event],
    tags: tuple[str, ...],
    metadata: bytes | None,
) -> tuple[pl.DataFrame, str]:
    """The same for the rows of a frame: the frame that is stored, and its schema text; see `seal_frame`."""
    shape = shape_of(cls)
    assert shape is not None
    return seal_frame(keys, frame, cls.__event_type__, shape, _refusing(cls, stream, tags, metadata))


def _refusing(
    cls: type[Event], stream: str, tags: tuple[str, ...], metadata: bytes | None
) -> Callable[[list[str], str], None]:
    """Refuses personal texts of a subject that stand where an append has them in the clear."""
    named = [(f"the stream's name {stream!r}", stream), *((f"tag {tag!r}", tag) for tag in tags)]
    about = list(_texts(_decode(metadata))) if metadata else []
    return lambda held, subject: _refuse(cls, held, [*named, (f"subject {subject!r}", subject)], about)


def _fields(event: Event | Plain, cls: type[Event], shape: PersonalShape) -> dict[str, Any]:
    """The fields of an event, each as its JSON."""
    row = _decode_fields(encode(event))
    typed: Any = event
    if isinstance(event, Plain):
        # It would be in the clear, while its class says that it must not.
        try:
            typed = decoder(cls).decode(_encode(row))
        except msgspec.ValidationError as error:
            raise InvalidEvent(
                f"a plain {event.type!r} event does not fit {cls.__qualname__}: {error}",
                hint="The class has personal fields: give what it needs to seal them",
            ) from error
        needed = {shape.subject: shape.whose}
    else:
        # A value that is the default may be left out of the JSON; that it is missing would tell as much.
        needed = {shape.subject: shape.whose, **shape.fields}
    for name, attribute in needed.items():
        if name not in row:
            row[name] = msgspec.Raw(_encode(getattr(typed, attribute)))
    return row


def _sealed_row(row: dict[str, Any], shape: PersonalShape, ciphers: dict[str, Cipher]) -> bytes:
    subject = _decode(row[shape.subject])
    for name in shape.fields:
        text = row.get(name)
        if text is not None:
            row[name] = sealed_text(bytes(text), subject, ciphers.get(subject))
    return _encode(row)


def sealed_text(text: bytes, subject: str, cipher: Cipher | None) -> str:
    """What stands in an event for the JSON of a personal value."""
    if text == _ERASED or cipher is None:
        return f"{_PREFIX}:{subject}"
    return f"{_PREFIX}{urlsafe_b64encode(cipher.seal(text, subject.encode())).decode()}:{subject}"


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _refuse(cls: type[Event], held: list[str], named: list[tuple[str, str]], metadata: list[str]) -> None:
    """Refuse personal data that stands where it would stay in the clear for good."""
    for text in held:
        if len(text) < _SHORT or text == Erased:
            continue
        where = next((what for what, name in named if text in name and _word(text, name)), None)
        if where is None and text in metadata:
            where = "the metadata"
        if where is not None:
            raise InvalidEvent(
                f"personal data of a {cls.__event_type__!r} event is also in {where}, where it could not be erased",
                hint="Name streams, tags and subjects by an id",
            )


def _word(text: str, name: str) -> bool:
    """Whether a text stands in a name by itself, and not as a part of a longer word."""
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", name) is not None


# --- out of the log -------------------------------------------------------------------------------------


def subject_of(text: str) -> str | None:
    """Whose data a sealed field holds; None when it is not sealed."""
    if not text.startswith(_PREFIX):
        return None
    return text.split(":", 2)[2] if text.count(":") > 1 else None


def subjects_of(line: Any, fields: Sequence[str], columns: Iterable[str] = ()) -> set[str]:
    """Whose sealed data an event holds, by its sealed fields, or the sealed columns of the rows in them."""
    row = _decode_fields(line)
    found = set()
    for name in fields:
        value = _decode(row[name]) if name in row else None
        for text in [value] if not isinstance(value, dict) else [value.get(column) for column in columns]:
            if isinstance(text, str) and (subject := subject_of(text)) is not None:
                found.add(subject)
    return found


def personal_fields(run: Run) -> tuple[str, ...]:
    """The fields of a run's events, as they are read, that are personal: sealed in the log."""
    sealed = sealed_fields(run.stored_schema)
    if not sealed:
        return ()
    cls = event_class(run.type)
    shape = shape_of(cls) if cls is not None else None
    return sealed if shape is None else tuple(sorted({*sealed, *shape.fields}))


def check_personal(type: str, fields: Sequence[str]) -> None:
    """See that fields that are personal where events come from would be sealed here.

    Raises:
        InvalidEvent: They would not.
    """
    cls = event_class(type)
    shape = shape_of(cls) if cls is not None else None
    bare = sorted(set(fields) - set(shape.fields if shape is not None else ()))
    if bare:
        raise InvalidEvent(
            f"{bare[0]!r} of a {type!r} event is personal, and no class here says so: it would be in the clear",
            hint="Import it in a program that defines the class, with its ms.Personal fields",
        )


class Unsealed(Run, eq=False):
    """A run whose sealed fields are given as they were before. A key that is missing is an error of what needs it."""

    inner: Any = None
    """The run as it is stored."""
    start: int = 0
    """Which of its events is the first."""
    sealed: tuple[str, ...] = ()
    """The fields that are sealed, as JSON names them."""

    @property
    def type(self) -> str:
        return str(self.inner.type)

    @property
    def schema(self) -> str:
        return str(self.inner.schema)

    @property
    def stored_schema(self) -> str:
        return str(self.inner.stored_schema)

    @property
    def stream(self) -> str:
        return str(self.inner.stream)

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.inner.tags)

    def lines(self) -> list[Any]:
        return [self._line(line, index) for index, line in enumerate(self._sealed_lines())]

    def frame(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        return self._frame(columns, 0, self.count)[0] if self.is_frame else super().frame(columns)

    def data(self) -> list[dict[str, Any]]:
        return self._rows(0, self.count) if self.is_frame else [self._marked(line) for line in self.lines()]

    def row(self, index: int) -> dict[str, Any]:
        if not self.is_frame:
            return self._marked(self._line(self._sealed_lines()[index], index))
        chunk = self.chunk
        if chunk is None or not 0 <= index - chunk[0] < len(chunk[1]):
            start = index - index % _ROWS
            self.chunk = chunk = (start, self._rows(start, min(_ROWS, self.count - start)), pl.DataFrame())
        return chunk[1][index - chunk[0]]

    def events(self, cls: Any = None) -> list[Any]:
        wanted = cls or event_class(self.type)
        if not self.is_frame or wanted is None:
            return super().events(cls)
        try:
            decode = decoder(wanted).decode
            return [decode(_encode(row)) for row in self._rows(0, self.count)]
        except msgspec.ValidationError as error:
            raise self.misfit(wanted, error) from error

    def cut(self, after: int, until: int) -> Run | None:
        part = super().cut(after, until)
        if part is not None and part is not self:
            part.start = self.start + part.position - self.position  # type: ignore[attr-defined]
        return part

    def _sealed_lines(self) -> list[Any]:
        lines: list[Any] = self.inner.lines()
        return lines if len(lines) == self.count else lines[self.start : self.start + self.count]

    def _frame(
        self, columns: Sequence[str] | None, start: int, count: int
    ) -> tuple[pl.DataFrame, dict[str, list[int]]]:
        """Some rows of a frame, and which of them were erased, by column."""
        asked = None
        if columns is not None:
            kinds = sealed_columns(self.schema)
            asked = list(dict.fromkeys([*columns, *(kinds[name][0] for name in columns if name in kinds)]))
        frame = self.inner.frame(asked).slice(self.start + start, count)
        frame, erased = unseal_frame(
            frame, self.schema, frame.columns if columns is None else columns,
            lambda sealed, subject, row: self._opened(sealed, subject, start + row),
        )  # fmt: skip
        if columns is not None and frame.width:
            frame = frame.select(name for name in columns if name in frame.columns)
        return frame, erased

    def _rows(self, start: int, count: int) -> list[dict[str, Any]]:
        """Some rows of a frame as dicts."""
        frame, erased = self._frame(None, start, count)
        with python_values(f"the frame at position {self.position}"):
            rows = frame.to_dicts()
        for name, gone in erased.items():
            for row in gone:
                rows[row][name] = Erased
        return rows

    def _text(self) -> bytes:
        return b"\n".join(self.lines())

    def _line(self, line: Any, index: int) -> bytes:
        row = _decode_fields(line)
        columns = sealed_in_rows(self.stored_schema)
        for name in self.sealed:
            if name not in row:
                continue
            if columns and bytes(row[name]).startswith(b"{"):
                row[name] = msgspec.Raw(self._row(row[name], columns, index))
                continue
            text = _decode(row[name])
            if isinstance(text, str) and text.startswith(_PREFIX):
                row[name] = msgspec.Raw(self._value(text, index))
        return _encode(row)

    def _row(self, line: Any, columns: dict[str, bool], index: int) -> bytes:
        """A row of a captured table. What was erased is null where the column's type has no place for a text."""
        row = _decode_fields(line)
        for name, textual in columns.items():
            text = _decode(row[name]) if name in row else None
            if isinstance(text, str) and text.startswith(_PREFIX):
                value = self._value(text, index)
                row[name] = msgspec.Raw(value if textual or value != _ERASED else b"null")
        return _encode(row)

    def _value(self, text: str, index: int) -> bytes:
        """The JSON of a value, of what stands for it."""
        _, sealed, subject = text.split(":", 2)
        if not sealed:
            return _ERASED
        try:
            found = self._opened(urlsafe_b64decode(sealed), subject, index)
        except ValueError:
            raise KeyWrong(subject, self.stream, self.position + index, _place(self.log.keys)) from None
        return _ERASED if found is None else found

    def _opened(self, sealed: bytes, subject: str, index: int) -> bytes | None:
        """What was sealed, of one of the events; None when the subject was forgotten."""
        keys = self.log.keys
        try:
            cipher = keys.cipher(subject)
            return None if cipher is None else cipher.unseal(sealed, subject.encode())
        except LookupError:
            raise KeyLost(subject, self.stream, self.position + index, _place(keys)) from None
        except Unfit:
            raise KeyWrong(subject, self.stream, self.position + index, _place(keys)) from None

    def _marked(self, line: bytes) -> dict[str, Any]:
        row: dict[str, Any] = _decode(line)
        for name in self.sealed:
            if row.get(name) == Erased:
                row[name] = Erased
        return row


def _place(keys: Keys) -> str:
    return repr(keys.place) if keys.place is not None else ""


def unsealed(log: Reader, run: Run, fields: tuple[str, ...]) -> Run:
    """A run to be read in the place of one whose fields are sealed."""
    return Unsealed(
        log,
        run.position,
        run.stream_id,
        run.version,
        run.kind_id,
        run.recorded,
        None,
        run.raw_metadata,
        run.count,
        run.effective,
        run.format,
        base=run.base,
        inner=run,
        sealed=fields,
    )
