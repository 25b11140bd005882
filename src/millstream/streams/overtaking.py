"""Columns that come from elsewhere, in whatever order the answers do: a slow answer holds up its own row alone.

Rows that wait for an answer are state: a flow that was stopped asks for them again. What follows takes each row for
itself, for their times are no longer in an order that a watermark could speak of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from .columns import END_OF_TIME, need, shown, visible
from .enriching import Answer, Enriched, soon
from .errors import FlowError
from .shaping import Rowwise
from .state import Batch, OperatorState, Parts, Step, concat

if TYPE_CHECKING:
    from .flow import Flow
    from .steps import FlowState

_NUMBER = "__asked"
"""The number under which a row waits."""

_PATIENCE = 0.05
"""Seconds that a step without new rows waits for an answer."""


class Asker:
    """Asks for rows, so many at a time."""

    def __init__(self, stage: Enriched) -> None:
        self._stage = stage
        self._turn = asyncio.Semaphore(stage.concurrency)
        self._waiting: dict[Any, asyncio.Future[Answer]] = {}

    def ask(self, row: dict[str, Any]) -> Future[Answer]:
        """Ask for a row."""
        return soon(self._ask(row))

    async def _ask(self, row: dict[str, Any]) -> Answer:
        async with self._turn:
            return await self._stage.answer(row, self._waiting)


class OvertakingState(msgspec.Struct, frozen=True, eq=False):
    """Rows without an answer, and, in memory alone, what has been asked for them."""

    asker: Asker
    parts: Parts = Parts()
    asked: dict[int, Future[Answer]] = {}
    next: int = 0

    def is_answered(self, patience: float = _PATIENCE) -> bool:
        """Whether there is an answer for any row; waits a moment for one."""
        return bool(wait(self.asked.values(), patience, FIRST_COMPLETED).done)


class Overtaking(msgspec.Struct, frozen=True, eq=False):
    """The operator of ``enrich(ordered=False)``."""

    stage: Enriched

    @property
    def reads(self) -> set[str]:
        """The columns that it reads by name."""
        return self.stage.reads

    @property
    def asks(self) -> tuple[str, ...] | None:
        """The columns that the function is shown; None for all."""
        return self.stage.asks

    @property
    def outputs(self) -> list[str]:
        """The columns that it gives."""
        return self.stage.outputs

    @property
    def shape(self) -> str:
        return f"enrich {self.outputs} in any order"

    def start(self) -> OvertakingState:
        return OvertakingState(Asker(self.stage))

    def restore(self, parts: Parts, watermark: int) -> OvertakingState:
        state = msgspec.structs.replace(self.start(), parts=parts)
        if not parts.items:
            return state
        rows = concat(part.frame for part in parts.items)
        return self._asking(state, rows)

    def _asking(self, state: OvertakingState, rows: pl.DataFrame) -> OvertakingState:
        """With rows asked for, under their numbers."""
        plain = shown(rows, self.asks)
        asked = {number: state.asker.ask(row) for number, row in zip(rows[_NUMBER], plain, strict=True)}
        following = max([state.next, *(number + 1 for number in asked)])
        return msgspec.structs.replace(state, asked={**state.asked, **asked}, next=following)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, OvertakingState)
        rows = batch.frame
        if rows.width:
            need(self.asks or (), rows.columns, "enrich", visible(rows))
            numbers = pl.int_range(state.next, state.next + rows.height, dtype=pl.Int64).alias(_NUMBER)
            rows = rows.with_columns(numbers)
        if batch.reshaped:
            parts = state.parts.reshaped(rows, lambda held: held) if state.parts.items else state.parts
            return Step(msgspec.structs.replace(state, parts=parts), self._answered(rows, []))
        waiting = concat([*(part.frame for part in state.parts.items), rows]) if state.parts.items else rows
        if rows.height:
            state = self._asking(state, rows)
        if not state.asked:
            return Step(state, pl.DataFrame())
        self._wait(state, final=batch.after >= END_OF_TIME)
        done = {number: future.result() for number, future in state.asked.items() if future.done()}
        if not done and not rows.height:
            return Step(state, pl.DataFrame())
        answered = waiting.filter(pl.col(_NUMBER).is_in(list(done)))
        waiting = waiting.filter(~pl.col(_NUMBER).is_in(list(done)))
        given = self._answered(answered, [done[number] for number in answered[_NUMBER]])
        parts = Parts((), state.parts.next)
        parts = parts.add(waiting, END_OF_TIME, END_OF_TIME) if waiting.height else parts
        asked = {number: future for number, future in state.asked.items() if number not in done}
        return Step(msgspec.structs.replace(state, parts=parts, asked=asked), given)

    def _wait(self, state: OvertakingState, *, final: bool) -> None:
        """Wait until no more rows are without an answer than may be asked for at a time; at the end, until none is."""
        most = 0 if final else self.stage.concurrency
        open = {future for future in state.asked.values() if not future.done()}
        while len(open) > most:
            _, open = wait(open, return_when=FIRST_COMPLETED)

    def _answered(self, rows: pl.DataFrame, answers: Sequence[Answer]) -> pl.DataFrame:
        """Rows with their answers."""
        made = self.stage.columns_of(answers, rows)
        return rows.drop(_NUMBER).with_columns(made.get_columns())


def asks(flow: Flow) -> bool:
    """Whether a flow, or one that it begins with, asks elsewhere."""
    inputs = getattr(flow.source, "inputs", ())
    return any(isinstance(stage, Enriched | Overtaking) for stage in flow.stages) or any(map(asks, inputs))


def waits(state: FlowState) -> bool:
    """Whether a row waits for an answer."""
    return any(isinstance(each, OvertakingState) and each.asked for each in state.operators)


def answered(state: FlowState) -> bool | None:
    """Whether there is an answer for a row that waits for one; None when no row does. Waits for a moment."""
    asking = [each for each in state.operators if isinstance(each, OvertakingState) and each.asked]
    return any(each.is_answered() for each in asking) if asking else None


def check_after(stages: Sequence[object], stage: object | None = None) -> None:
    """Refuse to go by the time or order of rows that have overtaken one another.

    Raises:
        FlowError: A stage that follows would; without one, rows of several flows would meet.
    """
    if not any(isinstance(each, Overtaking) for each in stages) or isinstance(stage, Rowwise):
        return
    what = "rows that meet other flows" if stage is None else type(stage).__name__.lower()
    raise FlowError(
        f"{what} after enrich(ordered=False), whose rows come in no order of time",
        hint="Put the enrichment last, or leave out ordered=False",
    )
