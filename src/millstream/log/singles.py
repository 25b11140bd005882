"""Single events of one kind as columns, for those who take events by the frame.

An event that is appended by itself is a run of its own. Where thousands of them are read only to become columns, what
costs is the Python object for each value of each header: here there is none until somebody asks for a run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from ..events import event_class
from ..storage.base import PackedEvents, Scope
from .records import EventClass, Run

if TYPE_CHECKING:
    from .reading import Reader

MOST = 16_384
"""The most events that are read as one."""
FIRST = 1_024
"""The most at first, when nothing is known of their size."""
_BYTES = 16 << 20
"""About as many bytes of bodies are read as one."""

_integers = msgspec.json.Decoder(list[int]).decode


class Singles:
    """A page of single events of one kind: a sequence of runs, each made when it is asked for.

    To those who make columns of it, it is one run of JSON; only its positions, streams and times differ.
    """

    is_frame = False

    def __init__(self, log: Reader, packed: PackedEvents) -> None:
        self._log = log
        self._packed = packed
        self.kind_id = packed.kind

    @property
    def stream(self) -> str:
        """The stream of its first event."""
        return self._log.store.stream_name(self._streams[0])

    @property
    def type(self) -> str:
        """The name of the events' type."""
        return self._log.store.kind(self.kind_id).type

    @property
    def decodes_as(self) -> EventClass | None:
        """The class that its events are decoded as in this process; None: they are `Plain`."""
        return event_class(self.type)

    @property
    def count(self) -> int:
        """How many events it holds."""
        return self._packed.count

    @property
    def position(self) -> int:
        """Position of its first event in the log."""
        return self.positions[0]

    @property
    def last(self) -> int:
        """Position of its last event."""
        return self.positions[-1]

    @property
    def size(self) -> int:
        """About how many bytes of data it holds."""
        return len(self._packed.bodies)

    def text(self) -> bytes:
        """Each event's data as a JSON object, a line each, without a last newline."""
        return self._packed.bodies.encode()

    def array(self) -> str:
        """Each event's data, as one JSON array."""
        return "[" + self._packed.bodies.replace("\n", ",") + "]"

    def lines(self) -> list[str]:
        """Each event's data as a JSON object."""
        return self._bodies

    def read_ahead(self, columns: Sequence[str] | None) -> None:
        """Nothing: what there is to read is read."""

    @cached_property
    def positions(self) -> list[int]:
        """The position of each event."""
        return _integers(f"[{self._packed.positions}]")

    @cached_property
    def versions(self) -> list[int]:
        """The version of each event within its stream."""
        return _integers(f"[{self._packed.versions}]")

    @cached_property
    def recorded(self) -> list[int]:
        """When each was recorded, in microseconds since 1970."""
        return _integers(f"[{self._packed.recorded}]")

    @cached_property
    def _streams(self) -> list[int]:
        return _integers(f"[{self._packed.streams}]")

    @cached_property
    def _bodies(self) -> list[str]:
        return self._packed.bodies.split("\n")

    @cached_property
    def _metadata(self) -> list[str] | None:
        return None if self._packed.metadata is None else self._packed.metadata.split("\n")

    def envelope(self, names: Collection[str]) -> list[pl.Series]:
        """The columns of `millstream.log.framing.ENVELOPE` that are wanted."""
        columns: dict[str, Callable[[], pl.Series]] = {
            "_position": lambda: pl.Series(self.positions, dtype=pl.Int64),
            "_stream": self._stream_names,
            "_version": lambda: pl.Series(self.versions, dtype=pl.Int64),
            "_type": lambda: pl.repeat(self.type, len(self), dtype=pl.String, eager=True),
            "_time": lambda: pl.Series(self.recorded, dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
        }
        return [column().alias(name) for name, column in columns.items() if name in names]

    def _stream_names(self) -> pl.Series:
        ids: npt.NDArray[np.int64] = np.array(self._streams, np.int64)
        known, places = np.unique(ids, return_inverse=True)
        name = self._log.store.stream_name
        return pl.Series([name(each) for each in known.tolist()], dtype=pl.String).gather(places)

    def split(self, count: int) -> tuple[Singles, Singles]:
        """The first so many of its events, and the others."""
        packed = self._packed
        numbers = (packed.positions, packed.streams, packed.versions, packed.recorded)
        texts = (packed.bodies, packed.metadata)
        first, others = zip(
            *(_halves(text, ",", count) for text in numbers),
            *(_halves(text, "\n", count) for text in texts),
            strict=True,
        )
        return (
            Singles(self._log, PackedEvents(count, packed.kind, *first)),
            Singles(self._log, PackedEvents(self.count - count, packed.kind, *others)),
        )

    def __len__(self) -> int:
        return self._packed.count

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> list[Run]: ...
    def __getitem__(self, index: int | slice) -> Run | list[Run]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        metadata = self._metadata
        return Run(
            self._log,
            self.positions[index],
            self._streams[index],
            self.versions[index],
            self.kind_id,
            self.recorded[index],
            self._bodies[index],
            None if metadata is None else metadata[index],
        )

    def __iter__(self) -> Iterator[Run]:
        return iter(self[:])


def _halves(text: str | None, by: str, count: int) -> tuple[Any, Any]:
    """A text up to its value of a number, and from that on."""
    if text is None:
        return None, None
    values = text.split(by)
    return by.join(values[:count]), by.join(values[count:])


def spread(pages: Iterable[list[Run] | Singles]) -> Iterator[Run | Singles]:
    """What pages hold, in order: runs, and pages of single events as they are."""
    for page in pages:
        if isinstance(page, Singles):
            yield page
        else:
            yield from page


def one_by_one(group: Iterable[Run | Singles]) -> Iterator[Run]:
    """Every run, also those that pages of single events stand for."""
    for each in group:
        if isinstance(each, Singles):
            yield from each
        else:
            yield each


def events_in(runs: Sequence[Run] | Singles) -> int:
    """How many events there are, without making runs of single ones."""
    return runs.count if isinstance(runs, Singles) else sum([run.count for run in runs])


def singles(log: Reader, scope: Scope, low: int, high: int, most: int) -> Singles | None:
    """The next events of a scope strictly between two positions, if they are single ones that are read as stored.

    Args:
        most: The most events.
    """
    packed = log.store.packed(scope, low, high, most)
    return None if packed is None or not log.is_plain(packed.kind) else Singles(log, packed)


def next_most(page: Singles, most: int) -> int:
    """How many to ask for after a page: more and more, but about so many that they take a bounded room."""
    return min(MOST, 4 * most, max(64, _BYTES * len(page) // page.size))
