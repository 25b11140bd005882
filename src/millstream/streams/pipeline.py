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
from .arriving import heights, passage, timed, watermark_of
from .aside import Aside
from .captured import TableRows
from .closing import Closes, in_order, takes_pieces
from .columns import END_OF_TIME, ENVELOPE, IDLE, SEQUENCE, is_hidden, ordered, picked, visible
from .errors import MissingColumn, UnsupportedExpression
from .flow import Flow
from .late import in_log, put_aside
from .needs import Demand
from .shaping import Filter, Rowwise, Select, WithColumns
from .state import Batch, Operator, OperatorState, Parts, Step, widened
from .steps import SILENT, Branch, FlowState, Prepared, Rows, SourceState, Stepping, in_one
from .tree import NOWHERE, Meeting, Source, order_of, sources_of, timeline, together
from .untyped import nothing_of, untyped

_NOTHING = pl.DataFrame()


class Pipeline:
    """A flow's stages, ready to run."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.sources = sources_of(flow)
        self.operators: list[Operator | Meeting] = []
        """In the order of the tree: those of the inputs of a meeting, the meeting, what follows it."""
        self._reach: list[tuple[int, ...]] = []
        """For each operator, the sources that its watermark is of."""
        self._root = self._grow(flow)
        self._tree = bool(self._root.inputs)
        self._paced = self._tree or any(getattr(operator, "timed", False) for operator in self.operators)
        demand = Demand(flow)
        self._demand = demand
        self.needs = [demand.needs[source] for source in self.sources]
        self._told = False  # A state that was stored may be of other types: a cast may have been added since.
        self._asked = {claim.name for claim in demand.claims}
        timed = {"_time"} if any(each.time is None or each.ahead is not None for each in self.sources) else set()
        self.envelope: Collection[str] = {SEQUENCE} | timed | self._asked.intersection(ENVELOPE)
        """The columns of the log's envelope that it takes in."""

    def _grow(self, flow: Flow) -> Branch:
        source = flow.source
        inputs: tuple[Branch, ...] = ()
        if isinstance(source, Source):
            sources: tuple[int, ...] = (self.sources.index(source),)
        else:
            inputs = tuple(self._grow(each) for each in source.inputs)
            heeded = [branch for number, branch in enumerate(inputs) if source.heeds(number)]
            sources = tuple(sorted({number for branch in heeded for number in branch.sources}))
        first = len(self.operators)
        mine: list[Operator | Meeting] = [] if isinstance(source, Source) else [source]
        mine += [stage for stage in flow.stages if not isinstance(stage, Rowwise)]
        self.operators += mine
        self._reach += [sources] * len(mine)
        return Branch(flow, inputs, sources, first)

    def held(self, part: object) -> list[frozenset[str] | None]:
        """The columns that rows have which a part of the flow holds, of each of its inputs; None for all."""
        return self._demand.held.get(id(part), [])

    @property
    def shape(self) -> str:
        """What the flow's state depends on."""
        return self._shape(self._root)

    def _shape(self, branch: Branch) -> str:
        source = branch.flow.source
        if isinstance(source, Source):
            head = source.shape
        else:
            head = f"{source.shape} of ({' | '.join(self._shape(each) for each in branch.inputs)})"
        stages = [stage for stage in branch.flow.stages if not isinstance(stage, Rowwise)]
        return "; ".join([head, *(stage.shape for stage in stages)])

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
        operators = list(state.operators)
        late: list[pl.DataFrame] = []
        batch, number = self._into(self._root, operators, batches, late, fill)
        for frame in self._onward(self._root, behind, number, batch, operators, late, fill, put):
            yield self._published(frame) if frame.width else nothing
        # Before they leave: those of which nobody asks for a column leave nothing that could be counted.
        count = sum(each.height for each in late)
        state = msgspec.structs.replace(state, operators=tuple(operators), late=state.late + count)
        return state, self._aside(late) if late else []

    def _through(
        self,
        branch: Branch,
        operators: list[OperatorState],
        batches: Sequence[Batch],
        late: list[pl.DataFrame],
        fill: bool,
    ) -> Batch:
        """A batch on its way through a part of the tree; changes the states, and adds the rows that are late."""
        batch, number = self._into(branch, operators, batches, late, fill)
        [frame] = self._onward(branch, 0, number, batch, operators, late, fill, None)
        return msgspec.structs.replace(batch, frame=frame)

    def _into(
        self,
        branch: Branch,
        operators: list[OperatorState],
        batches: Sequence[Batch],
        late: list[pl.DataFrame],
        fill: bool,
    ) -> tuple[Batch, int]:
        """The batch that a part of the tree begins with, and the number of the operator that comes next."""
        number = branch.first
        source = branch.flow.source
        if isinstance(source, Source):
            batch = batches[branch.sources[0]]
            batch = msgspec.structs.replace(batch, frame=self._told_apart(branch, 0, batch.frame))
        else:
            inputs = [
                self._input(number, each, source, operators, batches, late, fill)
                for number, each in enumerate(branch.inputs)
            ]
            inputs = [
                msgspec.structs.replace(batch, frame=ordered(batch.frame))
                if order_of(each.flow) == "settled" and batch.frame.width
                else batch
                for each, batch in zip(branch.inputs, inputs, strict=True)
            ]
            heeded = [batch for number, batch in enumerate(inputs) if source.heeds(number)]
            joint = Batch(
                pl.DataFrame(),
                min(batch.before for batch in heeded),
                min(batch.after for batch in heeded),
                inputs[0].reshaped,
                together([batch.timeline for batch in heeded if batch.timeline is not None]),
            )
            step = self._meet(number, source, operators[number], inputs, joint)
            operators[number] = step.state
            put_aside(step.late, late)
            batch = msgspec.structs.replace(joint, frame=self._filled(branch.flow, step.frame) if fill else step.frame)
            number += 1
        return batch, number

    def _input(
        self,
        number: int,
        branch: Branch,
        meeting: Meeting,
        operators: list[OperatorState],
        batches: Sequence[Batch],
        late: list[pl.DataFrame],
        fill: bool,
    ) -> Batch:
        """What comes to a meeting of one of its inputs."""
        before = list(operators)
        try:
            return self._through(branch, operators, batches, late, fill)
        except UnsupportedExpression:
            batch = batches[branch.sources[0]]
            bare = nothing_of(meeting, number, batch) if isinstance(branch.flow.source, Source) else None
            if bare is None:
                raise
            operators[:] = before
            return msgspec.structs.replace(batch, frame=bare)

    def _onward(
        self,
        branch: Branch,
        behind: int,
        number: int,
        batch: Batch,
        operators: list[OperatorState],
        late: list[pl.DataFrame],
        fill: bool,
        put: Callable[[pl.DataFrame], Aside] | None,
    ) -> Iterator[pl.DataFrame]:
        """What comes of a batch behind so many stages: one frame; or several, given a place to put rows aside."""
        frame = batch.frame
        leaf = isinstance(branch.flow.source, Source)
        stages = branch.flow.stages
        for place, stage in enumerate(stages[behind:], behind + 1):
            if isinstance(stage, Rowwise):
                # A frame without columns is what an operator gives when it has nothing to say.
                frame = self._shaped(stage, frame) if frame.width else frame
                if leaf:
                    frame = self._told_apart(branch, place, frame)
                continue
            came = msgspec.structs.replace(batch, frame=self._narrowed(stage, frame))
            if put is not None and isinstance(stage, Closes) and all(map(takes_pieces, stages[place:])):
                closing = stage.closing(operators[number], came)
                if closing is not None:
                    put_aside(closing.late, late)
                    # No time passes before all of them have come.
                    still = msgspec.structs.replace(batch, after=batch.before)
                    for piece in in_order(closing.results, put):
                        on = msgspec.structs.replace(still, frame=piece)
                        yield from self._onward(branch, place, number + 1, on, operators, late, fill, put)
                    operators[number] = closing.state()
                    end = msgspec.structs.replace(batch, frame=pl.DataFrame())
                    yield from self._onward(branch, place, number + 1, end, operators, late, fill, put)
                    return
            step = self._take(number, stage, operators[number], came)
            operators[number], frame = step.state, step.frame
            if isinstance(stage, TableRows):
                frame = self._told_apart(branch, place, self._filled(stage, frame) if fill else frame)
            put_aside(step.late, late)
            number += 1
        yield frame

    def _take(self, number: int, stage: Operator, state: OperatorState, batch: Batch) -> Step:
        return stage.step(state, batch)

    def _meet(self, number: int, meeting: Meeting, state: OperatorState, inputs: Sequence[Batch], joint: Batch) -> Step:
        return meeting.meet(state, inputs, joint)

    def _told_apart(self, branch: Branch, stage: int, frame: pl.DataFrame) -> pl.DataFrame:
        """Those rows of a source that are for this pipeline, before one of its stages: here all."""
        return frame

    def _aside(self, late: list[pl.DataFrame]) -> list[pl.DataFrame]:
        """Late rows as they leave it."""
        return in_log(late)

    def _filled(self, part: Flow | TableRows, frame: pl.DataFrame) -> pl.DataFrame:
        """What comes out of a meeting or a table's changes, with what is asked for and no row has had yet."""
        if not frame.width:
            return frame
        absent = sorted(self._demand.asked[id(part)] - set(frame.columns) - set(ENVELOPE))
        return frame.with_columns(pl.lit(None).alias(name) for name in absent) if absent else frame

    def _shaped(self, stage: Rowwise, frame: pl.DataFrame) -> pl.DataFrame:
        """What comes of rows by a stage without memory."""
        try:
            return self._applied(stage, frame)
        except UnsupportedExpression:
            # Of several sources one may have had no row yet, so that its columns have no types.
            bare = untyped(stage, frame) if self._tree and not frame.height else None
            if bare is None:
                raise
            return bare

    def _applied(self, stage: Rowwise, frame: pl.DataFrame) -> pl.DataFrame:
        if not isinstance(stage, Filter):
            return stage.apply(frame)
        # What is asked of the condition alone, often text, need not be filtered.
        return self._only(self._demand.after[id(stage)], frame).filter(stage.met(frame))

    def _narrowed(self, stage: Operator, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows for a stage with a memory, without columns that nobody asks for from there on."""
        return self._only(self._demand.before[id(stage)], frame)

    def _only(self, asked: frozenset[str] | None, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows without columns that nobody asks for; late rows leave with all of them."""
        if asked is None or self.flow.late is not None or not asked <= set(frame.columns):
            return frame  # Whoever misses one is told of all that there are.
        return picked(frame, [name for name in frame.columns if name in asked or is_hidden(name)])

    def _published(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows in the order that is promised, whatever the batches, without the hidden columns."""
        if order_of(self.flow) == "settled":
            # A sliding window leaves it to the end, when there may be fewer rows. Rows that went through neither
            # window nor pattern stay in the order of the log.
            frame = ordered(frame)
        return picked(frame, visible(frame))

    def _timed(self, source: Source, rows: pl.DataFrame, high: int) -> tuple[pl.DataFrame, int]:
        """The rows with their time and whether they are late; and the greatest time so far."""
        return timed(source, rows, high, self._asked)
