"""By which columns the rows of a flow can be told apart, so that each process needs only its own.

Every operator with memory looks at rows of one key together. If the keys of all of them have a column in common, whose
values come unchanged from the sources, rows that differ there never meet: they can go through copies of the flow that
know nothing of one another. The columns are looked for from the end of the flow to its beginnings.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ..alerts import Alert
from ..broadcast import Broadcast
from ..calendars import CalendarWindows
from ..captured import TableRows
from ..columns import key_column
from ..counted import CountWindows
from ..distinct import Distinct, Top
from ..enriching import Enriched
from ..entering import Entering
from ..errors import FlowError
from ..fold import Fold
from ..joins import Join
from ..latest import Latest
from ..match import Match
from ..merging import Merge
from ..overtaking import Overtaking
from ..processing import Processed
from ..revising import RevisingWindows
from ..sequences import Sequences
from ..sessions import SessionWindows
from ..shaping import Mapped, Rowwise, Select, WithColumns
from ..steps import Branch
from ..trailing import SlidingWindows
from ..tree import Source
from ..windows import PaneWindows

if TYPE_CHECKING:
    from ..flow import Flow, Stage

_NAMED: dict[type, str] = {
    PaneWindows: "a window",
    RevisingWindows: "a window",
    SessionWindows: "a session window",
    CountWindows: "a count window",
    CalendarWindows: "a calendar window",
    SlidingWindows: "a sliding window",
    Match: "a pattern",
}
"""Operators whose state has the key columns by their own names, and what they are called."""
_MARKED: dict[type, str] = {
    Distinct: "distinct",
    Fold: "a fold",
    Latest: "latest",
    Processed: "a process function",
    Sequences: "a pattern",
    TableRows: "a captured table",
}
"""Those whose state has them as hidden key columns."""

_HINT = "Run it with processes=1"


class Cut(msgspec.Struct, frozen=True):
    """Where the rows of a source are told apart.

    Attributes:
        stage: Before which of its stages; behind what opens a table's changes, if it is one.
        columns: By which columns; none where each process takes a stretch of every batch.
    """

    stage: int
    columns: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True):
    """How a flow is shared.

    Attributes:
        by: The columns, as the last operator calls them; none where no operator has a memory.
        cuts: For each source, from left to right as they stand in the flow.
        held: For each operator, the columns of its state that tell whose a row is.
    """

    by: tuple[str, ...]
    cuts: tuple[Cut, ...]
    held: dict[int, tuple[str, ...]]


def plan_of(root: Branch) -> Plan:
    """How the flow with this root is shared.

    Raises:
        FlowError: It cannot be: an operator needs rows of all keys together, or is not known here.
    """
    if _ends_merged(root.flow):
        what = "it gives the rows of merged flows in their order of time, whatever their keys"
        raise FlowError(f"the flow cannot be shared: {what}", hint=_HINT)
    lost: dict[int, str] = {}
    while True:
        found = _Tracing(frozenset(lost))
        found.follow(root, None, ())
        if not found.lost:
            if root.flow.late is not None:
                _check_late(found)
            return Plan(found.by, tuple(found.cuts), found.held)
        lost |= found.lost
        if len(lost) == found.count:
            raise FlowError(f"the flow cannot be shared: {next(iter(found.lost.values()))}", hint=_HINT)


class _Tracing:
    """The columns that tell rows apart, on their way back through the tree; those that get lost are noted."""

    def __init__(self, without: frozenset[int]) -> None:
        self._without = without
        self.by: tuple[str, ...] = ()
        self.count = 0
        self.lost: dict[int, str] = {}
        self.cuts: list[Cut] = []
        self.leaves: list[tuple[Source, tuple[Stage, ...]]] = []
        """Of each cut, the source and the stages before it."""
        self.held: dict[int, tuple[str, ...]] = {}

    def follow(self, branch: Branch, wanted: dict[int, str] | None, waiting: tuple[int, ...]) -> None:
        """Trace columns through a part of the tree.

        Args:
            branch: The part.
            wanted: What the columns are called where its rows leave it; None while no operator has named any.
            waiting: The alerts behind it, whose keys are those of the operator before them.
        """
        flow = branch.flow
        meets = not isinstance(flow.source, Source)
        number = branch.first + int(meets) + sum(not isinstance(stage, Rowwise) for stage in flow.stages)
        before: dict[int, dict[int, str]] = {len(flow.stages): dict(wanted or {})}
        made = asked = 0
        for place in range(len(flow.stages) - 1, -1, -1):
            stage = flow.stages[place]
            if isinstance(stage, Rowwise):
                asked = place + 1 if isinstance(stage, Enriched) else asked
                fresh = self._through(stage, wanted or {})
                if fresh:
                    made = max(made, place + 1)
                    if meets or any(not isinstance(each, Rowwise) for each in flow.stages[:place]):
                        self._lose(fresh, "is made after rows of several keys may have met")
            else:
                number -= 1
                wanted, waiting = self._across(stage, number, wanted, waiting)
                # The rows of a table are in its changes: each process opens all of them, and goes on with its own.
                made, asked = place + 1 if isinstance(stage, TableRows) else 0, 0
            before[place] = dict(wanted or {})
        if isinstance(flow.source, Source):
            if 0 < asked <= made:
                why = "enrich would ask for all rows from every process: what tells them apart is computed behind it"
                raise FlowError(f"the flow cannot be shared: {why}", hint=_HINT)
            self.cuts.append(Cut(made, tuple(before[made].values())))
            self.leaves.append((flow.source, flow.stages[:made]))
        elif isinstance(flow.source, Join):
            wanted, _ = self._named(flow.source.on, "a join", number - 1, wanted, waiting, hidden=False)
            for inner in branch.inputs:
                self.follow(inner, dict(wanted), ())
        elif isinstance(flow.source, Merge) and wanted is None and _is_plain(flow):
            for inner in branch.inputs:
                self.follow(inner, None, ())
        elif isinstance(flow.source, Merge) and wanted is not None:
            self.held[number - 1] = tuple(wanted.values())
            for inner in branch.inputs:
                self.follow(inner, dict(wanted), waiting)
        else:
            what = "merged flows whose rows no operator takes by key afterwards"
            raise FlowError(f"the flow cannot be shared: it ends with {what}", hint=_HINT)

    def _through(self, stage: Rowwise, wanted: dict[int, str]) -> list[int]:
        """Take columns back through a stage without memory; those that it computes are given back."""
        if isinstance(stage, Mapped):
            return [slot for slot, name in wanted.items() if name in stage.outputs]
        if not isinstance(stage, Select | WithColumns):
            return []
        fresh = []
        for slot, name in list(wanted.items()):
            origin = _origin(stage.expressions, name, kept=isinstance(stage, WithColumns))
            if origin is None:
                fresh.append(slot)
            else:
                wanted[slot] = origin
        return fresh

    def _across(
        self, stage: Stage, number: int, wanted: dict[int, str] | None, waiting: tuple[int, ...]
    ) -> tuple[dict[int, str] | None, tuple[int, ...]]:
        """Take columns back through an operator."""
        if isinstance(stage, Alert | Entering):
            if stage.keys:
                return wanted, (*waiting, number)
            raise FlowError("the flow cannot be shared: an alert is about all rows together", hint=_HINT)
        if isinstance(stage, Overtaking):
            what = "enrich(ordered=False) gives rows as their answers come, in one process"
            raise FlowError(f"the flow cannot be shared: {what}", hint=_HINT)
        if isinstance(stage, Top):
            return self._best(stage, wanted), waiting
        if isinstance(stage, Fold) and wanted is not None:
            self._lose([slot for slot, name in wanted.items() if name in stage.outputs], "is made by a fold")
        kind: type = type(stage)
        for names, hidden in ((_NAMED, False), (_MARKED, True)):
            if kind in names:
                keys: tuple[str, ...] = stage.keys  # type: ignore[union-attr]
                return self._named(keys, names[kind], number, wanted, waiting, hidden=hidden)
        raise FlowError(
            f"the flow cannot be shared: {type(stage).__name__} is not known to keep apart what differs by key",
            hint=_HINT,
        )

    def _best(self, stage: Top, wanted: dict[int, str] | None) -> dict[int, str]:
        """Take columns back through ``top``, which looks at rows together that agree in those of ``per=``."""
        if not stage.per:
            raise FlowError("the flow cannot be shared: top is about all rows of a window together", hint=_HINT)
        return self._kept(stage.per, f"is none of those that top has per={', '.join(stage.per)}", wanted)

    def _kept(self, keys: Sequence[str], why: str, wanted: dict[int, str] | None) -> dict[int, str]:
        """Those columns that are among some; where none was named yet, these."""
        if wanted is None:
            self.count = len(keys)
            wanted = {slot: key for slot, key in enumerate(keys) if slot not in self._without}
            self.by = tuple(wanted.values())
        self._lose([slot for slot, name in wanted.items() if name not in keys], why)
        return {slot: name for slot, name in wanted.items() if name in keys}

    def _named(
        self,
        keys: Sequence[str],
        what: str,
        number: int,
        wanted: dict[int, str] | None,
        waiting: tuple[int, ...],
        *,
        hidden: bool,
    ) -> tuple[dict[int, str], tuple[int, ...]]:
        if not keys:
            raise FlowError(f"the flow cannot be shared: {what} is about all rows together", hint=_HINT)
        wanted = self._kept(keys, f"is no key of {what} by {', '.join(keys)}", wanted)
        marks = tuple(key_column(list(keys).index(name)) for name in wanted.values())
        self.held[number] = marks if hidden else tuple(wanted.values())
        self.held |= dict.fromkeys(waiting, marks)
        return wanted, ()

    def _lose(self, slots: Sequence[int], why: str) -> None:
        for slot in slots:
            self.lost.setdefault(slot, f"what tells its rows apart {why}")


def _check_late(found: _Tracing) -> None:
    """Refuse a flow whose late rows would be in no order: those that one event has become, in several processes.

    Raises:
        FlowError: It is one.
    """
    ways = list(zip(found.leaves, found.cuts, strict=True))
    for ((source, stages), cut), ((other, others), beside) in combinations(ways, 2):
        alike = cut == beside and all(map(operator.is_, stages, others))
        if not alike and source.overlaps(other):
            raise FlowError(
                f"the flow cannot be shared: late rows are kept, and those of {source.stream!r} come in two ways, "
                "which are told apart by different columns",
                hint=f"{_HINT}, or without late_to(...)",
            )


def _is_plain(flow: Flow) -> bool:
    """Whether nothing of it has a memory, and its rows are in the order of the log."""
    source = flow.source
    if not all(isinstance(stage, Rowwise) for stage in flow.stages):
        return False
    return isinstance(source, Source) or (
        isinstance(source, Merge) and not source.timed and all(map(_is_plain, source.inputs))
    )


def _ends_merged(flow: Flow) -> bool:
    """Whether rows leave a flow as a merge in order of time has put them, which goes by more than their keys."""
    if not all(isinstance(stage, Rowwise | Alert | Entering) for stage in flow.stages):
        return False
    source = flow.source
    if isinstance(source, Broadcast):
        return _ends_merged(source.inputs[0])
    return isinstance(source, Merge) and source.timed


def _origin(expressions: Sequence[pl.Expr], name: str, *, kept: bool) -> str | None:
    """The column that comes out under a name, unchanged; None if it is computed."""
    many = [each for each in expressions if each.meta.has_multiple_outputs()]
    for expression in expressions:
        if not expression.meta.has_multiple_outputs() and expression.meta.output_name() == name:
            plain = expression.meta.undo_aliases()
            roots = plain.meta.root_names()
            return roots[0] if len(roots) == 1 and plain.meta.eq(pl.col(roots[0])) else None
    if many:
        return name if all(each.meta.eq(pl.all()) for each in many) else None
    return name if kept else None
