"""Rebuilding: an aggregate is carried forward by the events of its stream, from wherever it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import msgspec

from ..errors import VersionConflict
from ..events import Draft, Event, Plain, decoder, definitions, encode, type_name
from ..log import Log
from ..log.records import Recorded, Run
from .errors import HandlerMissing, WrongAggregate
from .model import Apply, DeciderModel, Model
from .root import REPLAY, Root

_PAGE = 1_000
_LAST = 1 << 62

_decode_plain = msgspec.json.Decoder().decode

_Row = tuple[int, int, int, int, str | None]

Passed = Callable[[Root], None]
"""Told of an aggregate now and then while it is carried forward."""

Quick = tuple[Apply | None, Callable[[Any], Any]]
"""What applies an event of a kind (None: it is passed over), and what decodes the text of one."""


class Replay:
    """Applies events to the aggregates of one model. Safe to share between threads."""

    def __init__(self, log: Log, model: Model[Any]) -> None:
        self._log = log
        self._model = model
        self._quick: dict[int, Quick | None] = {}
        """By number: one look-up per event instead of three names'."""
        self._definitions = -1

    def begin(self, id: str) -> Root:
        """An aggregate before its first event, about to be carried forward."""
        root = self._model.new(id)
        root._sealed = REPLAY
        return root

    def advance(
        self,
        root: Root,
        *,
        version: int | None = None,
        position: int | None = None,
        every: int = _PAGE,
        passed: Passed | None = None,
    ) -> bool:
        """Apply the events after an aggregate's version, up to a version or a position (inclusive).

        Args:
            passed: Told of the aggregate at the multiples of ``every``, and now and then besides.

        Returns:
            False when the stream is shorter than the aggregate: what it was made of is gone.

        Raises:
            HandlerMissing, WrongAggregate: An event is met that the model does not know.
            InvalidEvent: An event does not fit its class.
            Trimmed: An event was trimmed.
        """
        root._sealed = REPLAY
        try:
            return self._by_rows(root, version, position, every, passed)
        finally:
            root._sealed = None

    def _by_rows(
        self, root: Root, version: int | None, position: int | None, every: int, passed: Passed | None
    ) -> bool:
        """The quick way, for single events that stand inline and need only be decoded; the rest goes by runs."""
        store, quick = self._log.store, self.quick()
        while True:
            rows = store.stream_rows(root.id, root.version + 1, _PAGE)
            full = len(rows) == _PAGE
            if root.version:
                if not rows or rows[0][1] + rows[0][2] <= root.version:
                    return False
                if rows[0][1] + rows[0][2] == root.version + 1:
                    del rows[0]
            done = not full
            for piece in _pieces(rows, root.version, every):
                for at, number, count, kind, body in piece:
                    if (version is not None and number > version) or (position is not None and at > position):
                        done = True
                        break
                    entry = quick[kind] if kind in quick else self.learn(kind)
                    if entry is None or count != 1 or body is None or number != root.version + 1:
                        self._by_runs(root, version, position, every, passed)
                        return True
                    apply, decode = entry
                    if apply is not None:
                        try:
                            event = decode(body)
                        except msgspec.MsgspecError:
                            self._by_runs(root, version, position, every, passed)  # says what does not fit, and where
                            return True
                        apply(root, event)
                    root.version = number
                    root._position = at
                if passed is not None:
                    passed(root)
            if done:
                return True

    def quick(self) -> dict[int, Quick | None]:
        """How single events are applied, by the number that the log gives their kind, as far as it was learnt."""
        if self._definitions != definitions():
            self._definitions, self._quick = definitions(), {}
        return self._quick

    def learn(self, kind: int) -> Quick | None:
        """How single events of a kind are applied; None where that takes a `Run`."""
        found: Quick | None = None
        named = self._log.store.kind(kind)
        if self._log.is_plain(kind):
            applied = self._model.applied(named.type)
            if applied is not None:
                function, cls = applied
                found = function, _plain(named.type) if cls is Plain else decoder(cls).decode  # type: ignore[arg-type]
        self._quick[kind] = found
        return found

    def _by_runs(
        self, root: Root, version: int | None, position: int | None, every: int, passed: Passed | None
    ) -> None:
        head = self._log.head
        for run in self.runs(root, version, head if position is None else min(position, head)):
            first = run.position
            while first <= run.last:
                # Several runs that were made of one stored event have its version: only then is it applied whole.
                if passed is not None and first > root._position:
                    passed(root)
                end = min(run.last + 1, first + every - (run.version + first - run.position - 1) % every)
                piece = run.cut(first - 1, end)
                assert piece is not None
                self.apply(root, piece)
                first = end
        if passed is not None:
            passed(root)
        if position is None:
            self._pass_over(root, head, version)

    def _pass_over(self, root: Root, head: int, version: int | None) -> None:
        """Count the last events of a stream, up to a head, where they are such as are read no more."""
        rows = self._log.store.stream_rows(root.id, _LAST if version is None else version, 1)
        if rows and rows[0][0] <= head:
            at, number, count, _, _ = rows[0]
            last = number + count - 1 if version is None else min(version, number + count - 1)
            if last > root.version:
                root.version, root._position = last, at + last - number

    def runs(self, root: Root, version: int | None, position: int | None) -> Iterator[Run]:
        """The runs after an aggregate's version, as they are read today, cut at the bounds."""
        # A state without what was trimmed would be a wrong one.
        return self._log.runs(
            root.id,
            since_version=root.version + 1,
            until_version=None if version is None else version + 1,
            until_position=None if position is None else position + 1,
            trimmed="raise",
        )

    def apply(self, root: Root, run: Run) -> None:
        """Apply the events of a run."""
        function, cls = self.applied(root, run)
        if function is not None:
            before = run.version - 1
            for event in events_of(run, cls):
                # Several events that one stored event is read as share its version, and what stood before.
                root.version = before
                function(root, event)
                before += 1
        root.version = run.version + run.count - 1
        root._position = run.position + run.count - 1

    def foresee(self, root: Root, since: int, events: Sequence[Event | Plain | Draft]) -> None:
        """Apply events that are about to be appended behind a version of its stream, as far as it has not come to them.

        Raises:
            VersionConflict: The stream is at another version: somebody else has appended to it.
            HandlerMissing, WrongAggregate: The model does not know one of them.
        """
        if not since <= root.version <= since + len(events):
            raise VersionConflict(root.id, expected=since, actual=root.version)
        for each in events[root.version - since :]:
            event = each.event if isinstance(each, Draft) else each
            type = type_name(event)
            found = self._model.applied(type)
            if found is None:
                if not root.version:
                    raise WrongAggregate(self._model.name, root.id, type)
                raise HandlerMissing(self._model.name, type, decider=isinstance(self._model, DeciderModel))
            function, cls = found
            if function is not None:
                if cls is not Plain and not isinstance(event, cls):
                    event = decoder(cls).decode(encode(event))  # type: ignore[arg-type]
                elif cls is Plain and not isinstance(event, Plain):
                    event = Plain(type, _decode_plain(encode(event)))
                root._sealed = REPLAY
                try:
                    function(root, event)
                finally:
                    root._sealed = None
            root.version += 1

    def stepwise(self, root: Root, runs: Iterable[Run]) -> Iterator[Recorded]:
        """Apply runs event by event: each one, when it has been applied."""
        for run in runs:
            function, cls = self.applied(root, run)
            events = events_of(run, cls) if function is not None else repeat(None)
            for recorded, event in zip(run, events, strict=False):
                if function is not None:
                    root.version = recorded.version - 1
                    function(root, event)
                root.version, root._position = recorded.version, recorded.position
                yield recorded

    def applied(self, root: Root, run: Run) -> tuple[Apply | None, type[Any]]:
        """How the events of a run change an aggregate.

        Raises:
            HandlerMissing: The model does not know their type.
            WrongAggregate: Nor does it know any event before them.
        """
        found = self._model.applied(run.type)
        if found is None:
            if run.version == 1:
                raise WrongAggregate(self._model.name, root.id, run.type)
            raise HandlerMissing(
                self._model.name, run.type, run.position, decider=isinstance(self._model, DeciderModel)
            )
        return found


def _pieces(rows: list[_Row], version: int, every: int) -> Iterator[list[_Row]]:
    """Rows of single events after a version, so that each piece ends where a multiple of ``every`` is reached."""
    first = every - version % every
    if len(rows) <= first:
        yield rows
        return
    yield rows[:first]
    for start in range(first, len(rows), every):
        yield rows[start : start + every]


def _plain(type: str) -> Callable[[Any], Plain]:
    return lambda body: Plain(type, _decode_plain(body))


def events_of(run: Run, cls: type[Any]) -> Sequence[Any]:
    """The events of a run, as instances of a class; as plain ones when that is `Plain`."""
    if cls is not Plain:
        return run.events(cls)
    type = run.type
    return [Plain(type, data) for data in run.data()]
