"""Runs as they are read today: what was stored under an older name or shape is given in the present one.

A kind (category, type, schema) is looked at once; most need nothing, and their runs pass through untouched. Those of
the others are replaced by `Presented` runs, whose type and data are today's, so that nothing further up needs to know.
An event that cannot be brought to its present shape is a run of its own, which says so when its data is asked for: the
others around it are read all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from ..errors import InvalidEvent, InvalidUpcaster, MillstreamError, SchemaMismatch, UpcasterMissing, UpcastFailed
from ..events import (
    Plain,
    definitions,
    encode,
    event_class,
    present_name,
    present_schema,
    schema_version,
    sealed_fields,
)
from ..evolution import Upcaster, steps_of
from ..frames import MAX_ROWS, is_frame_schema
from ..personal import Erased
from .records import EventClass, Run

if TYPE_CHECKING:
    from .reading import Reader

Plan = Callable[[Run], list[Run]]
"""What becomes of a run of a kind: the runs to be read in its place, in order."""

_decode = msgspec.json.Decoder().decode


def present(reader: Reader, runs: list[Run], *, backwards: bool = False) -> Iterator[list[Run]]:
    """The runs as they are to be read today, in parts: the very same list where none of them needs a change."""
    plans = {kind: plan for kind in {run.kind_id for run in runs} if (plan := plan_of(reader, kind)) is not None}
    if not plans:
        yield runs
        return
    shown: list[Run] = []
    held = 0
    for run in runs:
        plan = plans.get(run.kind_id)
        if plan is None:
            shown.append(run)
            continue
        parts = plan(run)
        shown.extend(reversed(parts) if backwards else parts)
        held += run.count
        if held >= MAX_ROWS:
            # What upcasters have made is in memory: a page of long runs must not be, all at once.
            yield shown
            shown, held = [], 0
    if shown:
        yield shown


def present_staged(runs: Iterable[Run]) -> list[Run]:
    """The same for runs that are not committed yet, whose kinds readers cannot know of."""
    shown: list[Run] = []
    for run in runs:
        plan = _staged_plan(run.type, run.schema, definitions())
        shown.extend([run] if plan is None else plan(run))
    return shown


@lru_cache(maxsize=1_024)
def _staged_plan(type: str, schema: str, definitions: int) -> Plan | None:
    return _plan(type, schema)


def plan_of(reader: Reader, kind: int) -> Plan | None:
    """How runs of a kind are to be changed; None: not at all. Cached by the reader, until a class is defined."""
    try:
        return reader.plans[kind]
    except KeyError:
        found = reader.store.kind(kind)
        plan = reader.plans[kind] = _plan(found.type, found.schema)
        return plan


def _plan(stored_type: str, schema: str) -> Plan | None:
    type = present_name(stored_type)
    if is_frame_schema(schema):
        return None if type == stored_type else lambda run: [presented(run, type, schema)]
    stored = schema_version(schema)
    known = present_schema(type)
    if known is not None and stored > known:
        return lambda run: [presented(run, type, schema, too_new=known)]
    try:
        steps = steps_of(type)
    except InvalidUpcaster as error:
        failure = _always(error)
        return lambda run: [_failing(run, type, schema, failure)]
    may_be = frozenset(present_name(each) for step in steps.values() for each in step.into)
    present = known if known is not None else max([stored, *steps])
    due = [since for since in steps if stored < since <= present]
    if not due:
        return None if type == stored_type else lambda run: [presented(run, type, schema)]
    missing = next((since for since in range(stored + 1, max(due)) if since not in steps), None)
    if missing is not None:
        hole = missing
        return lambda run: [
            _failing(run, type, schema, lambda position: UpcasterMissing(type, hole, stored, position), may_be)
        ]
    return _Chain(type, str(present), [steps[since] for since in sorted(due)], may_be)


class _Chain:
    """The plan of a type whose data is upcast: calls the upcasters one after the other, event by event."""

    def __init__(self, type: str, schema: str, steps: Sequence[Upcaster], may_be: frozenset[str]) -> None:
        self._type = type
        self._may_be = may_be
        self._schema = schema
        self._steps = steps

    def __call__(self, run: Run) -> list[Run]:
        try:
            lines = run.lines()
            personal = bool(sealed_fields(run.stored_schema))
        except MillstreamError as error:
            if run.count > 1:
                # One event's key may be lost, and the others' not.
                singles = (run.cut(run.position + i - 1, run.position + i + 1) for i in range(run.count))
                return [part for single in singles if single is not None for part in self(single)]
            # Trimmed meanwhile, damaged, in an archive that cannot be reached: told to those who want the data.
            return [_failing(run, self._type, self._schema, _always(error), self._may_be)]
        shown: list[Run] = []
        whole: list[bytes] = []  # of neighbours that stay one event of the type: they stay one run
        for index, line in enumerate(lines):
            made: list[tuple[str, str, bytes]] | MillstreamError
            try:
                made = list(self._made(line, 0, run.position + index, personal))
            except MillstreamError as error:
                made = error
            if not isinstance(made, MillstreamError) and len(made) == 1 and made[0][0] == self._type:
                whole.append(made[0][2])
                continue
            if whole:
                shown.append(presented(run, self._type, self._schema, lines=whole, offset=index - len(whole)))
                whole = []
            if isinstance(made, MillstreamError):
                part = run.cut(run.position + index - 1, run.position + index + 1)
                assert part is not None
                shown.append(_failing(part, self._type, self._schema, _always(made), self._may_be))
            else:
                shown.extend(
                    presented(run, type, schema, lines=[data], offset=index, apart=type != self._type)
                    for type, schema, data in made
                )
        if whole:
            shown.append(presented(run, self._type, self._schema, lines=whole, offset=len(lines) - len(whole)))
        return shown

    def _made(self, line: Any, number: int, position: int, personal: bool) -> Iterator[tuple[str, str, bytes]]:
        """What becomes of an event's data from a step on: types, schemas and data."""
        if number == len(self._steps):
            yield self._type, self._schema, line
            return
        step = self._steps[number]
        for type, data in self._results(step, line, position, personal):
            try:
                made = encode(Plain(type, data))
            except InvalidEvent as error:
                raise UpcastFailed(self._type, step.since, position, error.message) from error
            if type == self._type:
                # Each step reads its data from JSON, as if it had been stored so, and can change none but its own.
                yield from self._made(made, number + 1, position, personal)
            else:
                yield type, str(present_schema(type) or 1), made

    def _results(self, step: Upcaster, line: Any, position: int, personal: bool) -> list[tuple[str, dict[str, Any]]]:
        def wrong(reason: str) -> UpcastFailed:
            return UpcastFailed(self._type, step.since, position, reason)

        try:
            data = _decode(line)
        except msgspec.DecodeError as error:
            raise wrong(f"its JSON cannot be decoded ({error})") from error
        erased = [name for name, value in data.items() if value == Erased] if personal else []
        data.update(dict.fromkeys(erased, Erased))
        try:
            given = step.function(data)
        except Exception as error:
            told = f" (millstream.Erased is its {', '.join(erased)})" if erased else ""
            raise wrong(f"{type(error).__name__}: {error}{told}") from error
        results = []
        for item in given if isinstance(given, list) else [given]:
            if isinstance(item, Plain):
                name = present_name(item.type) if isinstance(item.type, str) else ""
                if name != self._type and name not in map(present_name, step.into):
                    raise wrong(f"it returned {item.type!r:.80}, which is not in its into= ({', '.join(step.into)})")
                results.append((name, item.data))
            elif isinstance(item, dict):
                results.append((self._type, item))
            else:
                raise wrong(f"it returned {type(item).__name__}, not a dict, a millstream.Plain or a list of them")
        return results


