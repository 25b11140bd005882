"""From what a user appends to runs that are ready to be written.

A run is a maximal stretch of one append with equal type, schema, tags, metadata and effective time. Everything
here happens on the caller's thread, before and outside any lock.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import polars as pl

from ..errors import InvalidEvent, InvalidStreamName
from ..events import Draft, Event, Plain, encode, encode_many, event_class, holds_non_finite, present_schema
from ..frames import (
    MAX_ROWS,
    as_frame,
    check_columns,
    encode_frame,
    frame_hash,
    normalise,
    schema_text,
    split,
)
from ..frames import time_ranges as ranges_of
from ..personal import shape_of
from ..storage.base import Encoding, Matching, StagedAppend, StagedRun
from ..time import Moment, to_micros

if TYPE_CHECKING:
    from .personal.keys import Keys

MAX_NAME = 512
"""The longest stream name, type name or tag, in bytes of UTF-8."""

_sha256 = hashlib.sha256
_ONE = (Event, Plain, Draft)
_PARALLEL_ROWS = 8_192
_TOGETHER = 4_096
"""How many groups of events are encoded together, at most."""
type_of = type
_encode_json = msgspec.json.Encoder(order="deterministic").encode

Metadata = Mapping[str, Any]
_Group: TypeAlias = tuple[list[Any], Any, tuple[str, int | None] | None, tuple[Any, ...]]
"""Events of one run; their class; for plain ones type and schema; and tags, metadata and effective time."""


RETENTION = "$retention"
"""Where the log keeps what was decided and done about its past."""
PRIVACY = "$privacy"
"""Where the log says which subjects were forgotten."""
OWN_STREAMS = {
    RETENTION: "the log itself says there what was trimmed and archived",
    PRIVACY: "the log itself says there who was forgotten",
}
"""Streams that only the log itself appends to, and why."""


def check_stream(stream: object) -> str:
    """The stream name, if it is one.

    Raises:
        InvalidStreamName: It is no string, empty, too long, or holds control characters or ``*``.
    """
    if type(stream) is str and stream.isascii() and stream.isprintable() and 0 < len(stream) <= MAX_NAME:
        if "*" in stream:
            raise InvalidStreamName(stream, "'*' stands for many streams when reading")
        return stream
    if not isinstance(stream, str):
        raise InvalidStreamName(stream, f"it is of type {type(stream).__name__}")
    if not stream:
        raise InvalidStreamName(stream, "it is empty")
    reason = _bad_text(stream)
    if reason is not None:
        raise InvalidStreamName(stream, reason)
    if "*" in stream:
        raise InvalidStreamName(stream, "'*' stands for many streams when reading")
    return stream


def _bad_text(text: str) -> str | None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "it holds half of a surrogate pair"
    if size > MAX_NAME:
        return f"it has {size} bytes, more than {MAX_NAME}"
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        return "it holds control characters"
    return None


def check_label(text: object, what: str) -> str:
    """A type name or tag, if it can be one."""
    reason = f"it is of type {type(text).__name__}" if not isinstance(text, str) else None
    if reason is None:
        assert isinstance(text, str)
        reason = "it is empty" if not text else _bad_text(text)
    if reason is not None:
        article = "an" if what[0] in "aeiou" else "a"
        name = getattr(text, "__event_type__", None)  # a class of events
        hint = f"Give its name: {name!r}" if isinstance(name, str) else "Use a short printable text"
        raise InvalidEvent(f"{text!r:.80} is not {article} {what}: {reason}", hint=hint)
    return text  # type: ignore[return-value]


def stage(
    stream: str,
    events: object,
    *,
    type: str | None = None,
    expect: int | None = None,
    unless: Matching | None = None,
    tags: Iterable[str] = (),
    metadata: Metadata | None = None,
    correlation: str | None = None,
    causation: str | None = None,
    effective: Moment | None = None,
    close: bool = False,
    own: bool = False,
    keys: Keys | None = None,
) -> StagedAppend:
    """Encode events for one stream.

    Args:
        stream: The stream's name.
        events: One event, an iterable of them (each may be wrapped in a `Draft`), or a frame.
        type: The type of a frame's events; only for frames.
        own: They are the log's own, which alone may stand in `OWN_STREAMS`.
        keys: What to seal personal data with.

    Raises:
        InvalidEvent, InvalidStreamName, UnsupportedColumn, InvalidTime: See their texts.
        SubjectForgotten, KeysNeeded: See `millstream.log.personal.sealing.seal_events`.
    """
    check_stream(stream)
    if stream[0] == "$" and stream in OWN_STREAMS and not own:
        raise InvalidStreamName(stream, OWN_STREAMS[stream])
    if correlation is not None or causation is not None:
        metadata = with_causes(metadata, correlation, causation)
    if expect is not None and (type_of(expect) is not int or expect < 0):
        raise InvalidEvent(f"expect={expect!r} is not a version", hint="Give 0 for a new stream, or its version")
    if unless is not None and not isinstance(unless, Matching):
        raise InvalidEvent(f"unless={unless!r:.60} is no query", hint="Give a millstream.Matching")
    if (
        isinstance(events, Event)
        and events.__event_personal__ is None
        and not tags
        and not metadata
        and effective is None
        and type is None
    ):
        # By far the most frequent case, and one whose cost shows: an aggregate's single event.
        body = encode(events)
        run = StagedRun(
            events.__event_type__, str(events.__event_schema__), 1, Encoding.JSON, body, _sha256(body).digest()
        )
        return StagedAppend(stream, [run], expect, unless, close, 1)
    labels = check_tags(tags)
    about = encode_metadata(metadata)
    when = to_micros(effective) if effective is not None else None
    if isinstance(events, _ONE):
        runs = _object_runs((events,), labels, about, metadata, when, type, stream, keys)
    else:
        frame = as_frame(events)
        if frame is not None:
            runs = _frame_runs(frame, type, labels, about, when, stream, keys)
        elif isinstance(events, Iterable) and not isinstance(events, str | bytes | Mapping):
            runs = _object_runs(events, labels, about, metadata, when, type, stream, keys)
        else:
            raise InvalidEvent(
                f"{events!r:.80} is not an event",
                hint="Give a millstream.Event, a millstream.Plain, or a frame",
            )
    return StagedAppend(stream, runs, expect, unless, close, sum(run.count for run in runs))


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags as they are stored: each once, sorted."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidEvent(f"tags={tags!r:.60} is no list", hint="Give a list of tags")
    return tuple(sorted({check_label(tag, "tag") for tag in tags})) if tags else ()


def encode_metadata(metadata: Metadata | None) -> bytes | None:
    """Metadata as it is stored: a JSON object with its keys in order, or None for none."""
    given = _mapping(metadata)
    if not given:
        return None
    if holds_non_finite(given):
        raise InvalidEvent("the metadata holds NaN or an infinity", hint="Use None, or text")
    try:
        return _encode_json(dict(given))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidEvent(f"the metadata cannot be encoded: {error}", hint="Use JSON-like values") from error


def with_causes(metadata: Mapping[str, Any] | None, correlation: str | None, causation: str | None) -> dict[str, Any]:
    """Metadata with the ids of what an append belongs to and what caused it."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidEvent(f"metadata is {metadata!r:.60}", hint="Give a dict")
    causes = {"correlation": correlation, "causation": causation}
    return {**(metadata or {}), **{name: value for name, value in causes.items() if value is not None}}


