"""Runs as they are read today: what was stored under an older name or shape is given in the present one.

A kind (category, type, schema) is looked at once; most need nothing, and their runs pass through untouched. Those of
the others are replaced by `Presented` runs, whose type and data are today's, so that nothing further up needs to know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .records import Run

if TYPE_CHECKING:
    from .reading import Reader

Plan = Callable[[Run], list[Run]]
"""What becomes of a run of a kind: the runs to be read in its place, in order."""


def present(reader: Reader, runs: list[Run]) -> list[Run]:
    """The runs as they are to be read today; the very same list where none of them needs a change."""
    plans = {kind: plan for kind in {run.kind_id for run in runs} if (plan := plan_of(reader, kind)) is not None}
    if not plans:
        return runs
    shown: list[Run] = []
    for run in runs:
        plan = plans.get(run.kind_id)
        if plan is None:
            shown.append(run)
        else:
            shown.extend(plan(run))
    return shown


def plan_of(reader: Reader, kind: int) -> Plan | None:
    """How runs of a kind are to be changed; None: not at all. Cached by the reader, until a class is defined."""
    return None


class Presented(Run, eq=False):
    """A run, or a part of one, whose type and data are given as they are today."""

    shown_type: str = ""
    shown_schema: str = "1"
    shown: list[bytes] = []
    """The data of each event, as JSON objects."""

    @property
    def type(self) -> str:
        return self.shown_type

    @property
    def schema(self) -> str:
        return self.shown_schema

    def lines(self) -> list[bytes]:
        return self.shown

    def _text(self) -> bytes:
        return b"\n".join(self.shown)

    def cut(self, after: int, until: int) -> Run | None:
        part = super().cut(after, until)
        if part is not None and part is not self:
            start = part.position - self.position
            part.shown = self.shown[start : start + part.count]  # type: ignore[attr-defined]
        return part


def presented(run: Run, type: str, schema: str, lines: list[bytes], offset: int = 0) -> Presented:
    """Events of a run from an offset on, with another type or other data.

    Args:
        lines: The data of as many events as the new run is to hold.
        offset: Which event of the run is the first.
    """
    return Presented(
        run.log,
        run.position + offset,
        run.stream_id,
        run.version + offset,
        run.kind_id,
        run.recorded,
        None,
        run.raw_metadata,
        len(lines),
        run.effective,
        base=run.base or run.position,
        shown_type=type,
        shown_schema=schema,
        shown=lines,
    )