class Presented(Run, eq=False):
    """A run, or a part of one, whose type and data are given as they are today."""

    source: Any = None
    """The run that it is made of, or as much of it."""
    shown_type: str = ""
    shown_schema: str = "1"
    shown: list[bytes] | None = None
    """The data of each event, as JSON objects; None: as the source has it."""
    too_new: int | None = None
    """The schema of the type's class here, where that of the run is newer."""
    failure: Callable[[int], MillstreamError] | None = None
    """Why the data cannot be had, told with the position of the event that was asked for."""
    may_be: frozenset[str] = frozenset()
    """With a failure: the other types that its events could have been of."""

    @property
    def stream(self) -> str:
        return self.source.stream  # type: ignore[no-any-return]

    @property
    def tags(self) -> tuple[str, ...]:
        return self.source.tags  # type: ignore[no-any-return]

    @property
    def type(self) -> str:
        return self.shown_type

    @property
    def schema(self) -> str:
        return self.shown_schema

    @property
    def stored_schema(self) -> str:
        return self.source.stored_schema  # type: ignore[no-any-return]

    @property
    def decodes_as(self) -> EventClass | None:
        return None if self.too_new is not None else event_class(self.shown_type)

    def lines(self) -> list[Any]:
        if self.failure is not None:
            raise self.failure(self.position)
        return self.shown if self.shown is not None else self.source.lines()

    def frame(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        return self.source.frame(columns) if self.is_frame else super().frame(columns)

    def data(self) -> list[dict[str, Any]]:
        return self.source.data() if self._as_it_is else super().data()

    def row(self, index: int) -> dict[str, Any]:
        return self.source.row(index) if self._as_it_is else super().row(index)

    @property
    def _as_it_is(self) -> bool:
        """Whether the source has the data, and all that there is to know of it."""
        return self.shown is None and self.failure is None

    def events(self, cls: EventClass | None = None) -> list[Any]:
        cls = cls or event_class(self.shown_type)
        if self.too_new is not None and cls is not None and cls is not Plain:
            stored = schema_version(self.shown_schema)
            if stored > getattr(cls, "__event_schema__", self.too_new):
                raise SchemaMismatch(self.shown_type, stored, self.too_new, self.position)
        if self._as_it_is and cls is not None and cls is not Plain:
            return self.source.events(cls)  # type: ignore[no-any-return]
        return super().events(cls)

    def _text(self) -> bytes:
        return b"\n".join(line if isinstance(line, bytes) else line.encode() for line in self.lines())

    def cut(self, after: int, until: int) -> Run | None:
        part = super().cut(after, until)
        if part is not None and part is not self:
            assert isinstance(part, Presented)
            part.source = self.source.cut(after, until)
            if self.shown is not None:
                start = part.position - self.position
                part.shown = self.shown[start : start + part.count]
        return part


def presented(
    run: Run,
    type: str,
    schema: str,
    *,
    lines: list[bytes] | None = None,
    offset: int = 0,
    too_new: int | None = None,
    apart: bool = False,
) -> Presented:
    """Events of a run with another type or other data.

    Args:
        lines: The data of as many events as the new run is to hold; None: the run's own, of all of its events.
        offset: Which event of the run is the first.
        too_new: See `Presented`.
        apart: The run's kind is not the new one's: nothing that is known of the one is to be used for the other.
    """
    count = run.count if lines is None else len(lines)
    return Presented(
        run.log,
        run.position + offset,
        run.stream_id,
        run.version + offset,
        _kind_apart(type, schema) if apart else run.kind_id,
        run.recorded,
        run.body if lines is None and too_new is None else None,
        run.raw_metadata,
        count,
        run.effective,
        format=run.format,
        body_ref=run.body_ref,
        body_offset=run.body_offset if lines is None else 0,
        base=run.base or run.position,
        source=run if lines is None else run.cut(run.position + offset - 1, run.position + offset + count),
        shown_type=type,
        shown_schema=schema,
        shown=lines,
        too_new=too_new,
    )


def _always(error: MillstreamError) -> Callable[[int], MillstreamError]:
    return lambda position: error


def _failing(
    run: Run,
    type: str,
    schema: str,
    failure: Callable[[int], MillstreamError],
    may_be: frozenset[str] = frozenset(),
) -> Presented:
    failing = presented(run, type, schema)
    failing.body, failing.failure, failing.may_be = None, failure, may_be
    return failing


def is_wanted(run: Run, types: frozenset[str]) -> bool:
    """Whether a run is of some types, or holds what cannot be read and would perhaps be of them."""
    return run.type in types or (isinstance(run, Presented) and not types.isdisjoint(run.may_be))


def together(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Runs one by one, but those that were made of one stored event together: they share its position."""
    held: list[Run] = []
    for run in runs:
        if held and run.position != held[0].position:
            yield held
            held = []
        held.append(run)
    if held:
        yield held


_apart: dict[tuple[str, str], int] = {}


def _kind_apart(type: str, schema: str) -> int:
    """A number for a kind that is stored nowhere; those of stores are positive."""
    return _apart.setdefault((type, schema), -1 - len(_apart))
