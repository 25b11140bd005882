"""Projections that look others up: these are carried along, event by event, so that a replay gives the same."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from ..errors import DatabaseError, UsageError
from ..log.handlers import InvalidHandler
from ..log.records import Recorded, Run
from ..storage.database import Database
from ..storage.sqlite.database import statements
from .applying import Bound
from .batches import cut
from .pieces import Batch, Piece, apply_all
from .projection import Placement, Projection


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


class Together(Lockstep):
    """Inline projections of one app as they stood: each event is applied to all of them before the next one comes.

    Their tables may refer to each other, and their handlers look into each other's: none could be replayed alone. Which
    events shared a commit, in which each of them had all before the next had any, the log does not say.

    Attributes:
        projections: Their classes, in the order of the app.
    """

    def __init__(self, placements: Sequence[Placement]) -> None:
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


_LOOKS = re.compile(
    r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|\b(?:from|join|into|update|table)\s+(?:only\s+|if\s+exists\s+)?(?:(\w+)|\"((?:[^\"]|\"\")+)\")",
    re.DOTALL | re.IGNORECASE,
)


_AHEAD = re.compile(r"(?:[\s;\ufeff]|--[^\n]*|/\*.*?\*/)*", re.DOTALL)
"""What may stand before a statement."""
_BARE = re.compile(
    r"(?:explain|pragma|attach|detach|vacuum|begin|commit|end|rollback|savepoint|release)\b|\Z", re.IGNORECASE
)
"""What begins a statement that has nothing to do with tables, or that SQLite cannot be asked about beforehand."""
_TOUCHES = {"OpenRead": (3, 4), "OpenWrite": (3, 4), "Clear": (2, 3), "Destroy": (2, 4)}
"""The steps in which SQLite takes up a table: where each says at which page that begins, and in which database."""


def watched(db: Database, placement: Placement) -> Database:
    """A connection as the handlers of a projection are to use it."""
    return _Watched(db, placement.name, placement.others) if placement.others else db


def keep_apart(placements: Iterable[Placement]) -> None:
    """Tell projections which tables beside theirs are not to be used.

    Raises:
        UsageError: A projection would be kept twice in one database: by itself, and by one that reads it.
    """
    homes: dict[str | None, list[Placement]] = {}
    for each in placements:
        if each.path != ":memory:":
            local = each.path is not None and "://" not in each.path
            homes.setdefault(os.path.realpath(each.path or "") if local else each.path, []).append(each)
    for together in homes.values():
        kept: dict[type[Projection], Placement] = {}
        for each in together:
            for cls in (*carried(each.projection), each.projection):
                first = kept.setdefault(cls, each)
                if first is not each:
                    raise UsageError(
                        f"{cls.__name__} would be kept twice in one database, by {first.name} and by {each.name}",
                        hint="Leave it out of the app: queries find it with what reads it; or give one of the two"
                        " a file of its own",
                    )
        tables = {table.lower(): each for each in together for table in tables_in(each.schema)}
        for each in together:
            if not each.inline:
                each.others = {table: other.name for table, other in tables.items() if other is not each}


_asked = itertools.count()


class _Watched(Database):
    """A connection that refuses statements on the tables of read models that were not declared to be read.

    They are kept at a pace of their own: what is found in them when an event comes is another thing in each replay.

    Args:
        db: The connection.
        name: The projection's name.
        others: The tables that are not to be seen: whose they are.
    """

    def __init__(self, db: Database, name: str, others: dict[str, str]) -> None:
        self._db = db
        self._name = name
        self._others = others
        self._known: set[str] = set()
        self._roots: dict[int, str] | None = None
        """The tables of a SQLite file, and of their indexes, by where they begin."""
        self.dialect = db.dialect  # type: ignore[misc]
        self.blob = db.blob  # type: ignore[misc]

    def _check(self, sql: str, params: Any = None) -> None:
        if sql in self._known:
            return
        used = [(plain or quoted.replace('""', '"')).lower() for plain, quoted in _LOOKS.findall(sql)]
        if self.dialect == "sqlite" and params is not None:
            used += self._opened(sql, params)
        for table in used:
            if table in self._others:
                raise UsageError(
                    f"projection {self._name!r} uses the table {table!r} of {self._others[table]!r}, whose pace is"
                    " another one: a replay would not give the same",
                    hint=f"Declare it, reads = [{self._others[table]}], and it is carried along",
                )
        if len(self._known) < 1_000:
            self._known.add(sql)

    def _opened(self, sql: str, params: Any) -> list[str]:
        """The tables that SQLite opens for a statement, however it names them: through views, lists, other quotes."""
        ahead = _AHEAD.match(sql)
        bare = sql[ahead.end() :] if ahead is not None else sql
        if _BARE.match(bare):
            return []
        if self._roots is None:
            rows = self._db.query("select rootpage, lower(tbl_name) as name from sqlite_master where rootpage > 0")
            self._roots = {row["rootpage"]: row["name"] for row in rows}
        found = []
        # Prepared anew each time: SQLite does not see that the schema has changed under an explanation that it has
        # kept, and reads memory that is gone.
        for step in self._db.execute(f"explain /* {next(_asked)} */ {bare}", params).fetchall():
            root, database = _TOUCHES.get(step[1], (0, 0))
            if root and step[database] == 0 and step[root] in self._roots:
                found.append(self._roots[step[root]])
        return found

    def execute(self, sql: str, params: Any = ()) -> Any:
        self._check(sql, params)
        return self._db.execute(sql, params)

    def executemany(self, sql: str, rows: Any) -> None:
        rows = list(rows)
        self._check(sql, rows[0] if rows else None)
        self._db.executemany(sql, rows)

    def executescript(self, sql: str) -> None:
        self._check(sql)
        for each in statements(sql) if self.dialect == "sqlite" else ():
            with suppress(DatabaseError):  # it may need what the ones before it make
                self._check(each, ())
        self._db.executescript(sql)

    def insert(self, table: str, frame: Any) -> None:
        self._check(f"into {table}")
        self._db.insert(table, frame)

    def upsert(self, table: str, frame: Any, *, key: Any, add: Any = ()) -> None:
        self._check(f"into {table}")
        self._db.upsert(table, frame, key=key, add=add)

    def own(self, name: str) -> str:
        return self._db.own(name)

    def has_table(self, name: str) -> bool:
        return self._db.has_table(name)

    def find_table(self, name: str) -> str | None:
        return self._db.find_table(name)

    def make_alone(self) -> None:
        self._db.make_alone()

    def savepoint(self) -> AbstractContextManager[None]:
        return self._db.savepoint()

    def transaction(self) -> AbstractContextManager[None]:
        return self._db.transaction()

    def snapshot(self) -> AbstractContextManager[None]:
        return self._db.snapshot()

    def close(self) -> None:
        self._db.close()

    def _faults(self) -> AbstractContextManager[None]:
        return self._db._faults()
