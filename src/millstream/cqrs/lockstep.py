"""Projections that look others up: these are carried along, event by event, so that a replay gives the same."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from ..errors import UsageError
from ..log import Log
from ..log.handlers import InvalidHandler
from ..log.present import together
from ..log.records import Recorded, Run
from ..log.singles import Singles
from ..storage.database import Database
from ..storage.inline import TABLE as COMMITS
from ..storage.watching import Watch
from .applying import Bound
from .batches import cut
from .pieces import Batch, Piece, apply_all
from .projection import ROWS, Placement, Projection


class Lockstep(Placement):
    """A projection with those that it reads, in one database, under one checkpoint.

    Each event is applied to all of them before the next one comes, to those that are read first. So what a handler
    looks up is as of its event, whenever that is: live, in a rebuild, in a replay of the past.
    """

    def _bind(self) -> dict[str, Bound]:
        own = self.projection._alone()
        if any(bound.batch for bound in own._bound.values()) and not own.folds:
            raise InvalidHandler(
                self.projection.__qualname__,
                "it reads other read models, which are as of each event, and takes events by the frame",
                hint="Write its handlers with @ms.on",
            )
        self._parts = [each._alone() for each in carried(self.projection)] + [own]
        return {
            type: Bound(_together, bound.event, False, "")
            for part in self._parts
            for type, bound in part._bound.items()
        }

    @property
    def events(self) -> list[type[Any]]:
        """The classes of the events that it and what it reads handle."""
        return [event for part in self._parts for event in part.events]

    @property
    def schema(self) -> str:
        """The SQL that makes all their tables."""
        return ";\n".join(part.projection.schema for part in self._parts)

    @property
    def performs(self) -> bool:
        """Whether its own handlers have effects; those of what it carries along have none here."""
        return self._parts[-1].performs

    @property
    def notes(self) -> bool:
        """Whether there are handlers that add effects."""
        return any(part.notes for part in self._parts)

    def _of(self, run: Run) -> Iterator[Piece | Batch]:
        if run.type not in self._bound:
            yield from super()._of(run)
            return
        parts = [_one_by_one(part, run) for part in self._parts if run.type in part._bound]
        for pieces in zip(*parts, strict=True):
            yield Piece(pieces[0].position, run.type, apply_all, list(pieces), None, run)


_NONE = (1 << 62, 1 << 62)
"""No commit: behind all that there are."""


class Together(Lockstep):
    """Inline projections of one app as they stood, together: their tables may refer to each other, and their handlers
    look into each other's, so that none could be replayed alone.

    Of a commit of several events each has all before the next one has any, as in the commit itself.

    Attributes:
        projections: Their classes, in the order of the app.
    """

    def __init__(self, log: Log, placements: Sequence[Placement]) -> None:
        self._log = log
        self.projections = list(
            dict.fromkeys(cls for each in placements for cls in (*carried(each.projection), each.projection))
        )
        super().__init__(type("inline", (Projection,), {"name": "+".join(each.name for each in placements)}))

    def _bind(self) -> dict[str, Bound]:
        self._parts = [each._alone() for each in self.projections]
        return {
            type: Bound(_together, bound.event, False, "")
            for part in self._parts
            for type, bound in part._bound.items()
        }

    def pieces(
        self, pages: Iterable[Sequence[Run] | Singles], *, rows: int = ROWS, apart: Collection[str] = ()
    ) -> Iterator[Piece | Batch]:
        """The events of runs; those of one commit in one piece."""
        held: list[Run] = []
        of = _NONE
        for page in pages:
            commits = iter(self._commits(page[0].position, page[-1].last) if page else ())
            ahead = next(commits, _NONE)
            for found in together(page):
                run = found[0]
                while ahead[1] < run.position:
                    ahead = next(commits, _NONE)
                commit = ahead if ahead[0] <= run.position else _NONE
                if held and commit != of:
                    yield _Commit.of(self._parts, held)
                    held = []
                if commit is not _NONE and all(each.type in self._bound for each in found):
                    held, of = held + found, commit
                else:
                    yield from super().pieces([found], rows=rows, apart=apart)
        if held:
            yield _Commit.of(self._parts, held)

    def is_within(self, position: int) -> bool:
        """Whether a position lies within a commit: what stands there was never to be seen, nor is it gone on from."""
        return any(position < last for _, last in self._commits(position, position))

    def _commits(self, first: int, last: int) -> list[tuple[int, int]]:
        """The commits of several events that lie in a stretch of the log, or reach into it."""
        with self._log.connect() as db:
            if not db.has_table(COMMITS):
                return []
            rows = db.query(
                f"select first, last from {db.own(COMMITS)} where first <= ? and last >= ? order by first",
                (last, first),
            )
        return [(row["first"], row["last"]) for row in rows]


class _Commit(Piece):
    """The events of one commit."""

    end: int = 0

    @property
    def last(self) -> int:
        """The position of its last event."""
        return self.end

    @classmethod
    def of(cls, parts: Sequence[Placement], runs: list[Run]) -> _Commit:
        """What applies the events of runs, to one projection after the other."""
        wanted = ((part, [run for run in runs if run.type in part._bound]) for part in parts)
        pieces = [piece for part, some in wanted if some for piece in part.pieces([some])]
        return cls(runs[0].position, runs[0].type, apply_all, pieces, None, runs[0], runs[-1].last)


def _one_by_one(part: Placement, run: Run) -> Iterator[Piece | Batch]:
    if part._bound[run.type].batch:
        return (part.batch([each]) for each in cut(run, 1))
    return part._of(run)


def _together(event: Any, db: Database, recorded: Recorded | None) -> object:
    raise AssertionError("an event is applied part by part")


def carried(projection: type[Projection]) -> list[type[Projection]]:
    """The projections that one reads, and those that these read: each once, behind what it reads itself.

    Raises:
        UsageError: Two of them read each other, or it names what is no projection.
    """
    found: list[type[Projection]] = []

    def visit(each: type[Projection], under: tuple[type[Projection], ...]) -> None:
        if isinstance(each.reads, str | type):
            raise UsageError(f"{each.__name__}.reads is no list", hint="Write reads = [Customers]")
        for read in each.reads:
            if not (isinstance(read, type) and issubclass(read, Projection)):
                raise UsageError(
                    f"{each.__name__}.reads names {read!r:.60}, which is no projection",
                    hint="Write reads = [Customers]",
                )
            if read is each or read in under:
                raise UsageError(
                    f"{each.__name__} and {read.__name__} read each other: neither could be first",
                    hint="Move what both need into a third one",
                )
            visit(read, (*under, each))
            if read not in found:
                found.append(read)

    visit(projection, ())
    return found


_BESIDE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
_CREATES = re.compile(
    r'\bcreate\s+(?:or\s+replace\s+)?(?:unlogged\s+)?table\s+(?:if\s+not\s+exists\s+)?("(?:[^"]|"")+"|\w+)'
    r"(?!\s*\.)",
    re.IGNORECASE,
)


def tables_in(schema: str) -> list[str]:
    """The names of the tables that a schema makes, by its text."""
    return [
        found[1][1:-1].replace('""', '"') if found[1].startswith('"') else found[1]
        for found in _CREATES.finditer(_BESIDE.sub(" ", schema))
    ]


def watched(db: Database, placement: Placement) -> Database:
    """A connection as the handlers of a projection are to use it."""
    return db if placement.watch is None else db.watched(placement.watch)


def _watch(name: str, others: dict[str, str]) -> Watch:
    """Of the tables that others keep, by their names: at a pace of their own, another one in each replay."""

    def refusal(table: str) -> UsageError:
        return UsageError(
            f"projection {name!r} uses the table {table!r} of {others[table]!r}, whose pace is"
            " another one: a replay would not give the same",
            hint=f"Declare it, reads = [{others[table]}], and it is carried along",
        )

    return Watch(others, refusal)


def keep_apart(placements: Iterable[Placement]) -> None:
    """Tell projections which tables beside theirs are not to be used.

    Raises:
        UsageError: A projection would be kept twice in one database: by itself, and by one that reads it.
    """
    homes: dict[str | None, list[Placement]] = {}
    for each in placements:
        if each.path == ":memory:":
            each.watch = _watch(each.name, {})
        else:
            local = each.path is not None and "://" not in each.path
            homes.setdefault(os.path.realpath(each.path or "") if local else each.path, []).append(each)
    for beside in homes.values():
        kept: dict[type[Projection], Placement] = {}
        for each in beside:
            for cls in (*carried(each.projection), each.projection):
                first = kept.setdefault(cls, each)
                if first is not each:
                    raise UsageError(
                        f"{cls.__name__} would be kept twice in one database, by {first.name} and by {each.name}",
                        hint="Leave it out of the app: queries find it with what reads it; or give one of the two"
                        " a file of its own",
                    )
        tables = {table.lower(): each for each in beside for table in tables_in(each.schema)}
        for each in beside:
            # What is kept in the appending commits has one pace, and may look into each other's tables.
            others = {} if each.inline else {table: other.name for table, other in tables.items() if other is not each}
            each.watch = _watch(each.name, others)