def _object_runs(
    events: Iterable[Any],
    tags: tuple[str, ...],
    about: bytes | None,
    metadata: Metadata | None,
    effective: int | None,
    type: str | None,
    stream: str,
    keys: Keys | None,
) -> list[StagedRun]:
    if type is not None:
        raise InvalidEvent("type= is for frames; events carry their own type", hint="Use millstream.Plain(type, data)")
    runs: list[StagedRun] = []
    groups: list[_Group] = []
    group: list[Any] = []
    plain_key = (tags, about, effective)
    # What the events of the group have in common: their class, type and schema for plain ones, and the rest.
    cls: Any = None
    name: tuple[str, int | None] | None = None
    key: tuple[Any, ...] = plain_key
    for item in events:
        event, its = item, plain_key
        if isinstance(item, Draft):
            event, its = item.event, _draft_key(item, tags, metadata, effective)
        its_class = type_of(event)
        its_name = (event.type, event.schema) if its_class is Plain else None
        same = its_class is cls and its_name == name and (its is key or its == key)
        if not same or len(group) == MAX_ROWS:
            if group:
                groups.append((group, cls, name, key))
                if len(groups) == _TOGETHER or len(group) == MAX_ROWS:  # the events themselves are not kept
                    runs += _encoded_groups(groups, stream, keys)
                    groups = []
            cls, name, key, group = its_class, _checked_name(event), its, []
        group.append(event)
    if group:
        groups.append((group, cls, name, key))
    return runs + _encoded_groups(groups, stream, keys)


def _encoded_groups(groups: list[_Group], stream: str, keys: Keys | None) -> list[StagedRun]:
    """A run of each group. Groups of one event are encoded together, by class, for there may be very many."""
    if len(groups) == 1:
        return [_object_run(*groups[0], stream, keys)]
    single: dict[Any, list[Any]] = {}
    for group, cls, name, _ in groups:
        if name is None and len(group) == 1 and cls.__event_personal__ is None:
            single.setdefault(cls, []).append(group[0])
    bodies = {
        cls: (cls.__event_type__, str(cls.__event_schema__), iter(encode_many(events, cls).split(b"\n")))
        for cls, events in single.items()
    }
    json, sha256 = Encoding.JSON, _sha256
    runs = []
    for group, cls, name, key in groups:
        held = bodies.get(cls) if name is None and len(group) == 1 else None
        if held is None:
            runs.append(_object_run(group, cls, name, key, stream, keys))
        else:
            type, schema, encoded = held
            body = next(encoded)
            tags, about, effective = key
            runs.append(StagedRun(type, schema, 1, json, body, sha256(body).digest(), tags, about, effective))
    return runs


