"""What one process does of a shared flow: it reads all rows, works on those of its range, and says what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ..arriving import heights
from ..columns import SEQUENCE
from ..errors import FlowError
from ..flow import Flow
from ..naming import named
from ..packing import pack
from ..progress import size_of
from ..replay import Labelled, batches, frames, labelled
from ..spilling import Sizes, Spill
from ..state import Part, Parts
from ..steps import SourceState, in_one
from ..store import Stored, parts_of
from .ranges import SPACE, Drifted, Range, SharedPipeline

if TYPE_CHECKING:
    from ...log.log import Log


class Made(msgspec.Struct):
    """What came of a group of runs: of each step the rows that came out, and all that were late."""

    position: int
    heights: list[int]
    outputs: list[pl.DataFrame]
    late: list[pl.DataFrame]


class Reached(msgspec.Struct):
    """The end of a stretch of work: how the state has changed in it.

    Attributes:
        position: Up to which position of the log all is taken in.
        sources: What is remembered of the sources, the same in all processes.
        late: How many rows came late, since the process began.
        gone: The parts that are no more: operator and number.
        new: Those that came: operator, number, bounds and body.
        held: How many rows each operator holds.
        sizes: How many bytes the state takes.
        drifted: The next rows have other types in the columns that tell them apart.
    """

    position: int
    sources: tuple[SourceState, ...]
    late: int
    gone: list[tuple[int, int]]
    new: list[tuple[int, int, int, int, bytes]]
    held: tuple[int, ...]
    sizes: Sizes
    drifted: bool = False


class Share:
    """The work of one range.

    Args:
        log: The log, to read from.
        flow: The flow.
        range: The range of key hashes.
        rows: The most rows of a group of runs; the same in all processes.
        classes: The types of events that have a class where the flow was started.
        memory: So many bytes of its state stay in memory; None for all.
    """

    def __init__(
        self,
        log: Log,
        flow: Flow,
        range: Range,
        rows: int,
        classes: frozenset[str] = frozenset(),
        memory: int | None = None,
    ) -> None:
        self._log = log
        self._spill = None if memory is None else Spill.beside(log, memory)
        self._rows = rows
        self._classes = classes
        self._keeps_late = flow.late is not None
        self.pipeline = SharedPipeline(flow, range)
        self.state = self.pipeline.start()
        self.position = 0
        self._stored: Stored = frozenset()
        self._groups: tuple[int, Iterator[list[Labelled]]] | None = None

    def load(self, name: str, position: int, sources: tuple[SourceState, ...], *, split: bool) -> None:
        """Take up what is stored of the flow.

        Args:
            name: The flow's name.
            position: Where the flow is.
            sources: What is remembered of its sources.
            split: Whether what is stored is split into the same ranges already.
        """
        held, range = [], self.pipeline.range
        low = range.index * SPACE
        with self._log.connect() as database, database.snapshot():
            for number, _ in enumerate(self.pipeline.operators):
                mine: Iterator[Part]
                if split:
                    found = parts_of(database, name, number, low, low + SPACE)
                    mine = (part.numbered(part.id - low) for part in found)
                else:
                    columns = self.pipeline.plan.held.get(number, ())
                    mine = range.owned(parts_of(database, name, number), columns)
                held.append(Parts.of(map(self._kept, mine)))
        self.state = self.pipeline.restored(sources, 0, held)
        if split:
            self._stored = frozenset((number, part.id) for number, parts in enumerate(held) for part in parts.items)
        self.position = position
        if any(source.columns for source in sources):
            # So that it is known of what types the columns were by which this state was split.
            self.state, *_ = self.pipeline.step(self.state, [None] * len(sources), fill=True)

    def _kept(self, part: Part) -> Part:
        """A part that was read: in memory, or beyond the limit on disk."""
        if self._spill is not None:
            self._spill.add("", part.body)
        return part

    def work(self, until: int, rows: int) -> Iterator[Made | Reached]:
        """Take in what the log holds up to a position, or about so many rows of it.

        Raises:
            MissingColumn: A column that the flow asks for has come in no row up to there.
        """
        taken = 0
        for group in self._following(until):
            made = Made(group[-1][1].last, [0] * len(self.pipeline.sources), [], [])
            before = self.state
            try:
                with named(self._log):
                    self._take(group, made)
            except Drifted:
                self.state, self._groups = before, None
                yield self._reached(drifted=True)
                return
            self.position = made.position
            taken += sum(made.heights)
            yield made
            if taken >= rows and self.pipeline.absent(self.state) is None:
                yield self._reached()
                return
        self._groups = None
        self.position = max(self.position, until)
        if taken:
            with named(self._log):
                self.pipeline.check(self.state)
        yield self._reached()

    def waits(self, sources: list[int]) -> bool:
        """Whether a result waits for the time of some sources to go on."""
        return self.pipeline.waits(self.state, sources)

    def _following(self, until: int) -> Iterator[list[Labelled]]:
        if self._groups is None or self._groups[0] != until:
            runs = labelled(self._log, self.pipeline.sources, self.position, until + 1)
            self._groups = until, batches(runs, self._rows)
        return self._groups[1]

    def _take(self, group: list[Labelled], made: Made) -> None:
        if self._classes:
            for _, run in group:
                if run.type in self._classes:
                    raise FlowError(
                        f"events of type {run.type!r} have a class that other processes cannot import",
                        hint="Define it in a module, or run the flow with processes=1",
                    )
        for frame in frames(self.pipeline, self.state.sources, group):
            self.state, out, late = in_one(self.pipeline.stepping(self.state, frame, fill=True))
            if self._spill is not None:
                self._spill.keep("", self.state.bodies)
            made.heights = [a + b for a, b in zip(made.heights, heights(frame), strict=True)]
            made.outputs.append(out)
            if late and self._keeps_late:
                _refuse_twins(frame)
            made.late += late

    def _reached(self, *, drifted: bool = False) -> Reached:
        state = self.state
        held = {(number, part.id): part for number, each in enumerate(state.operators) for part in each.parts.items}
        gone = [key for key in self._stored if key not in held]
        new = [(*key, part.low, part.high, pack(part.stored)) for key, part in held.items() if key not in self._stored]
        self._stored = frozenset(held)
        rows = tuple(operator.parts.rows for operator in state.operators)
        return Reached(self.position, state.sources, state.late, gone, new, rows, size_of(state), drifted)


def _refuse_twins(frame: pl.DataFrame | list[pl.DataFrame | None]) -> None:
    """Late rows of one position are in no order that several processes could agree on."""
    for each in [frame] if isinstance(frame, pl.DataFrame) else frame:
        if each is not None and each.height > 1 and (each[SEQUENCE][1:] == each[SEQUENCE][:-1]).any():
            raise FlowError(
                "the flow cannot be shared: late rows are kept, and one stored event has become several rows",
                hint="Run it with processes=1, or without late_to(...)",
            )
