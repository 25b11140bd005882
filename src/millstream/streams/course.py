"""The tree of a flow's operators, and the way of a batch through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
import polars as pl

from .aside import Aside
from .captured import TableRows
from .closing import Closes, in_order, take_pieces
from .columns import ENVELOPE, is_hidden, ordered, picked, visible
from .errors import UnsupportedExpression
from .flow import Flow
from .late import put_aside
from .needs import Demand
from .shaping import Filter, Rowwise
from .state import Batch, Operator, OperatorState, Step
from .steps import Branch
from .tree import Meeting, Source, order_of, sources_of, together
from .untyped import nothing_of, untyped


class Passing(msgspec.Struct, frozen=True, eq=False):
    """What batches change on their way through the tree."""

    operators: list[OperatorState]
    """Their states, each after the last batch that it took."""
    fill: bool
    """Whether columns that no row has had yet are there as nulls."""
    late: list[pl.DataFrame] = []
    """The rows that came late to an operator are added to these."""


class Course:
    """The stages of a flow and of those that meet in it, in their places. It remembers nothing of the rows."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.sources = sources_of(flow)
        self.operators: list[Operator | Meeting] = []
        """In the order of the tree: those of the inputs of a meeting, the meeting, what follows it."""
        self._reach: list[tuple[int, ...]] = []
        """For each operator, the sources that its watermark is of."""
        self._root = self._grow(flow)
        self._tree = bool(self._root.inputs)
        self._demand = Demand(flow)

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

    def _through(self, branch: Branch, batches: Sequence[Batch], passing: Passing) -> Batch:
        """A batch on its way through a part of the tree."""
        batch, number = self._into(branch, batches, passing)
        [frame] = self._onward(branch, 0, number, batch, passing, None)
        return msgspec.structs.replace(batch, frame=frame)

    def _into(self, branch: Branch, batches: Sequence[Batch], passing: Passing) -> tuple[Batch, int]:
        """The batch that a part of the tree begins with, and the number of the operator that comes next."""
        number = branch.first
        source = branch.flow.source
        if isinstance(source, Source):
            batch = batches[branch.sources[0]]
            batch = msgspec.structs.replace(batch, frame=self._told_apart(branch, 0, batch.frame))
        else:
            inputs = [self._input(number, each, source, batches, passing) for number, each in enumerate(branch.inputs)]
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
            step = self._meet(number, source, passing.operators[number], inputs, joint)
            passing.operators[number] = step.state
            put_aside(step.late, passing.late)
            frame = self._filled(branch.flow, step.frame) if passing.fill else step.frame
            batch = msgspec.structs.replace(joint, frame=frame)
            number += 1
        return batch, number

    def _input(
        self, number: int, branch: Branch, meeting: Meeting, batches: Sequence[Batch], passing: Passing
    ) -> Batch:
        """What comes to a meeting of one of its inputs."""
        before = list(passing.operators)
        try:
            return self._through(branch, batches, passing)
        except UnsupportedExpression:
            batch = batches[branch.sources[0]]
            bare = nothing_of(meeting, number, batch) if isinstance(branch.flow.source, Source) else None
            if bare is None:
                raise
            passing.operators[:] = before
            return msgspec.structs.replace(batch, frame=bare)

    def _onward(
        self,
        branch: Branch,
        behind: int,
        number: int,
        batch: Batch,
        passing: Passing,
        put: Callable[[pl.DataFrame], Aside] | None,
    ) -> Iterator[pl.DataFrame]:
        """What comes of a batch behind so many stages: one frame; or several, given a place to put rows aside."""
        frame, operators = batch.frame, passing.operators
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
            if put is not None and isinstance(stage, Closes) and take_pieces(stages[place:]):
                closing = stage.closing(operators[number], came)
                if closing is not None:
                    put_aside(closing.late, passing.late)
                    # No time passes before all of them have come.
                    still = msgspec.structs.replace(batch, after=batch.before, more=True)
                    for piece in in_order(closing.results, put):
                        on = msgspec.structs.replace(still, frame=piece)
                        yield from self._onward(branch, place, number + 1, on, passing, put)
                    operators[number] = closing.state()
                    end = msgspec.structs.replace(batch, frame=pl.DataFrame())
                    yield from self._onward(branch, place, number + 1, end, passing, put)
                    return
            step = self._take(number, stage, operators[number], came)
            operators[number], frame = step.state, step.frame
            if isinstance(stage, TableRows):
                frame = self._told_apart(branch, place, self._filled(stage, frame) if passing.fill else frame)
            put_aside(step.late, passing.late)
            number += 1
        yield frame

    def _take(self, number: int, stage: Operator, state: OperatorState, batch: Batch) -> Step:
        return stage.step(state, batch)

    def _meet(self, number: int, meeting: Meeting, state: OperatorState, inputs: Sequence[Batch], joint: Batch) -> Step:
        return meeting.meet(state, inputs, joint)

    def _told_apart(self, branch: Branch, stage: int, frame: pl.DataFrame) -> pl.DataFrame:
        """Those rows of a source that are for this pipeline, before one of its stages: here all."""
        return frame

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