def _checked_name(event: object) -> tuple[str, int | None] | None:
    """The type's name and schema, as given, of a plain event; None for one with a class."""
    if isinstance(event, Event):
        return None
    if isinstance(event, Plain):
        schema = event.schema
        if schema is not None and (type_of(schema) is not int or schema < 1):
            raise InvalidEvent(f"schema={schema!r:.60} of a plain event is no version", hint="Use a number from 1 on")
        return check_label(event.type, "type name"), schema
    raise InvalidEvent(
        f"{event!r:.80} is not an event", hint="Derive its class from millstream.Event, or use millstream.Plain"
    )


def _mapping(metadata: object) -> Mapping[str, Any]:
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidEvent(f"metadata is {metadata!r:.60}", hint="Give a dict")
    return metadata


def _draft_key(
    draft: Draft, tags: tuple[str, ...], metadata: Metadata | None, effective: int | None
) -> tuple[Any, ...]:
    return (
        check_tags([*tags, *check_tags(draft.tags)]) if draft.tags else tags,
        encode_metadata({**(metadata or {}), **_mapping(draft.metadata)}),
        to_micros(draft.effective) if draft.effective is not None else effective,
    )


def _object_run(
    events: list[Any],
    cls: Any,
    name: tuple[str, int | None] | None,
    key: tuple[Any, ...],
    stream: str,
    keys: Keys | None,
) -> StagedRun:
    tags, about, effective = key
    count = len(events)
    type, version = (cls.__event_type__, cls.__event_schema__) if name is None else name
    declared = cls if name is None else event_class(type)
    if declared is not None and declared.__event_personal__ is not None and shape_of(declared) is not None:
        from .personal.sealing import seal_events

        if version not in (None, declared.__event_schema__):
            raise InvalidEvent(
                f"a plain {type!r} event is of schema {version}, and its class, which says what to seal, of another",
                hint="Append it in the shape of today",
            )
        body, schema = seal_events(keys, stream, events, declared, tags, about)
    else:
        body = encode(events[0]) if count == 1 else encode_many(events, cls)
        schema = str(version or present_schema(type) or 1)
    encoding = Encoding.JSON if count == 1 else Encoding.NDJSON
    return StagedRun(type, schema, count, encoding, body, _sha256(body).digest(), tags, about, effective)


def _frame_runs(
    frame: pl.DataFrame,
    type: str | None,
    tags: tuple[str, ...],
    about: bytes | None,
    effective: int | None,
    stream: str,
    keys: Keys | None,
) -> list[StagedRun]:
    if type is None:
        raise InvalidEvent("a frame's events need a type", hint="Append with type='Click', for example")
    check_label(type, "type name")
    check_columns(frame)
    if not frame.height:
        return []
    frame = normalise(frame)
    schema = schema_text(frame.schema)
    declared = event_class(type)
    if declared is not None and shape_of(declared) is not None:
        from .personal.sealing import seal_rows

        frame, schema = seal_rows(keys, stream, frame, declared, tags, about)
    try:
        encoded = list(_encoded(list(split(frame))))
    except (Exception, pl.exceptions.PanicException) as error:
        raise InvalidEvent(f"the frame cannot be encoded: {error}", hint="Cast its columns to plain types") from error
    return [
        StagedRun(
            type, schema, piece.height, Encoding.ARROW, body, digest, tags, about, effective, ranges_of(piece)
        )
        for piece, body, digest in encoded
    ]  # fmt: skip


def _encoded(pieces: list[pl.DataFrame]) -> Iterator[tuple[pl.DataFrame, bytes, bytes]]:
    """Each piece with its body and its hash, which are worked out side by side: both leave the interpreter."""
    if pieces[0].height < _PARALLEL_ROWS:
        for piece in pieces:
            yield piece, encode_frame(piece), frame_hash(piece)
        return
    for piece in pieces:
        # A clone shares the data, not the lock that a frame holds while it is written.
        digest = _helpers().submit(frame_hash, piece.clone())
        yield piece, encode_frame(piece), digest.result()


_pool: ThreadPoolExecutor | None = None


def _helpers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="millstream-hash")
    return _pool


def _forget_helpers() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_helpers)


def digest_of(appends: Iterable[StagedAppend]) -> bytes:
    """SHA-256 of what an append with an id asks for, to tell a retry from another append."""
    digest = _sha256()
    for append in appends:
        # Not the conditions: a retry may expect the version that its first try has made.
        digest.update(_encode_json([append.stream, append.close]))
        for run in append.runs:
            digest.update(run.body_hash)
            digest.update(_encode_json([run.type, run.schema, run.count, run.tags, run.effective]))
            digest.update(run.metadata or b"")
    return digest.digest()
