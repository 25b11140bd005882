"""A flow put to work on frames: one pure step from state and rows to state, output and late rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import polars as pl

from ..errors import MillstreamError
from ..frames import Columns
from ..log.framing import ENVELOPE as ENVELOPE_TYPES
from ..log.objects import fitted, union
from ..storage.forked import check_frames
from .arriving import heights, passage, timed, watermark_of
from .aside import Aside
from .columns import END_OF_TIME, ENVELOPE, IDLE, SEQUENCE, visible
from .course import Course, Passing
from .errors import MissingColumn, UnsupportedExpression
from .flow import Flow
from .late import in_log
from .shaping import Filter, Select, WithColumns
from .state import Batch, Parts, widened
from .steps import SILENT, FlowState, Prepared, Rows, SourceState, Stepping, in_one
from .tree import NOWHERE, Source, timeline

_NOTHING = pl.DataFrame()


class Pipeline(Course):
    """A flow's stages, ready to run."""

    def __init__(self, flow: Flow) -> None:
        check_frames()
        super().__init__(flow)
        self._paced = self._tree or any(getattr(operator, "timed", False) for operator in self.operators)
        demand = self._demand
        self.needs = [demand.needs[source] for source in self.sources]
        self._told = False  # A state that was stored may be of other types: a cast may have been added since.
        self._asked = {claim.name for claim in demand.claims}
        timed = {"_time"} if any(each.time is None or each.ahead is not None for each in self.sources) else set()
        self.envelope: Collection[str] = {SEQUENCE} | timed | self._asked.intersection(ENVELOPE)
        """The columns of the log's envelope that it takes in."""

    def start(self) -> FlowState:
        """The state before the first row."""
        sources = tuple(SourceState() for _ in self.sources)
        return FlowState(sources, 0, tuple(operator.start() for operator in self.operators))

    def restored(self, sources: Sequence[SourceState], late: int, parts: Sequence[Parts]) -> FlowState:
        """The state that these parts of each operator's state are of."""
        self._told = False
        state = FlowState(tuple(sources), late, ())
        operators = tuple(
            operator.restore(held, self._watermark(state, reach))
            for operator, held, reach in zip(self.operators, parts, self._reach, strict=True)
        )
        return msgspec.structs.replace(state, operators=operators)

    def watermark(self, state: FlowState) -> int:
        """The time below which rows are late: of several sources the least."""
        return self._watermark(state, self._root.sources)

    def watermarks(self, state: FlowState) -> dict[str, int]:
        """The watermark of each source, by its stream; of a stream that is read in two ways, the lesser."""
        found: dict[str, int] = {}
        for source, held in zip(self.sources, state.sources, strict=True):
            mark = watermark_of(source, held.high)
            found[source.stream] = min(mark, found.get(source.stream, mark))
        return found

    def _watermark(self, state: FlowState, sources: Sequence[int]) -> int:
        return min(watermark_of(self.sources[number], state.sources[number].high) for number in sources)

    def step(
        self, state: FlowState, rows: pl.DataFrame | Sequence[pl.DataFrame | None], *, fill: bool = False
    ) -> tuple[FlowState, pl.DataFrame, pl.DataFrame | None]:
        """Take in rows, in the order of the log, with the log's envelope beside them.

        Args:
            state: The state before.
            rows: The rows; of several sources, those of each that stand between two positions of the log.
            fill: A column that no row has had yet is null, not missing; `check` says when that is wrong.

        Returns:
            The state afterwards; the rows that come out, in order; the rows that came late.
        """
        state, output, late = in_one(self.stepping(state, rows, fill=fill))
        return state, output, widened(late) if late else None

    def stepping(
        self,
        state: FlowState,
        rows: Rows,
        *,
        fill: bool = False,
        put: Callable[[pl.DataFrame], Aside] | None = None,
    ) -> Stepping:
        """The same, of which the rows come out in pieces where they may be too many for one.

        Args:
            state: The state before.
            rows: The rows.
            fill: As for `step`.
            put: Puts rows aside until they can be given; without it, all come in one piece.
        """
        # A source may be silent while others are not, so that its columns are not known.
        fill = fill or self._tree
        came = rows if isinstance(rows, Prepared) else self.prepare(state.sources, rows, fill=fill)
        nothing = pl.DataFrame()
        both = list(zip(state.sources, came.sources, strict=True))
        if not self._told or any(old.columns != new.columns for old, new in both):
            self._told = True
            told = tuple(msgspec.structs.replace(old, columns=new.columns) for old, new in both)
            state = msgspec.structs.replace(state, sources=told)
            with self._missed(state):
                state, nothing = self._reshaped(state, came.empty, fill)
        state = msgspec.structs.replace(state, sources=came.sources)
        with self._missed(state):
            return (yield from self._run(state, came.batches, fill, nothing, put, came.behind))

    def prepare(
        self,
        sources: Sequence[SourceState],
        rows: pl.DataFrame | Sequence[pl.DataFrame | None],
        *,
        fill: bool = False,
        shaped: bool = False,
    ) -> Prepared:
        """Do with rows what can be done before it is their turn; may be called from another thread.

        Args:
            sources: What is remembered of the sources before.
            rows: The rows.
            fill: As for `step`.
            shaped: Also send them through the first stages, where these have no memory.
        """
        frames = [rows] if isinstance(rows, pl.DataFrame) else list(rows)
        afterwards, empty, batches = [], [], []
        for number, (frame, held) in enumerate(zip(frames, sources, strict=True)):
            columns, fitting = self._fitted(number, held, frame, fill)
            batch, high = self._batch(number, fitting, held.high)
            afterwards.append(SourceState(high, columns))
            empty.append(fitting.clear())
            batches.append(batch)
        behind = 0
        if shaped and not self._tree:
            batches[0], behind = self._begun(batches[0])
        return Prepared(heights(frames), tuple(afterwards), empty, batches, behind)

    def _begun(self, batch: Batch) -> tuple[Batch, int]:
        """The rows of the only source behind the first stages without memory, and how many those are."""
        frame, behind = batch.frame, 0
        for stage in self.flow.stages:
            # Functions of the user's own are called by the thread that works on the flow.
            if not isinstance(stage, Filter | WithColumns | Select):
                break
            try:
                frame = self._shaped(stage, frame)
            except MillstreamError:
                return batch, 0  # It is told when it is their turn.
            behind += 1
        return msgspec.structs.replace(batch, frame=frame), behind

    def _fitted(
        self, number: int, source: SourceState, rows: pl.DataFrame | None, fill: bool
    ) -> tuple[Columns, pl.DataFrame]:
        """All columns of a source that are read, and its rows with them."""
        needs, held = self.needs[number], source.columns
        if rows is None:
            rows = SILENT
        known = {name: dtype for name, dtype in held.items() if needs.reads(name)}
        columns = union(known, {n: rows.schema[n] for n in visible(rows) if needs.reads(n)})
        absent = sorted(needs.named - set(columns)) if fill else []
        shown = {**columns, **dict.fromkeys(absent, pl.Null())}
        envelope = {name: ENVELOPE_TYPES[name] for name in ENVELOPE if name in rows.columns}
        if IDLE in rows.columns:
            envelope[IDLE] = pl.Int64()
        if dict(rows.schema) != {**shown, **envelope}:
            rows = fitted(rows, {**shown, **envelope})
        return columns, rows

    def _batch(self, number: int, rows: pl.DataFrame, high: int) -> tuple[Batch, int]:
        """The rows of a source as a batch, and the greatest time so far."""
        source = self.sources[number]
        frame, after = self._timed(source, rows, high)
        passing = None
        if self._paced:
            passing = (
                timeline(watermark_of(source, high), *(each.to_numpy() for each in passage(source, frame, high)))
                if frame.height
                else NOWHERE
            )
            passing = msgspec.structs.replace(passing, before=watermark_of(source, high))
        if IDLE in frame.columns:
            frame = frame.filter(pl.col(IDLE).is_null()).drop(IDLE)
        return Batch(frame, watermark_of(source, high), watermark_of(source, after), timeline=passing), after

    def _reshaped(self, state: FlowState, rows: Sequence[pl.DataFrame], fill: bool) -> tuple[FlowState, pl.DataFrame]:
        """What is held, with the types of rows to come; and what goes out, without a row.

        It follows from the columns alone: so when it happens does not depend on the batches.
        """
        batches = []
        for number, frame in enumerate(rows):
            timed, _ = self._timed(self.sources[number], frame.drop(IDLE, strict=False), state.sources[number].high)
            watermark = watermark_of(self.sources[number], state.sources[number].high)
            passing = msgspec.structs.replace(NOWHERE, before=watermark) if self._paced else None
            batches.append(Batch(timed, watermark, watermark, reshaped=True, timeline=passing))
        state, nothing, _ = in_one(self._run(state, batches, fill))
        return state, nothing

    def absent(self, state: FlowState) -> tuple[str, Source] | None:
        """A column that the flow asks for by name, and no row so far has had; and the source that lacks it."""
        held = {source: known.columns for source, known in zip(self.sources, state.sources, strict=True)}
        return self._demand.absent(held)

    def check(self, state: FlowState) -> None:
        """Refuse to go on without a column that no row so far has had.

        Raises:
            MissingColumn: There is one.
        """
        found = self.absent(state)
        if found is None:
            return
        name, source = found
        columns = state.sources[self.sources.index(source)].columns
        raise MissingColumn(name, f"the flow over {source.stream!r}", list(columns), source)

    @contextmanager
    def _missed(self, state: FlowState) -> Iterator[None]:
        """A column without a value so far is of no type, which few verbs can take: it is told then."""
        try:
            yield
        except UnsupportedExpression as error:
            self.check(state)
            asked = {name for needs in self.needs for name in needs.named}
            typed = {name for held in state.sources for name, dtype in held.columns.items() if dtype != pl.Null}
            if bare := sorted(asked - typed):
                names = ", ".join(map(repr, bare))
                error.hint = f"No row so far has a value in {names}: say its type, pl.col({bare[0]!r}).cast(pl.String)"
            raise

    def finish(self, state: FlowState, sources: Sequence[int] | None = None) -> tuple[FlowState, pl.DataFrame]:
        """Close all that is open, as if time had gone on for ever.

        Args:
            state: The state before.
            sources: Only the time of these sources has gone on; by default that of all.
        """
        if not self._told:
            # A state that was put away does not know its columns yet.
            state, _, _ = self.step(state, [None] * len(self.sources), fill=True)
            self._told = False  # Whoever only asks goes on with the state as it was.
        batches = []
        for number, (source, held) in enumerate(zip(self.sources, state.sources, strict=True)):
            before = watermark_of(source, held.high)
            after = END_OF_TIME if sources is None or number in sources else before
            passing = msgspec.structs.replace(NOWHERE, before=after) if self._paced else None
            batches.append(Batch(pl.DataFrame(), before, after, timeline=passing))
        state, frame, _ = in_one(self._run(state, batches, True))
        return state, frame

    def waits(self, state: FlowState, sources: Sequence[int]) -> bool:
        """Whether a result waits for the time of some sources to go on."""
        return self.finish(state, sources)[1].height > 0

    def _run(
        self,
        state: FlowState,
        batches: Sequence[Batch],
        fill: bool,
        nothing: pl.DataFrame = _NOTHING,
        put: Callable[[pl.DataFrame], Aside] | None = None,
        behind: int = 0,
    ) -> Stepping:
        passing = Passing(list(state.operators), fill)
        batch, number = self._into(self._root, batches, passing)
        for frame in self._onward(self._root, behind, number, batch, passing, put):
            yield self._published(frame) if frame.width else nothing
        # Before they leave: those of which nobody asks for a column leave nothing that could be counted.
        count = sum(each.height for each in passing.late)
        state = msgspec.structs.replace(state, operators=tuple(passing.operators), late=state.late + count)
        return state, self._aside(passing.late) if passing.late else []

    def _aside(self, late: list[pl.DataFrame]) -> list[pl.DataFrame]:
        """Late rows as they leave it."""
        return in_log(late)

    def _timed(self, source: Source, rows: pl.DataFrame, high: int) -> tuple[pl.DataFrame, int]:
        """The rows with their time and whether they are late; and the greatest time so far."""
        return timed(source, rows, high, self._asked)
